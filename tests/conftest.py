"""Runs every test on one thread and checks every shape annotation of the package at run time."""

from __future__ import annotations

import os

# Before numpy and torch start their thread pools: with two processes on two cores, more threads are far slower.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from jaxtyping import install_import_hook

install_import_hook(
    [
        f"crystalforge.{name}"
        for name in ("crystal", "model", "data", "training", "rewards", "potentials", "thermo", "rl", "evaluation")
    ],
    "beartype.beartype",
)
