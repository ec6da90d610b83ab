"""How fast are crystals relaxed, and do they end where ASE's do?   python benchmarks/relax.py [--n N] [--processes P]

The crystals are drawn from a shipped model in conventional cells, as `sample` writes them, and pass the geometry that
`screen` asks for. CHGNet moves cell and atoms until all forces are below `--fmax`:

- ase: FIRE with a Frechet cell filter, ASE's defaults but for the largest step, one crystal after the other;
- ours: `potentials.relax`, all together in one process, and in `--processes` processes.

Prints JSON. Rates are in processor time, which other people's load hardly touches: crystals per CPU second of one
core. speedup: of one process over ASE's; with P processes on P cores it is P times that, less what starting them takes
(`wall`: as measured by the clock, on a machine with nothing else to do). by_atoms: speedup by atoms in the conventional
cell. `--brief` leaves out both. `--max-atoms`: of the conventional cells. `--minutes`: of processor time that ASE may
take; the crystals that it has reached by then are those that count. same: part of the crystals whose energies agree
within 2 meV/atom; the others are listed: lower (ours lies lower) and higher. A crystal that starts with large forces
may fall into one minimum or another, whoever moves it, and symmetry may hold it on a saddle: settled counts, of those
that are the same and of the others, the crystals that come back to their energy within 2 meV/atom when every atom is
moved by 0.03 Å at random and ours relaxes them once more.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import finish

from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import to_crystals
from crystalforge.model.checkpoint import load_model
from crystalforge.model.sampling.sampler import draw_spacegroups, sample
from crystalforge.potentials import CHGNetConfig, Potential, load
from crystalforge.potentials.bridge import calculator, to_atoms
from crystalforge.potentials.relax import LARGEST_STEP, relax
from crystalforge.rewards.guards import check
from crystalforge.screening.config import ScreenConfig
from crystalforge.stages.models import find_model

SAME = 2e-3  # eV/atom
SHAKE = 0.03  # Å
EDGES = (1, 8, 16, 32, 1000)  # atoms


def main() -> None:
    """Read the arguments, relax, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fmax", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--max-atoms", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--model", type=Path, default=Path("mp20"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    potential = load(CHGNetConfig())
    crystals = drawn(arguments.model, arguments.n, arguments.seed, potential.elements, arguments.max_atoms)
    potential.predict(crystals[:2], forces=True, stress=True)  # warm
    theirs, ase_cost, ase_done = one_by_one(
        potential, crystals, arguments.fmax, arguments.steps, 60 * arguments.minutes
    )
    crystals = crystals[: len(theirs)]
    began = time.process_time()
    found = relax(potential, crystals, fmax=arguments.fmax, steps=arguments.steps)
    cost = time.process_time() - began
    ours = found.energy / np.array([len(crystal) for crystal in crystals])
    sizes = np.array([len(crystal) for crystal in crystals])
    both = np.isfinite(theirs) & np.isfinite(ours) & ase_done & found.converged
    difference = (ours - theirs)[both]
    same = np.abs(difference) <= SAME
    rows = np.flatnonzero(both)
    moved = shaken([found.crystals[row] for row in rows], arguments.seed)
    again = relax(potential, moved, fmax=arguments.fmax, steps=arguments.steps).energy / sizes[rows]
    back = np.abs(again - ours[rows]) <= SAME
    by_atoms = {}
    for low, high in [] if arguments.brief else pairwise(EDGES):
        rows = np.flatnonzero((sizes >= low) & (sizes < high))
        if len(rows):
            began = time.process_time()
            relax(potential, [crystals[row] for row in rows], fmax=arguments.fmax, steps=arguments.steps)
            spent = time.process_time() - began
            by_atoms[f"{low} to {high - 1}"] = {
                "crystals": len(rows),
                "speedup": round(float(ase_cost[rows].sum() / spent), 2),
            }
    wall = {}
    if arguments.processes > 1 and not arguments.brief:
        began = time.monotonic()
        with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
            parts = [crystals[number :: arguments.processes] for number in range(arguments.processes)]
            list(pool.map(_relax, parts, [arguments.fmax] * len(parts), [arguments.steps] * len(parts)))
        wall = {
            "wall_crystals_per_s": len(crystals) / (time.monotonic() - began),
            "processes": arguments.processes,
        }
    finish(
        {
            "crystals": len(crystals),
            "mean_atoms": float(sizes.mean()),
            "most_atoms": int(sizes.max()),
            "ase_per_cpu_second": len(crystals) / float(ase_cost.sum()),
            "per_cpu_second": len(crystals) / cost,
            "speedup": float(ase_cost.sum()) / cost,
            "by_atoms": by_atoms,
            **wall,
            "converged": {"ase": int(ase_done.sum()), "ours": int(found.converged.sum())},
            "steps": float(found.steps.mean()),
            "compared": int(both.sum()),
            "same": float(same.mean()),
            "settled": {
                "same": f"{int(back[same].sum())} of {int(same.sum())}",
                "others": f"{int(back[~same].sum())} of {int((~same).sum())}",
            },
            "lower": [round(float(x), 4) for x in np.sort(difference[difference < -SAME])],
            "higher": [round(float(x), 4) for x in np.sort(difference[difference > SAME])],
        }
    )


def drawn(model: Path, count: int, seed: int, elements: frozenset[int], max_atoms: int) -> list[Crystal]:
    """Crystals of sound geometry, conventional cells of at most `max_atoms`."""
    loaded = load_model(find_model(model))
    groups = draw_spacegroups(np.asarray(loaded.info["spacegroup_weights"]), 8 * count, seed=seed)
    tokens = sample(loaded.model, groups, seed=seed).tokens
    sound = check(to_crystals(tokens, primitive=True), ScreenConfig().geometry, elements) == 0
    found = to_crystals(tokens[np.flatnonzero(sound)])
    return [crystal for crystal in found if crystal is not None and len(crystal) <= max_atoms][:count]


def one_by_one(
    potential: Potential, crystals: list[Crystal], fmax: float, steps: int, seconds: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energy per atom, CPU seconds and whether it converged, of each crystal that ASE begins within `seconds`."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    optimiser: Any = FIRE  # whose annotations know no filters
    energy, cost, done = [], [], []
    for crystal in crystals:
        if sum(cost) >= seconds:
            break
        began = time.process_time()
        value, ended = np.nan, False
        try:
            atoms = to_atoms(crystal)
            atoms.calc = calculator(potential)
            ended = optimiser(FrechetCellFilter(atoms), logfile=None, maxstep=LARGEST_STEP).run(fmax=fmax, steps=steps)
            value = atoms.get_potential_energy() / len(crystal)
        except Exception as error:  # as an ill crystal does anywhere in ASE
            print(f"crystal {len(cost)}: {error}", file=sys.stderr)
        cost.append(time.process_time() - began)
        energy.append(value)
        done.append(ended)
    return np.array(energy), np.array(cost), np.array(done, dtype=bool)


def shaken(crystals: list[Crystal], seed: int) -> list[Crystal]:
    """The crystals with every coordinate of every atom moved by 0.03 Å (standard deviation)."""
    rng = np.random.default_rng(seed)
    moves = [SHAKE * rng.standard_normal(crystal.frac.shape) @ np.linalg.inv(crystal.lattice) for crystal in crystals]
    return [
        Crystal(crystal.lattice, crystal.numbers, crystal.frac + move)
        for crystal, move in zip(crystals, moves, strict=True)
    ]


def _relax(crystals: list[Crystal], fmax: float, steps: int) -> int:
    torch.set_num_threads(1)
    return int(relax(load(CHGNetConfig()), crystals, fmax=fmax, steps=steps).converged.sum())


if __name__ == "__main__":
    main()
