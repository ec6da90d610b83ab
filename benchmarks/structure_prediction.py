"""Is the known structure of a composition found?   python benchmarks/structure_prediction.py TABLE --out FILE [-n N]

TABLE is MP-20 as a parquet file (material_id, lattice, atomic_numbers, frac_coords, formation_energy_per_atom, split,
split_inferred). N compositions of its test split are drawn by `--seed`; more of them go on where fewer ended. The known
structure of a composition is the one of lowest formation energy in the test split; the model is told the composition
alone, neither the space group nor the number of atoms (20 in the primitive cell at most). By the means of `screen
--formula`:

- groups are drawn with the model's own probability, given the composition (`model.sampling.groups`), or with
  `--groups training` as often as in training, of those that can hold the composition;
- crystals are drawn in rounds of 128 and sorted out by `screen`'s geometry; different ones (StructureMatcher) are
  candidates, until there are `--candidates` or `--draws` are drawn;
- CHGNet moves all of them `--first` steps, then the lowest `--relaxed` of them until forces are below `--fmax` or for
  `--steps`, cell and atoms; those that became one structure are one candidate, and the order is that of the energies,
  the relaxed ones first.

A candidate is the known structure if StructureMatcher says so, with pymatgen's tolerances and, beside it, with the wide
ones (0.3, 0.5, 10 deg) of the literature on structure prediction. Compositions whose formula occurs in the model's
training set are told apart with `--trained-on FILE` (a formula a line; else MP-20's training split).

FILE gets a line a composition; what is there is not done again. Prints JSON: shares found among the first 1, 10 and 50
with Wilson intervals, and CPU seconds a composition. Nobody is told the rank that the known structure would have:
`below` counts the compositions whose first candidate has a lower energy by CHGNet than the known structure, relaxed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import finish, share

from crystalforge.common.seeds import derived
from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import to_crystals
from crystalforge.evaluation.judging.scoring import formula
from crystalforge.evaluation.matching.matcher import Matcher, Reduced
from crystalforge.evaluation.protocols import PROTOCOLS, MatcherSettings
from crystalforge.evaluation.validity import reduced_composition
from crystalforge.model.checkpoint import LoadedModel, load_model
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.sampling.groups import pilot
from crystalforge.model.sampling.sampler import draw_spacegroups, sample
from crystalforge.potentials import CHGNetConfig, Potential, load
from crystalforge.potentials.relax import relax
from crystalforge.rewards.guards import check
from crystalforge.screening.config import ScreenConfig
from crystalforge.stages.models import find_model

FIRST = (1, 10, 50)
ROUND = 128  # crystals drawn at a time
ABREAST = 4  # compositions that relax together, and are lost together when it is interrupted
WIDE = PROTOCOLS["cdvae"].matcher


@dataclass(frozen=True, eq=False)
class Target:
    """A composition and its known structure. seen: whether the formula occurs in the model's training set."""

    formula: str
    id: str
    crystal: Crystal
    spacegroup: int
    seen: bool


@dataclass(eq=False)
class Attempt:
    """What was drawn for a target: candidates in the order of drawing, then (`energy`, eV/atom) in that of the list."""

    target: Target
    candidates: list[Crystal]
    notes: dict[str, Any]
    energy: list[float]


def main() -> None:
    """Read the arguments, predict what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--model", type=Path, default=Path("mp20"))
    parser.add_argument("--groups", choices=("model", "training"), default="model")
    parser.add_argument("--trained-on", type=Path)
    parser.add_argument("--draws", type=int, default=384)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--first", type=int, default=5)
    parser.add_argument("--relaxed", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--fmax", type=float, default=0.1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many (clock)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of the documentation; -n 0: nothing new"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    targets = chosen(read(options.table), options.n, options.seed, read_formulas(options.trained_on))
    done = read_lines(options.out)
    missing = [target for target in targets if target.formula not in {line["formula"] for line in done}]
    if missing:
        loaded, potential = load_model(find_model(options.model)), load(CHGNetConfig())
        until = time.monotonic() + 60 * options.minutes
        for start in range(0, len(missing), ABREAST):
            if time.monotonic() > until:
                break
            lines = predict(missing[start : start + ABREAST], loaded, potential, options)
            with options.out.open("a") as out:
                out.writelines(json.dumps(line) + "\n" for line in lines)
            done += lines
    if options.markdown:
        print(markdown(done))
    else:
        finish({"model": str(options.model), "seed": options.seed, **summary(done)}, packages=("torch", "pymatgen"))


# ---- compositions


def read(table: Path) -> list[dict[str, Any]]:
    """The rows of MP-20 with their reduced formula, under `reduced`."""
    import pyarrow.parquet as pq

    names = ["material_id", "lattice", "atomic_numbers", "frac_coords", "spacegroup_number"]
    names += ["formation_energy_per_atom", "split", "split_inferred"]
    rows = pq.read_table(table, columns=names).to_pylist()
    for row in rows:
        crystal = Crystal.of(np.eye(3), row["atomic_numbers"], np.zeros((len(row["atomic_numbers"]), 3)))
        row["reduced"] = reduced_composition(crystal)
    return rows


def chosen(
    rows: Sequence[Mapping[str, Any]], count: int, seed: int, trained_on: frozenset[str] | None = None
) -> list[Target]:
    """The first `count` compositions of the test split in an order that `seed` decides.

    A row is of the test split when its own split says so and nothing speaks for another. trained_on: formulas that the
    model has seen; None: those of the training split.
    """
    test = [row for row in rows if row["split"] == "test" and row["split_inferred"] == "val_or_test"]
    known: dict[Any, Mapping[str, Any]] = {}
    for row in test:
        best = known.get(row["reduced"])
        if best is None or row["formation_energy_per_atom"] < best["formation_energy_per_atom"]:
            known[row["reduced"]] = row
    learned = {row["reduced"] for row in rows if row["split_inferred"] == "train"}
    order = sorted(known)
    picked = [order[place] for place in np.random.default_rng(seed).permutation(len(order))[:count]]
    targets = []
    for composition in picked:
        row, name = known[composition], formula(dict(composition))
        crystal = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"])
        seen = composition in learned if trained_on is None else name in trained_on
        targets.append(Target(name, str(row["material_id"]), crystal, int(row["spacegroup_number"]), seen))
    return targets


def read_formulas(file: Path | None) -> frozenset[str] | None:
    """A formula a line."""
    return None if file is None else frozenset(file.read_text().split())


def read_lines(file: Path) -> list[dict[str, Any]]:
    """What is done already; a line that a kill cut short does not count."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


# ---- prediction


def predict(
    targets: Sequence[Target], loaded: LoadedModel, potential: Potential, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A line for each target."""
    attempts = [drawn(target, loaded, potential, options) for target in targets]
    began = time.process_time()
    made = lowered(attempts, potential, options)
    cost = time.process_time() - began
    known = relax(potential, [target.crystal for target in targets], fmax=options.fmax, steps=2 * options.steps)
    lines = []
    for attempt, steps, energy in zip(attempts, made, known.energy, strict=True):
        target, notes = attempt.target, attempt.notes
        seconds = notes.pop("seconds") | {"relax": round(cost * steps / max(sum(made), 1), 2)}
        strict, wide = (ranks(attempt.candidates, target.crystal, how) for how in (MatcherSettings(), WIDE))
        lines.append(
            {
                "formula": target.formula,
                "id": target.id,
                "atoms": len(target.crystal),
                "spacegroup": target.spacegroup,
                "seen": target.seen,
                **notes,
                "listed": len(attempt.candidates),
                "rank": strict,
                "rank_wide": wide,
                "lowest": attempt.energy[0] if attempt.energy else None,
                "known": round(float(energy) / len(target.crystal), 4) if np.isfinite(energy) else None,
                "seconds": seconds | {"all": round(sum(seconds.values()), 2)},
            }
        )
    return lines


def drawn(target: Target, loaded: LoadedModel, potential: Potential, options: argparse.Namespace) -> Attempt:
    """Candidates as drawn, different from each other."""
    began = time.process_time()
    wish = Constraints.model_validate({"composition": dict(_counts(target.crystal))})
    shares = np.asarray(loaded.info["spacegroup_weights"], dtype=np.float64)
    seed = derived(options.seed, target.formula)
    asked = pilot(loaded.model, shares, wish, seed=seed)
    law, groups_done = asked.law if options.groups == "model" else asked.shares, time.process_time()
    geometry = ScreenConfig().geometry.model_copy(update={"min_elements": 1})
    sound, found, first = list[Crystal](), list[Crystal](), 0
    while len(found) < options.candidates and first < options.draws:
        groups = draw_spacegroups(law, ROUND, seed=seed, first_index=first)
        tokens = sample(loaded.model, groups, seed=seed, first_index=first, constraints=wish).tokens
        crystals = to_crystals(tokens, primitive=True)
        first += ROUND
        passed = check(crystals, geometry, potential.elements) == 0
        sound += [crystal for crystal, good in zip(crystals, passed, strict=True) if good and crystal is not None]
        found = different(sound, options.candidates)
    place = target.spacegroup - 1
    notes = {
        "p_group": float(f"{law[place]:.3g}"),
        "p_group_training": float(f"{asked.shares[place]:.3g}"),
        "effective": round(asked.effective, 1),
        "drawn": first,
        "sound": len(sound),
        "different": len(found),
        "rank_drawn": ranks(found, target.crystal, MatcherSettings()),
        "seconds": {"groups": round(groups_done - began, 2), "draw": round(time.process_time() - groups_done, 2)},
    }
    return Attempt(target, found, notes, [])


def different(crystals: Iterable[Crystal], most: int) -> list[Crystal]:
    """Those that no earlier one equals, the first `most` of them."""
    matcher, kept = Matcher(MatcherSettings()), list[tuple[Crystal, Reduced]]()
    for crystal in crystals:
        reduced = matcher.reduce(crystal)
        if reduced is not None and not any(matcher.fit(other, reduced) for _, other in kept):
            kept.append((crystal, reduced))
        if len(kept) == most:
            break
    return [crystal for crystal, _ in kept]


def lowered(attempts: Sequence[Attempt], potential: Potential, options: argparse.Namespace) -> list[int]:
    """Relax the candidates of all attempts together, in two rounds, and put them in the order of their energies.

    Gives the steps that each attempt took, times the atoms that they moved.
    """
    cost = [0] * len(attempts)

    def move(owners: Sequence[int], crystals: Sequence[Crystal], steps: int) -> list[tuple[int, Crystal, float]]:
        found = relax(potential, crystals, fmax=options.fmax, steps=steps)
        for owner, made, crystal in zip(owners, found.steps, crystals, strict=True):
            cost[owner] += (int(made) + 1) * len(crystal)
        energies = found.energy / np.array([len(crystal) for crystal in crystals])
        return [
            (owner, crystal, float(energy))
            for owner, crystal, energy, problem in zip(owners, found.crystals, energies, found.problems, strict=True)
            if problem is None
        ]

    owners = [owner for owner, attempt in enumerate(attempts) for _ in attempt.candidates]
    started = move(owners, [crystal for attempt in attempts for crystal in attempt.candidates], options.first)
    mine = [sorted((one for one in started if one[0] == owner), key=lambda one: one[2]) for owner in range(len(cost))]
    best = [one for part in mine for one in part[: options.relaxed]]
    ended = move([owner for owner, _, _ in best], [crystal for _, crystal, _ in best], options.steps)
    for owner, attempt in enumerate(attempts):
        first = sorted((one for one in ended if one[0] == owner), key=lambda one: one[2])
        ordered = first + mine[owner][options.relaxed :]
        attempt.candidates = different([crystal for _, crystal, _ in ordered], options.candidates)
        attempt.energy = [round(energy, 4) for _, _, energy in ordered]
    return cost


def ranks(candidates: Sequence[Crystal], known: Crystal, how: MatcherSettings) -> int | None:
    """The place, from 1, of the first candidate that is the known structure; None where there is none.

    >>> salt = Crystal.of([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [11, 17], [[0, 0, 0], [.5, .5, .5]])
    >>> caesium_chloride = Crystal.of(np.eye(3) * 3.5, [11, 17], [[0, 0, 0], [.5, .5, .5]])
    >>> ranks([caesium_chloride, salt], salt, MatcherSettings())
    2
    """
    matcher = Matcher(how)
    first = matcher.reduce(known)
    for place, candidate in enumerate(candidates, start=1):
        second = matcher.reduce(candidate)
        if first is not None and second is not None and matcher.fit(first, second):
            return place
    return None


# ---- figures


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares found, of all compositions and by whether the model had seen the formula."""
    parts = {
        "all": lines,
        "formula not in training": [line for line in lines if not line["seen"]],
        "formula in training": [line for line in lines if line["seen"]],
    }
    return {name: _figures(part) for name, part in parts.items() if part}


def _figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {
        name: {f"first {k}": _share([line[key] for line in lines], k) for k in FIRST}
        for name, key in (("found", "rank"), ("found, wide", "rank_wide"), ("found as drawn", "rank_drawn"))
    }
    below = [line for line in lines if line["lowest"] is not None and line["known"] is not None]
    seconds = np.array([line["seconds"]["all"] for line in lines])
    return {
        "compositions": len(lines),
        **found,
        "below": sum(line["lowest"] < line["known"] - 1e-3 and line["rank"] != 1 for line in below),
        "atoms": float(np.mean([line["atoms"] for line in lines])),
        "candidates": float(np.mean([line["listed"] for line in lines])),
        "probability of the known group": {
            name: round(float(np.exp(np.mean(np.log(np.maximum([line[key] for line in lines], 1e-6))))), 4)
            for name, key in (("the model's own", "p_group"), ("as in training", "p_group_training"))
        },
        "cpu_seconds": {
            "mean": round(float(seconds.mean()), 2),
            "median": round(float(np.median(seconds)), 2),
            **{part: round(float(np.mean([line["seconds"][part] for line in lines])), 2) for part in PARTS},
        },
    }


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table: all compositions, those seen in training or not, and by atoms in the primitive cell."""
    sizes = {f"{low} to {high} atoms": (low, high) for low, high in ((1, 6), (7, 12), (13, 20))}
    parts = {name: [line for line in lines if low <= line["atoms"] <= high] for name, (low, high) in sizes.items()}
    columns = summary(lines) | {name: _figures(part) for name, part in parts.items() if part}
    rows = {"compositions": [str(one["compositions"]) for one in columns.values()]}
    for name in ("found", "found, wide", "found as drawn"):
        for k in FIRST:
            rows[f"{name}: first {k}"] = [_percent(one[name][f"first {k}"]) for one in columns.values()]
    rows["candidates listed"] = [f"{one['candidates']:.1f}" for one in columns.values()]
    rows["first candidate below the known structure"] = [str(one["below"]) for one in columns.values()]
    for name in ("mean", "median"):
        rows[f"CPU seconds, {name}"] = [f"{one['cpu_seconds'][name]:.1f}" for one in columns.values()]
    head = f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    return "\n".join([head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


PARTS = ("groups", "draw", "relax")


def _share(places: Sequence[int | None], among: int) -> dict[str, float | int | None]:
    return share(sum(place is not None and place <= among for place in places), len(places))


def _counts(crystal: Crystal) -> list[tuple[str, int]]:
    from pymatgen.core.periodic_table import Element

    return [(Element.from_Z(z).symbol, count) for z, count in reduced_composition(crystal)]


if __name__ == "__main__":
    main()
