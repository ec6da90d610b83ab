"""How well judges agree with labels: formation energies, distances to the hull, and who calls what stable.

    python recipes/judges.py TABLES work/judges --n 200

TABLES is the directory of `prepare_mp.py`, and wbm_10k/wbm_val.parquet (cif, formation_energy_per_atom) beside it. Two
sets of `--n` crystals each, drawn by `--seed`, as the database relaxed them: the test split of MP-20, and WBM, whose
crystals were made by substitution. Energies are kept in work/judges/energies; an interrupted call, or one with a larger
`--n`, goes on. `--judges` names some of those below; m3gnet wants `--m3gnet FOLDER`. Prints Markdown.

Formation energies are against the elements' own energies by the same judge, at the structures on the labels' hull; raw
PBE gets the Materials Project's corrections of 2020, r2SCAN none, so that what the functionals differ by counts against
those judges. E_hull is the distance to the hull of all other known phases whose structures are at hand (20 atoms at
most), negative below it; which of them a crystal competes with is what the labels say, and their energies are the
judge's own. A crystal is stable when E_hull by label is 0 or less.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from jaxtyping import Float64
from prepare_mp import crystal_of
from scipy.optimize import linprog
from scipy.stats import rankdata

from crystalforge.common.files import atomic_file
from crystalforge.common.progress import Progress
from crystalforge.crystal import Crystal
from crystalforge.crystal.reading.cif.read import parse_cif
from crystalforge.evaluation.metrics.statistics import Estimate, mean, share, wilson
from crystalforge.potentials import Potential, load
from crystalforge.potentials.config import CHGNetConfig, DIEPConfig, MatGLConfig, PotentialConfig, SevenNetConfig
from crystalforge.thermo.corrections import mp2020_corrections
from crystalforge.thermo.entries import parse_formula

JUDGES: dict[str, PotentialConfig] = {
    "chgnet-0.3.0": CHGNetConfig(),
    "chgnet-r2scan": CHGNetConfig(model="r2scan"),
    "7net-0": SevenNetConfig(),
    "7net-l3i5": SevenNetConfig(model="7net-l3i5"),
    "7net-mf-0": SevenNetConfig(model="7net-mf-0"),
    "7net-mf-0, r2scan": SevenNetConfig(model="7net-mf-0", functional="r2scan"),
    "diep": DIEPConfig(dtype="float32"),  # no forces are asked for; within 0.1 meV/atom of float64
}
STRUCTURE = ("lattice", "atomic_numbers", "frac_coords")
PIECE = 32  # crystals between two writes
LIMIT = 0.1  # eV/atom: what `screen` asks for
SMALLEST_SHARE = 1e-6
RESAMPLES = 1000


@dataclass(frozen=True)
class Phase:
    """A known phase: fractions by atomic number, formation energy by label (eV/atom)."""

    name: str
    fractions: Mapping[int, float]
    formation: float


@dataclass(frozen=True)
class Case:
    """A crystal under test: its labels (eV/atom), and the shares of the phases that it competes with."""

    name: str
    crystal: Crystal
    formation: float
    hull: float
    rivals: Mapping[str, float]


def main() -> None:
    """Read the arguments, compute what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="directory of the tables")
    parser.add_argument("out", type=Path, help="directory for the energies")
    parser.add_argument("--n", type=int, default=200, help="crystals of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judges", nargs="*", default=list(JUDGES), choices=[*JUDGES, "m3gnet"])
    parser.add_argument("--m3gnet", type=Path, help="folder of M3GNet-MP-2018.6.1-Eform")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = World(arguments.tables)
    sets = {
        "MP-20, test": world.cases(world.mp20(arguments.n, arguments.seed)),
        "WBM": world.cases(world.wbm(arguments.n, arguments.seed)),
    }
    judges = JUDGES | ({} if arguments.m3gnet is None else {"m3gnet": MatGLConfig(path=arguments.m3gnet)})
    needed = world.needed(sets)
    tables: dict[str, dict[str, dict[str, Estimate]]] = {title: {} for title in sets}
    seconds: dict[str, float] = {}
    for name in arguments.judges:
        potential = load(judges[name])
        energy, seconds[name] = energies(potential, needed, arguments.out / "energies" / f"{name}.parquet")
        for title, cases in sets.items():
            tables[title][name] = figures(cases, energy, world.elements, potential.scale)
    for title, cases in sets.items():
        stable = sum(case.hull <= 0 for case in cases)
        print(
            f"{title}: {len(cases)} crystals, {stable} of them stable by label\n\n{markdown(tables[title], seconds)}\n"
        )


class World:
    """The tables: known phases, and which of them have a structure."""

    def __init__(self, tables: Path) -> None:
        self._tables = tables
        labels = ["material_id", "split", "formation_energy_per_atom"]
        self._mp20 = _rows(tables / "mp20" / "mp20.parquet", [*STRUCTURE, *labels])
        # MP-20's own structures where there are two: the other table holds the database's present ones.
        more = _rows(tables / "mp_le20" / "mp_le20.parquet", ["material_id", *STRUCTURE])
        self._rows = {row["material_id"]: row for row in (*more, *self._mp20)}
        self._phases: dict[frozenset[int], list[Phase]] = defaultdict(list)
        self.elements: dict[int, Phase] = {}
        columns = ["material_id", "formula", "formation_energy_per_atom"]
        for row in _rows(tables / "hull" / "mp_entries_formation_energy.parquet", columns):
            name, energy = row["material_id"], float(row["formation_energy_per_atom"])
            if name not in self._rows:
                continue
            amounts = parse_formula(row["formula"])
            total = sum(amounts.values())
            phase = Phase(name, {z: n / total for z, n in amounts.items()}, energy)
            self._phases[frozenset(amounts)].append(phase)
            (z, *others) = amounts
            if not others and (z not in self.elements or energy < self.elements[z].formation):
                self.elements[z] = phase

    def mp20(self, count: int, seed: int) -> list[tuple[str, Crystal, float]]:
        """Of the test split."""
        test = sorted((row for row in self._mp20 if row["split"] == "test"), key=lambda row: row["material_id"])
        chosen = [test[k] for k in np.random.default_rng(seed).permutation(len(test))[:count]]
        return [(row["material_id"], crystal_of(row), float(row["formation_energy_per_atom"])) for row in chosen]

    def wbm(self, count: int, seed: int) -> list[tuple[str, Crystal, float]]:
        """Of the file, in which they have no names."""
        rows = _rows(self._tables / "wbm_10k" / "wbm_val.parquet", ["cif", "formation_energy_per_atom"])
        chosen = np.random.default_rng(seed).permutation(len(rows))[:count].tolist()
        return [(f"wbm-{k}", parse_cif(rows[k]["cif"]), float(rows[k]["formation_energy_per_atom"])) for k in chosen]

    def cases(self, chosen: Sequence[tuple[str, Crystal, float]]) -> list[Case]:
        """With what each competes; crystals with an element that no structure is at hand of are left out."""
        found = []
        for name, crystal, formation in chosen:
            kinds, counts = np.unique(crystal.numbers, return_counts=True)
            if not set(kinds.tolist()) <= set(self.elements):
                continue
            target = dict(zip(kinds.tolist(), (counts / counts.sum()).tolist(), strict=True))
            inside = [p for system, ps in self._phases.items() if system <= set(target) for p in ps if p.name != name]
            rivals, known = mixture(target, inside), {phase.name: phase.formation for phase in inside}
            hull = formation - sum(part * known[rival] for rival, part in rivals.items())
            found.append(Case(name, crystal, formation, hull, rivals))
        return found

    def needed(self, sets: Mapping[str, Sequence[Case]]) -> dict[str, Crystal]:
        """All structures that a judge must see, by name."""
        crystals = {case.name: case.crystal for cases in sets.values() for case in cases}
        names = {name for cases in sets.values() for case in cases for name in case.rivals}
        kinds = {z for crystal in crystals.values() for z in crystal.numbers.tolist()}
        for name in sorted(names | {self.elements[z].name for z in kinds}):
            crystals.setdefault(name, crystal_of(self._rows[name]))
        return crystals


def mixture(target: Mapping[int, float], phases: Sequence[Phase]) -> dict[str, float]:
    """Shares of the atoms of the phases that a composition falls apart into at least energy.

    >>> salt = [Phase("Na", {11: 1.0}, 0.0), Phase("Cl", {17: 1.0}, 0.0), Phase("NaCl", {11: 0.5, 17: 0.5}, -2.1)]
    >>> mixture({11: 0.75, 17: 0.25}, salt)
    {'Na': 0.5, 'NaCl': 0.5}
    """
    balance = [[phase.fractions.get(z, 0.0) for phase in phases] for z in target]
    answer = linprog([phase.formation for phase in phases], A_eq=balance, b_eq=list(target.values()), method="highs")
    assert answer.success, answer.message
    shares = zip(phases, answer.x, strict=True)
    return {phase.name: round(float(share), 9) for phase, share in shares if share > SMALLEST_SHARE}


def energies(potential: Potential, crystals: Mapping[str, Crystal], file: Path) -> tuple[dict[str, float], float]:
    """Energy per atom by name, eV, corrected where it is raw PBE, NaN where there is no answer; CPU seconds each."""
    table = pd.DataFrame({"name": [], "energy": [], "seconds": [], "digest": []})
    if file.is_file():
        table = pd.read_parquet(file)
        assert (table.digest == potential.digest).all(), f"{file} is of other weights"
    missing = sorted(set(crystals) - set(table.name))
    with Progress(potential.name, len(missing), unit="crystals") as progress:
        for first in range(0, len(missing), PIECE):
            names = missing[first : first + PIECE]
            batch = [crystals[name] for name in names]
            began = time.process_time()
            energy = potential.predict(batch).energy / np.array([len(crystal) for crystal in batch])
            spent = (time.process_time() - began) / len(batch)
            if potential.scale == "pbe":
                energy = energy + mp2020_corrections(batch)
            new = pd.DataFrame({"name": names, "energy": energy, "seconds": spent, "digest": potential.digest})
            table = pd.concat([table, new]) if len(table) else new
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as path:
                table.to_parquet(path, index=False)
            progress.update(len(names))
    return dict(zip(table.name, table.energy, strict=True)), float(table.seconds.median())


def figures(
    cases: Sequence[Case], energy: Mapping[str, float], elements: Mapping[int, Phase], scale: str
) -> dict[str, Estimate]:
    """The figures of one judge on one set, of the crystals that it answers."""
    kinds = {z for case in cases for z in case.crystal.numbers.tolist()}
    # An element's structure at hand may lie a little above its ground state.
    zero = {z: 0.0 if scale == "formation" else energy[elements[z].name] - elements[z].formation for z in kinds}
    formation = np.array([energy[c.name] - np.mean([zero[z] for z in c.crystal.numbers.tolist()]) for c in cases])
    hull = np.array([energy[c.name] - sum(part * energy[name] for name, part in c.rivals.items()) for c in cases])
    answered = np.isfinite(formation) & np.isfinite(hull)
    error = (formation - np.array([case.formation for case in cases]))[answered]
    hull, label = hull[answered], np.array([case.hull for case in cases])[answered]
    return {
        "answered": wilson(int(answered.sum()), len(cases)),
        "MAE of E_form": mean(np.abs(error)),
        "mean error of E_form": mean(error),
        "MAE of E_hull": mean(np.abs(hull - label)),
        "mean error of E_hull": mean(hull - label),
        "rank correlation of E_hull": rank_correlation(hull, label),
        "stable, called stable": share(hull[label <= 0] <= 0),
        "stable, called below 0.1": share(hull[label <= 0] <= LIMIT),
        "unstable, called stable": share(hull[label > 0] <= 0),
        "above 0.1, called below 0.1": share(hull[label > LIMIT] <= LIMIT),
    }


def rank_correlation(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " n"]) -> Estimate:
    """Spearman's, with the percentile bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(first), len(first)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile([_spearman(first[rows], second[rows]) for rows in drawn], [0.025, 0.975])
    return Estimate(_spearman(first, second), float(low), float(high), len(first))


def _spearman(first: Float64[np.ndarray, " n"], second: Float64[np.ndarray, " n"]) -> float:
    ranks = rankdata(first), rankdata(second)
    return float(np.corrcoef(*ranks)[0, 1]) if min(np.ptp(ranks, axis=1)) > 0 else float("nan")


def markdown(found: Mapping[str, Mapping[str, Estimate]], seconds: Mapping[str, float]) -> str:
    """One row a judge; energies in meV/atom, shares in %."""
    names = list(next(iter(found.values())))
    lines = [f"| judge | CPU s a crystal | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for judge, row in found.items():
        cells = [_cell(name, row[name]) for name in names]
        lines.append(f"| {judge} | {seconds[judge]:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, value: Estimate) -> str:
    if value.n == 0:
        return ""
    if "correlation" in name:
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if "error" in name or "MAE" in name:
        return f"{1000 * value.value:.0f} [{1000 * value.low:.0f}, {1000 * value.high:.0f}]"
    return f"{100 * value.value:.0f} [{100 * value.low:.0f}, {100 * value.high:.0f}] of {value.n}"


def _rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    return pq.read_table(file, columns=list(columns)).to_pylist()


if __name__ == "__main__":
    main()
