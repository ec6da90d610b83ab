"""What other people's programs say of crystals; run by `someone_elses.py` with the Python of an environment that has
xtalmet and SMACT, and by nobody else. Nothing of this project is imported.

    PYTHON benchmarks/_theirs.py CRYSTALS.json VERDICTS.json

CRYSTALS.json holds `crystals` and `references`, each with lattice (3 x 3, Å), numbers and frac. VERDICTS.json: for each
crystal, in order, what `xtalmet.Evaluator` and SMACT answer; `unique_of` and `novel_of`: rows of the earlier crystals
and of the references at distance 0. References of a formula that no crystal has are left out by the caller: at distance
0 the formulas are equal.
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
    ask("composition", lambda: scores(xtalmet.Evaluator(validity=["smact"]), crystals))
    ask("composition_2014", lambda: [smact_of_2014(structure.composition) for structure in crystals])
    with tempfile.TemporaryDirectory() as folder:
        unique = xtalmet.Evaluator(uniqueness=True, distance=DISTANCE)
        ask("unique", lambda: scores(unique, crystals, folder))
        found = kept(Path(folder) / f"mtx_uni_{DISTANCE}.pkl.gz")
        answers["unique_of"] = [[j for j in range(i) if found[i][j] == 0] for i in range(len(crystals))]
        if references:
            novel = xtalmet.Evaluator(novelty=True, distance=DISTANCE, ref_xtals=references)
            ask("novel", lambda: scores(novel, crystals, folder))
            found = kept(Path(folder) / f"mtx_nov_{DISTANCE}.pkl.gz")
            answers["novel_of"] = [[j for j in range(len(references)) if row[j] == 0] for row in found]
        else:
            answers["novel"], answers["novel_of"] = [True] * len(crystals), [[] for _ in crystals]
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
