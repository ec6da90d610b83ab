"""The stage around a screening: what it leaves, that it goes on with more, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crystalforge.config import from_sections
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.screening import known, pool
from crystalforge.stages.base import StaleOutputs
from crystalforge.stages.screen import screen
from tests.unit.screening.conftest import Here, Rules, config_of, crystal_number


class HerePool(Here):
    """Takes the place of the worker processes."""

    rules_of_all = Rules()

    def __init__(self, folder, model, config, seed, processes, lock) -> None:
        super().__init__(folder, self.rules_of_all, seed)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        return None


@pytest.fixture
def rules(monkeypatch):
    """What the workers were asked, in all calls."""
    monkeypatch.setattr(pool, "Pool", HerePool)
    # The rules draw rock salts, all of which are among the embedded crystals.
    few = Reference.from_crystals([crystal_number(4)], ["known"])
    monkeypatch.setattr(known, "open_reference", lambda further: few)
    HerePool.rules_of_all = Rules()
    return HerePool.rules_of_all


def configured(**settings):
    section = config_of(**settings).model_dump(mode="json")
    return from_sections(screen=section, tracking={"enabled": False})


def test_what_a_screening_leaves(rules, tmp_path):
    record = screen(configured(), tmp_path / "out", model=Path("mp20"))
    assert (record["metrics"]["fulfilled"], record["metrics"]["ended"]) == (6, "the wish is met")
    rows = pq.read_table(tmp_path / "out" / "shortlist.parquet").to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["fulfils"]
        assert max(row["one_e_above_hull"], row["two_e_above_hull"]) <= 0.1
        assert row["one_e_above_hull_before"] is not None
        assert row["confirmed_by"] == (["three"] if row["three_e_above_hull"] <= 0.1 else [])
        assert row["volume_change"] == pytest.approx(1.01**3 - 1)
        assert row["nearest_formula"]
    confirmed = sum(bool(row["confirmed_by"]) for row in rows)
    assert record["metrics"]["confirmed_by_three"] == confirmed
    cifs = sorted(path.name for path in (tmp_path / "out" / "cif").iterdir())
    assert cifs == [f"{row['rank']:03d}-{row['formula']}-{row['spacegroup']}.cif" for row in rows]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "6 of 6 crystals asked for" in page
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["calls"]["confirm-three"] == 6


def test_it_goes_on_with_more_and_refuses_something_else(rules, tmp_path):
    out = tmp_path / "out"
    few = screen(configured(top=3), out, model=Path("mp20"))
    asked = len(rules.asked)
    assert screen(configured(top=3), out, model=Path("mp20")) == few
    assert len(rules.asked) == asked, "a finished one costs nothing"
    many = screen(configured(top=8), out, model=Path("mp20"))
    assert many["metrics"]["listed"] == 8
    assert many["key"] == few["key"]
    again = [name for name in rules.asked if not name.startswith("confirm")]
    assert len(set(again)) == len(again)
    with pytest.raises(StaleOutputs, match="another configuration"):
        screen(configured(limit=0.05), out, model=Path("mp20"))
    assert screen(configured(top=8), out, model=Path("mp20")) == many, "its record is still there"


def test_a_screening_that_finds_nothing_says_so(rules, tmp_path):
    record = screen(configured(limit=-5.0, budget={"crystals": 16}), tmp_path / "out", model=Path("mp20"))
    assert (record["metrics"]["fulfilled"], record["metrics"]["listed"]) == (0, 0)
    assert record["metrics"]["ended"] == "the budget of crystals is spent"
    assert "0 of 6 crystals asked for" in (tmp_path / "out" / "report.html").read_text()
