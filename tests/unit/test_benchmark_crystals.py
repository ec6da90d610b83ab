"""The benchmarks that ask about crystals: which are asked about, what counts as found, and why verdicts differ."""

from __future__ import annotations

import ast
import importlib.util
import json
import stat
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.protocols import MatcherSettings

FOLDER = Path(__file__).parents[2] / "benchmarks"
SALT = Crystal.of([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
CAESIUM_CHLORIDE = Crystal.of(np.eye(3) * 3.5, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
BLENDE = Crystal.of(SALT.lattice, [11, 17], [[0, 0, 0], [0.25, 0.25, 0.25]])
OVERLAPPING = Crystal.of(np.eye(3) * 3.5, [11, 17], [[0, 0, 0], [0.05, 0, 0]])


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def prediction() -> ModuleType:
    return load("structure_prediction")


@pytest.fixture(scope="module")
def others() -> ModuleType:
    return load("someone_elses")


def row(name: str, metal: int, energy: float, split: str, inferred: str) -> dict:
    return {
        "material_id": name,
        "lattice": SALT.lattice.ravel().tolist(),
        "atomic_numbers": [metal, 17],
        "frac_coords": SALT.frac.ravel().tolist(),
        "spacegroup_number": 225,
        "formation_energy_per_atom": energy,
        "split": split,
        "split_inferred": inferred,
        "reduced": ((metal, 1), (17, 1)) if metal < 17 else ((17, 1), (metal, 1)),
    }


ROWS = [
    row("a", 11, -1.0, "test", "val_or_test"),
    row("b", 11, -2.0, "test", "val_or_test"),
    row("c", 11, -3.0, "val", "val_or_test"),
    row("d", 19, -2.0, "test", "val_or_test"),
    row("e", 19, -2.5, "", "train"),
    row("f", 37, -2.0, "test", "train"),  # contradicts itself
    row("g", 55, -2.0, "test", "val_or_test"),
]


def test_the_known_structure_is_the_most_stable_of_the_test_split(prediction):
    targets = {target.formula: target for target in prediction.chosen(ROWS, 10, 0)}
    assert set(targets) == {"NaCl", "KCl", "CsCl"}
    assert targets["NaCl"].id == "b"
    assert {name for name, target in targets.items() if target.seen} == {"KCl"}
    other = prediction.chosen(ROWS, 10, 0, frozenset({"CsCl"}))
    assert {target.formula for target in other if target.seen} == {"CsCl"}


def test_more_compositions_begin_with_the_same_ones(prediction):
    names = [target.formula for target in prediction.chosen(ROWS, 3, 5)]
    assert [target.formula for target in prediction.chosen(ROWS, 2, 5)] == names[:2]
    assert len({tuple(t.formula for t in prediction.chosen(ROWS, 3, seed)) for seed in range(9)}) > 1


def test_the_rank_is_of_the_first_candidate_that_matches(prediction):
    how = MatcherSettings()
    assert prediction.ranks([BLENDE, SALT, SALT], SALT, how) == 2
    assert prediction.ranks([BLENDE, OVERLAPPING], SALT, how) is None
    bigger = Crystal.of(SALT.lattice * 1.05, SALT.numbers, SALT.frac)
    kept = prediction.different([SALT, bigger, BLENDE, CAESIUM_CHLORIDE], 2)
    assert [len(kept), kept[0] is SALT, kept[1] is BLENDE] == [2, True, True]


def line(rank, *, seen, lowest=-3.0, known=-3.0) -> dict:
    places = {"rank": rank, "rank_wide": rank, "rank_drawn": None}
    numbers = {"atoms": 4, "listed": 9, "p_group": 0.5, "p_group_training": 0.02}
    return {"seen": seen, "lowest": lowest, "known": known, **places, **numbers} | {
        "seconds": {"groups": 1.0, "draw": 2.0, "relax": 3.0, "all": 6.0}
    }


def test_shares_are_of_the_first_so_many(prediction):
    lines = [line(1, seen=True), line(7, seen=False, lowest=-3.2), line(None, seen=False), line(50, seen=False)]
    found = prediction.summary(lines)
    assert [found["all"]["found"][f"first {k}"]["value"] for k in (1, 10, 50)] == [0.25, 0.5, 0.75]
    assert found["formula in training"]["found"]["first 1"]["value"] == 1.0
    fresh = found["formula not in training"]
    assert (fresh["compositions"], fresh["below"]) == (3, 1)
    assert fresh["found"]["first 10"]["low"] < 1 / 3 < fresh["found"]["first 10"]["high"]
    assert found["all"]["probability of the known group"] == {"the model's own": 0.5, "as in training": 0.02}
    assert found["all"]["found as drawn"]["first 50"]["value"] == 0
    assert found["all"]["cpu_seconds"]["mean"] == 6.0


def test_the_table_has_the_figures_by_size_too(prediction):
    lines = [line(1, seen=True), line(7, seen=False), line(None, seen=False) | {"atoms": 13}]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in prediction.markdown(lines).splitlines()]
    table = {name: dict(zip(rows[0][1:], cells, strict=True)) for name, *cells in rows[2:]}
    counts = {"all": "3", "formula not in training": "2", "formula in training": "1"}
    assert table["compositions"] == counts | {"1 to 6 atoms": "2", "13 to 20 atoms": "1"}
    assert table["found: first 10"]["1 to 6 atoms"].startswith("100.0 [")
    assert table["found: first 1"]["all"] == "33.3 [6.2, 79.2]"
    assert table["found: first 50"]["13 to 20 atoms"].startswith("0.0 [")


def test_a_line_that_a_kill_cut_short_is_done_again(prediction, tmp_path):
    file = tmp_path / "lines.jsonl"
    assert prediction.read_lines(file) == []
    file.write_text('{"formula": "NaCl"}\n{"formula": "K')
    assert prediction.read_lines(file) == [{"formula": "NaCl"}]


def test_their_side_imports_nothing_of_ours():
    tree = ast.parse((FOLDER / "_theirs.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert all(name.split(".")[0] in sys.stdlib_module_names for name in names)


ANSWERS = {
    "structure": [True, True, False, True],
    "composition": [False, True, True, True],
    "composition_2014": [True, True, True, True],
    "unique": [True, False, True, False],
    "unique_of": [[], [0], [], [1]],
    "novel": [True, False, True, True],
    "novel_of": [[], [0], [], []],
}


def test_each_difference_is_explained(others, monkeypatch):
    crystals = [SALT, SALT, OVERLAPPING, BLENDE]
    ours = others.verdicts(crystals, [SALT])
    assert ours["unique"] == [True, False, False, True]
    assert ours["novel"] == [False, False, False, True]
    rows = [
        {"index": i, "formula": "NaCl", **{name: ours[name][i] for name, _ in others.QUESTIONS.values()}}
        for i in range(4)
    ]
    rows[1]["composition_valid"] = not rows[1]["composition_valid"]  # as the table has it
    # StructureMatcher finds salt and blende equal, whichever comes first, and salt equal to salt in one order alone.
    monkeypatch.setattr(others, "fits", lambda first, second: first is not second)

    originals = rows[:2]

    def which(question):
        found = others.compared(question, rows, crystals, [SALT], ours, ANSWERS)
        assert found["differ"] == len(found["which"]) == sum(found["classes"].values())
        return {one["index"]: one["why"] for one in found["which"]}

    assert which("unique") == {2: others.NOT_COMPARED, 3: others.CHAIN}
    assert which("structure valid") == {}
    assert which("composition valid, xtalmet's default") == {0: others.STATES, 1: others.ROUNDED}
    assert which("composition valid, states of 2014") == {1: others.ROUNDED}
    novel = which("novel")
    assert novel[2] == others.NOT_COMPARED
    assert set(novel) == {0, 2}
    promethium = Crystal.of(SALT.lattice, [61, 33], SALT.frac)
    answers = {"composition": [False, None], "composition_2014": [False, None]}
    rows[:2] = [{"index": 0, "formula": "PmAs", "composition_valid": True}, rows[0]]
    valid = {"composition_valid": [True, True]}
    for question in list(others.QUESTIONS)[1:3]:
        found = others.compared(question, rows[:2], [promethium, SALT], [], valid, answers)
        assert [one["why"] for one in found["which"]] == [others.STRENGTH, others.RAISED]
        assert found["theirs"]["value"] == 0
    monkeypatch.setattr(others, "fits", lambda first, second: False)
    rows[:2] = originals
    assert which("unique")[3] == others.ORDER
    assert which("novel")[0] == others.ORDER


def test_they_are_asked_once(others, tmp_path):
    """A stand-in for the other environment's Python: writes what it was given."""
    script = tmp_path / "python"
    body = "import json, sys\ngiven = json.load(open(sys.argv[-2]))\n"
    body += "json.dump({'unique': [len(c['numbers']) for c in given['crystals']]}, open(sys.argv[-1], 'w'))\n"
    script.write_text(f"#!{sys.executable}\n{body}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    kept = tmp_path / "answers.json"
    assert others.ask(str(script), [SALT, BLENDE], [], kept) == {"unique": [2, 2]}
    script.unlink()
    assert others.ask(str(script), [SALT, BLENDE], [], kept) == {"unique": [2, 2]}
    assert json.loads(json.dumps(others.plain(SALT)))["lattice"] == SALT.lattice.tolist()
    with pytest.raises(FileNotFoundError):
        others.ask(str(script), [SALT], [], kept)
