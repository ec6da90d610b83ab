"""Would the best candidates hold together? Harmonic frequencies and a short molecular dynamics, by CHGNet.

    python recipes/dynamics.py work/stability/evaluation --label ppo --count 5 -o work/dynamics.json

Takes, of one model's crystals, those that are stable, unique and novel and whose held-out E_hull agrees, of every
composition the best one, in the order of the larger of the two E_hull; relaxes them, asks for the lowest frequency at
the wave vectors of a supercell, and lets the supercell move at 300 K. What was done before is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crystalforge.common.files import write_json
from crystalforge.common.progress import Progress
from crystalforge.crystal import Crystal
from crystalforge.potentials import Potential, load
from crystalforge.potentials.bridge import calculator, to_atoms
from crystalforge.potentials.config import CHGNetConfig
from crystalforge.potentials.phonons import phonons, repeats_for
from crystalforge.potentials.relax import relax

STABLE_AT = 0.1  # eV/atom, as the protocol has it
TIMESTEP_FS = 2.0
FRICTION_PER_FS = 0.01


def main() -> None:
    """Read the arguments, judge, write after each crystal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="output of evaluate")
    parser.add_argument("--label", default="tuned", help="which model's crystals")
    parser.add_argument("--count", type=int, default=5, help="how many crystals")
    parser.add_argument("--picoseconds", type=float, default=1.0, help="length of the molecular dynamics")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file of the results")
    arguments = parser.parse_args()
    done: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    potential = load(CHGNetConfig())
    chosen = candidates(arguments.evaluation, arguments.label, arguments.count)
    with Progress("dynamics", len(chosen), unit="crystals") as progress:
        for row in chosen:
            if row["formula"] not in done:
                crystal = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"])
                known = {key: row[key] for key in ("spacegroup", "e_above_hull", "held_out_e_above_hull")}
                done[row["formula"]] = known | judged(potential, crystal, arguments.picoseconds, arguments.temperature)
                write_json(arguments.out, done)
            progress.update(note=row["formula"])
    print(json.dumps(done, indent=2))


def candidates(evaluation: Path, label: str, count: int) -> list[dict[str, Any]]:
    """Rows of the table of crystals, best first."""
    table = pq.read_table(evaluation / "crystals.parquet").filter(pc.field("label") == label)
    table = table.filter(pc.field("sun") & (pc.field("held_out_e_above_hull") < STABLE_AT))
    rows = sorted(table.to_pylist(), key=lambda row: max(row["e_above_hull"], row["held_out_e_above_hull"]))
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        best.setdefault(row["formula"], row)
    return list(best.values())[:count]


def judged(potential: Potential, crystal: Crystal, picoseconds: float, temperature: float) -> dict[str, Any]:
    """How far it moves when relaxed, its lowest frequency, and how far atoms wander in molecular dynamics."""
    found = relax(potential, [crystal], fmax=0.01, steps=500)
    rest = found.crystals[0]
    assert rest is not None, found.problems[0]
    modes = phonons(potential, rest)
    return {
        "volume_change": float(rest.volume / crystal.volume - 1),
        "relaxation_steps": int(found.steps[0]),
        "lowest_thz": modes.lowest,
        "wave_vectors": len(modes.q),
        "residual_force": modes.residual,
        **motion(potential, rest, picoseconds, temperature),
    }


def motion(potential: Potential, crystal: Crystal, picoseconds: float, temperature: float) -> dict[str, Any]:
    """Langevin dynamics at constant volume; root mean square distance from the sites over the second half, Å."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    atoms = to_atoms(crystal).repeat(repeats_for(crystal, shortest=7.0, most_atoms=60))
    atoms.calc = calculator(potential)
    random = np.random.default_rng(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=random)
    step, friction = TIMESTEP_FS * units.fs, FRICTION_PER_FS / units.fs
    dynamics = Langevin(atoms, step, temperature_K=temperature, friction=friction, rng=random)
    sites, steps = atoms.get_positions(), round(1000 * picoseconds / TIMESTEP_FS)
    squares: list[float] = []
    for k in range(steps):
        dynamics.run(1)
        if k >= steps // 2:
            away = atoms.get_positions() - sites
            away -= away.mean(axis=0)
            squares.append(float((away**2).sum(axis=1).mean()))
    spacing = float((atoms.get_volume() / len(atoms)) ** (1 / 3))
    return {
        "md_atoms": len(atoms),
        "md_ps": picoseconds,
        "md_rms": float(np.sqrt(np.mean(squares))),
        "spacing": spacing,
    }


if __name__ == "__main__":
    main()
