"""Random crystals in the dialects of several programs are read right or refused: see benchmarks/cif_dialects.py."""

from __future__ import annotations

from collections import Counter

import pytest

CASES = 100


@pytest.fixture(scope="module")
def dialects(script):
    pytest.importorskip("ase", reason="ASE writes a sixth of the files; pip install 'crystalforge[potentials]'")
    return script("benchmarks/cif_dialects.py")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_hundred_files_are_read_right_or_refused(dialects):
    found = dialects.run(CASES, seed=7, embedded=0)
    wrong = [(case.writer, case.damage, detail) for case, outcome, detail in found if outcome == "wrong"]
    assert not wrong
    whole = Counter(outcome for case, outcome, _ in found if not case.damage)
    assert whole["right"] >= 0.95 * sum(whole.values())  # a refusal is safe, but no use
    writers = {case.writer.partition(",")[0] for case, outcome, _ in found if outcome == "right"}
    assert writers == {"pymatgen", "ase", "dialect"}
    damaged = Counter(outcome for case, outcome, _ in found if case.damage)
    assert damaged["refused"] > 0.5 * sum(damaged.values())
