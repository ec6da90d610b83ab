"""Environment variables for what is inside a block, and as they were after it.

A variable that stays set is read by whatever the process does next: another run in another directory would speak to
this one's registry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def environment(values: Mapping[str, str], *, unless_set: bool = False) -> Iterator[None]:
    """Set variables inside the block; `unless_set`: only those that have no value yet."""
    before = {name: os.environ.get(name) for name in values}
    try:
        os.environ.update({name: value for name, value in values.items() if not unless_set or before[name] is None})
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside compute on one thread, unless the environment says otherwise: they share the cores."""
    with environment(dict.fromkeys(THREADS, "1"), unless_set=True):
        yield
