"""What other people's programs say of crystals; run by `someone_elses.py` with the Python of an environment that has
xtalmet and SMACT, and by nobody else. Nothing of this project is imported.

    PYTHON benchmarks/_theirs.py CRYSTALS.json VERDICTS.json

CRYSTALS.json holds `crystals` and `references`, each with lattice (3 x 3, Å), numbers, frac and `kind`: crystals of
different kinds are not compared, as at distance 0 the formulas are equal; with one kind for all, every pair is asked
about. VERDICTS.json: for each crystal, in order, what `xtalmet.Evaluator` and SMACT answer; `unique_of` and `novel_of`:
rows of the earlier crystals and of the references at distance 0; and CPU seconds.
"""

from __future__ import annotations

import gzip
import importlib
import json
import pickle
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

DISTANCE = "smat"  # StructureMatcher with pymatgen's tolerances
ASKED = {"unique": "uniqueness", "novel": "novelty"}
PACKAGES = ("xtalmet", "smact", "pymatgen")


def main() -> None:
    """Read, ask, write."""
    warnings.simplefilter("ignore")
    given = json.loads(Path(sys.argv[1]).read_text())
    xtalmet: Any = importlib.import_module("xtalmet")
    crystals, references = structures(given["crystals"]), structures(given["references"])
    answers: dict[str, Any] = {"seconds": {}}

    def ask(name: str, question: Any) -> Any:
        began = time.process_time()
        answers[name] = question()
        answers["seconds"][name] = round(time.process_time() - began, 1)

    ask("structure", lambda: scores(xtalmet.Evaluator(validity=["structure"]), crystals))
    smact = xtalmet.Evaluator(validity=["smact"])
    ask("composition", lambda: [or_nothing(lambda c=c: scores(smact, [c])[0]) for c in crystals])
    ask("composition_2014", lambda: [or_nothing(lambda c=c: smact_of_2014(c.composition)) for c in crystals])
    kinds = [row["kind"] for row in given["crystals"]]
    known = [row["kind"] for row in given["references"]]
    for name in ("unique", "novel"):
        began = time.process_time()
        answers[name], answers[f"{name}_of"] = [True] * len(crystals), [[] for _ in crystals]
        for kind in dict.fromkeys(kinds):
            rows = [row for row, other in enumerate(kinds) if other == kind]
            among = [row for row, other in enumerate(known) if other == kind] if name == "novel" else rows
            if not among:
                continue
            options = {ASKED[name]: True, "distance": DISTANCE}
            if name == "novel":
                options["ref_xtals"] = [references[row] for row in among]
            with tempfile.TemporaryDirectory() as folder:
                verdicts = scores(xtalmet.Evaluator(**options), [crystals[row] for row in rows], folder)
                matrix = kept(Path(folder) / f"mtx_{name[:3]}_{DISTANCE}.pkl.gz")
            for place, row in enumerate(rows):
                answers[name][row] = verdicts[place]
                equal = [other for other, distance in zip(among, matrix[place], strict=True) if distance == 0]
                answers[f"{name}_of"][row] = equal if name == "novel" else [other for other in equal if other < row]
        answers["seconds"][name] = round(time.process_time() - began, 1)
    answers["versions"] = {name: version(name) for name in PACKAGES}
    Path(sys.argv[2]).write_text(json.dumps(answers))


def structures(rows: list[dict[str, Any]]) -> list[Any]:
    """As pymatgen has them."""
    core: Any = importlib.import_module("pymatgen.core")
    return [core.Structure(row["lattice"], row["numbers"], row["frac"]) for row in rows]


def scores(evaluator: Any, crystals: list[Any], folder: str | None = None) -> list[bool]:
    """The verdict on each crystal of an evaluator that was asked one thing."""
    _, each, _ = evaluator.evaluate(crystals, dir_intermediate=folder)
    return [bool(score) for score in each]


def or_nothing(question: Any) -> bool | None:
    """The answer; None where they raise, as SMACT does for elements that it has no data of."""
    try:
        return question()
    except (KeyError, NameError):
        return None


def smact_of_2014(composition: Any) -> bool:
    """SMACT's own test with the oxidation states that CDVAE's had."""
    screening: Any = importlib.import_module("smact.screening")
    return bool(screening.smact_validity(composition, oxidation_states_set="smact14"))


def kept(file: Path) -> Any:
    """A matrix of distances that an evaluator has left."""
    with gzip.open(file) as stream:
        return pickle.load(stream)


if __name__ == "__main__":
    main()
