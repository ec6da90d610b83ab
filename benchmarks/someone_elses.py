"""Do other people's programs say the same of our crystals?

    python -m venv theirs && theirs/bin/pip install xtalmet     # 1.0.0 asks for Python 3.12
    python benchmarks/someone_elses.py TABLE --theirs theirs/bin/python

TABLE is MP-20 as a parquet file, whose training split novelty is asked against. The crystals are those of an
evaluation's table (`--crystals`, `--label`, `--seed` of that column, `-n` of them). Asked are structure validity
(`xtalmet`, CDVAE's rule), composition validity (SMACT's own test, with the oxidation states that CDVAE used and with
those that `xtalmet` takes by default), uniqueness and novelty (`xtalmet`, distance `smat`). On our side stand the
verdicts of the table and the same asked anew of the crystals in it, whose numbers are in single precision.

Pairs of different formulas are not asked about, as StructureMatcher never finds them equal; `--whole` asks about them
as well, at a thousand times the cost.

Prints JSON: shares by both with Wilson intervals, how many crystals differ, and for each that does its index, formula
and why. The classes of difference are told by asking again: the matcher with its arguments exchanged, SMACT with other
settings. `--out` keeps what they answered: a later call with as many crystals reads it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from _common import finish, share

from crystalforge.crystal import Crystal
from crystalforge.evaluation.judging.judge import match_all
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.protocols import MatcherSettings
from crystalforge.evaluation.validity import composition_valid, reduced_composition, structure_valid

THEIRS = Path(__file__).parent / "_theirs.py"
CRYSTALS = Path(__file__).parents[1] / "docs" / "results" / "stability-crystals.parquet"
# Question: what it is called in the table, and in their answers.
QUESTIONS = {
    "structure valid": ("structure_valid", "structure"),
    "composition valid, states of 2014": ("composition_valid", "composition_2014"),
    "composition valid, xtalmet's default": ("composition_valid", "composition"),
    "unique": ("unique", "unique"),
    "novel": ("novel", "novel"),
}
NOT_COMPARED = "two sites closer than 0.5 Å or no volume: not compared here, compared there"
ORDER = "StructureMatcher.fit depends on the order of its arguments"
CHAIN = "equals an earlier crystal that is itself a repetition, but not the first of the kind"
STATES = "the oxidation states: ICSD's of 2024 there, SMACT's of 2014 here"
REFERENCE = "the table's verdict was against the reference as tokens, symmetric to the last digit"
ROUNDED = "the numbers in the table are rounded to single precision"
STRENGTH = "an element of unknown electronegativity: fails there, passed in the SMACT that CDVAE used, and passes here"
RAISED = "raises an error there, which ends the evaluation of all crystals"
UNKNOWN = "unexplained"


def main() -> None:
    """Read the arguments, ask both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--theirs", required=True, help="Python of the other environment")
    parser.add_argument("--crystals", type=Path, default=CRYSTALS)
    parser.add_argument("--label", default="base")
    parser.add_argument("--seed", type=int, help="of several that the label has; else the first")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--whole", action="store_true", help="ask about every pair, not those of a formula alone")
    parser.add_argument("--out", type=Path, help="file for their answers")
    options = parser.parse_args()
    rows = [
        row for row in pq.read_table(options.crystals).to_pylist() if row["label"] == options.label and row["built"]
    ]
    seed = rows[0]["seed"] if options.seed is None else options.seed
    rows = [row for row in rows if row["seed"] == seed][: options.n]
    crystals = [crystal_of(row) for row in rows]
    known = references(options.table, crystals)
    answers = ask(options.theirs, crystals, known, options.out, whole=options.whole)
    ours = verdicts(crystals, known)
    result = {
        "crystals": len(rows),
        "label": options.label,
        "references": len(known),
        "questions": {question: compared(question, rows, crystals, known, ours, answers) for question in QUESTIONS},
        "their_seconds": answers["seconds"],
        "theirs": answers["versions"],
    }
    finish(result, packages=("pymatgen", "smact"))


def crystal_of(row: Mapping[str, Any]) -> Crystal:
    """The crystal of a table's row."""
    return Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"])


def references(table: Path, crystals: Sequence[Crystal]) -> list[Crystal]:
    """The crystals of the training split that share a formula with one of ours; no other can be equal to one."""
    wanted = {reduced_composition(crystal) for crystal in crystals}
    names = ["lattice", "atomic_numbers", "frac_coords", "split_inferred"]
    found = (
        crystal_of(row) for row in pq.read_table(table, columns=names).to_pylist() if row["split_inferred"] == "train"
    )
    return [crystal for crystal in found if reduced_composition(crystal) in wanted]


def ask(
    python: str, crystals: Sequence[Crystal], known: Sequence[Crystal], kept: Path | None, *, whole: bool = False
) -> dict[str, Any]:
    """Their answers, from `kept` where it is there. whole: every pair, not those of a formula alone."""
    if kept is not None and kept.exists():
        answers = json.loads(kept.read_text())
        if len(answers["unique"]) == len(crystals):
            return answers
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "crystals.json", Path(folder) / "verdicts.json"
        kinds = {kind: number for number, kind in enumerate(sorted({reduced_composition(one) for one in crystals}))}

        def rows(of: Sequence[Crystal]) -> list[dict[str, Any]]:
            return [plain(one) | {"kind": 0 if whole else kinds[reduced_composition(one)]} for one in of]

        given.write_text(json.dumps({"crystals": rows(crystals), "references": rows(known)}))
        subprocess.run([python, "-P", str(THEIRS), str(given), str(found)], check=True, stdout=subprocess.DEVNULL)
        text = found.read_text()
    if kept is not None:
        kept.write_text(text)
    return json.loads(text)


def plain(crystal: Crystal) -> dict[str, Any]:
    """As JSON has it, to the last bit."""
    return {
        "lattice": crystal.lattice.tolist(),
        "numbers": crystal.numbers.tolist(),
        "frac": crystal.frac.tolist(),
    }


def verdicts(crystals: Sequence[Crystal], known: Sequence[Crystal]) -> dict[str, Any]:
    """Ours, of the crystals as they are in the table; `heads`: row of the first of each kind, -1 for not compared."""
    reference = Reference.from_crystals(list(known), [str(row) for row in range(len(known))])
    found = match_all(crystals, reference, MatcherSettings())
    heads, match = np.asarray(found.heads), np.asarray(found.match)
    return {
        "structure_valid": [structure_valid(crystal)[0] for crystal in crystals],
        "composition_valid": [composition_valid(crystal) for crystal in crystals],
        "unique": (heads == np.arange(len(crystals))).tolist(),
        "novel": ((match < 0) & (heads >= 0)).tolist(),
        "heads": heads.tolist(),
        "match": match.tolist(),
    }


def compared(
    question: str,
    rows: Sequence[Mapping[str, Any]],
    crystals: Sequence[Crystal],
    known: Sequence[Crystal],
    ours: Mapping[str, Any],
    answers: Mapping[str, Any],
) -> dict[str, Any]:
    """Shares by both, and every crystal on which they differ."""
    column, theirs = QUESTIONS[question]
    said, again = [bool(row[column]) for row in rows], ours[column]
    other = [bool(answer) for answer in answers[theirs]]
    differ = []
    for row, values in enumerate(zip(said, again, other, strict=True)):
        raised = answers[theirs][row] is None
        if len(set(values)) == 1 and not raised:
            continue
        if raised:
            why = RAISED
        elif said[row] != again[row]:
            why = ROUNDED if column != "novel" or not ours["structure_valid"][row] else REFERENCE
        else:
            why = reason(column, row, crystals, known, ours, answers)
        facts = {"index": rows[row]["index"], "formula": rows[row]["formula"]}
        differ.append({**facts, "table": said[row], "anew": again[row], "theirs": other[row], "why": why})
    return {
        "ours": share(sum(said), len(said)),
        "ours, anew": share(sum(again), len(again)),
        "theirs": share(sum(other), len(other)),
        "differ": len(differ),
        "classes": dict(Counter(one["why"] for one in differ).most_common()),
        "which": differ,
    }


def reason(
    column: str,
    row: int,
    crystals: Sequence[Crystal],
    known: Sequence[Crystal],
    ours: Mapping[str, Any],
    answers: Mapping[str, Any],
) -> str:
    """Why their answer on one crystal is another than ours."""
    if column == "composition_valid":
        if answers["composition_2014"][row] == ours[column][row]:
            return STATES
        return STRENGTH if ours[column][row] and without_strength(crystals[row]) else UNKNOWN
    if column == "structure_valid":
        return UNKNOWN
    if ours["heads"][row] < 0:
        return NOT_COMPARED
    if ours[column][row]:  # they have found an equal, we have not
        others = known if column == "novel" else crystals
        equals = answers[f"{column}_of"][row]
        if column == "unique" and all(ours["heads"][other] < 0 for other in equals):
            return NOT_COMPARED
        if not any(fits(others[other], crystals[row]) for other in equals):
            return ORDER
        return CHAIN if column == "unique" else UNKNOWN
    equal = known[ours["match"][row]] if column == "novel" else crystals[ours["heads"][row]]
    return ORDER if not fits(crystals[row], equal) else UNKNOWN


def without_strength(crystal: Crystal) -> bool:
    """Whether SMACT has no electronegativity of one of its elements."""
    import smact
    from pymatgen.core.periodic_table import Element

    return any(smact.Element(Element.from_Z(int(z)).symbol).pauling_eneg is None for z in set(crystal.numbers.tolist()))


def fits(first: Crystal, second: Crystal) -> bool:
    """StructureMatcher's answer, in this order."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return bool(StructureMatcher(**MatcherSettings().model_dump()).fit(first.to_structure(), second.to_structure()))


if __name__ == "__main__":
    main()
