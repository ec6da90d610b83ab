"""L, the attained share and the filtered control of an evaluation, on the stability study's crystals."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from crystalforge.evaluation.metrics.objective import objectives
from crystalforge.evaluation.report.text import objective_table
from crystalforge.platform.promote import objective_gate
from crystalforge.platform.run import table_columns

TABLE = Path(__file__).parents[4] / "docs" / "results" / "stability-crystals.parquet"
QUOTED = 6e-4  # the documentation gives three decimals


@pytest.fixture(scope="module")
def table() -> pa.Table:
    found = pq.read_table(TABLE)
    found = found.filter(pc.is_in(found["label"], pa.array(["base", "ppo", "sft"])))
    wide = [field.with_type(pa.float64()) if field.type == pa.float32() else field for field in found.schema]
    found = found.cast(pa.schema(wide))  # single precision is the file's, not an evaluation's
    return found.replace_schema_metadata({"tau": "0.1"})


@pytest.fixture(scope="module")
def found(table) -> dict:
    measured = objectives(table)
    assert measured is not None
    return measured


def test_the_study_says_what_the_documentation_quotes(found):
    assert found["optimum"]["value"] == pytest.approx(-0.182, abs=QUOTED)
    assert found["models"]["base"]["objective"]["value"] == pytest.approx(-1.354, abs=QUOTED)
    assert found["models"]["base"]["attained"]["value"] == 0
    base, sft = found["filtered"]["base"], found["filtered"]["sft"]
    assert base["objective"]["value"] == pytest.approx(-0.539, abs=QUOTED)
    assert base["attained"]["value"] == pytest.approx(0.696, abs=QUOTED)
    assert base["stable_rate"]["value"] == pytest.approx(0.353, abs=QUOTED)
    assert base["passed_share"] == pytest.approx({"value": 0.417, "low": 0.387, "high": 0.448, "n": 1000}, abs=QUOTED)
    assert base["kl_to_base"]["value"] == pytest.approx(0.875, abs=QUOTED)
    assert sft["sun_rate"]["value"] == pytest.approx(0.442, abs=QUOTED)


def test_several_seeds_of_one_label_are_judged_by_the_spread_between_them(found):
    ppo = found["models"]["ppo"]["objective"]
    assert ppo["n"] == 3
    assert ppo["value"] == pytest.approx((-1.249 - 1.302 - 1.324) / 3, abs=QUOTED)
    change = found["filtered_comparison"]["ppo"]["objective"]
    assert change["value"] == pytest.approx(found["filtered"]["ppo"]["objective"]["value"] + 0.539, abs=QUOTED)
    assert change["high"] < 0  # after the filter PPO is worse than the base, by its own objective


def test_a_table_that_does_not_say_what_a_nat_costs_has_no_objective(table):
    assert objectives(table.replace_schema_metadata(None)) is None


def test_what_its_own_objective_calls_worse_than_the_base_is_not_promoted(found):
    summary = {"baseline": "base", "objective": found}
    worse = objective_gate(summary, "sft")
    assert not worse.passed
    assert "L -1.437, -0.083" in worse.why
    assert objective_gate(summary, "ppo").passed
    assert objective_gate(summary, "base").passed
    assert objective_gate({"baseline": "base"}, "sft").why == "not measured"


def test_the_filtered_base_is_a_column_of_its_own(found):
    summary = {
        "models": {"base": {"metrics": {}}, "tuned": {"metrics": {}}},
        "comparison": {"tuned": {}},
        "objective": {
            part: {"tuned" if label == "sft" else label: figures for label, figures in found[part].items()}
            for part in ("models", "filtered", "comparison", "filtered_comparison")
        },
    }
    columns = table_columns(summary)
    assert list(columns)[3:] == ["base, filtered", "fine-tuned, filtered", "difference, filtered"]
    assert columns["base, filtered"]["stable_rate"]["value"] == pytest.approx(0.353, abs=QUOTED)
    assert columns["difference"]["objective"]["value"] == pytest.approx(-0.083, abs=2 * QUOTED)
    assert list(table_columns({**summary, "objective": None})) == ["base", "fine-tuned", "difference"]


def test_the_report_shows_every_model_with_and_without_the_filter(found):
    metrics = {label: {"metrics": {"kl_to_base": None}} for label in ("base", "ppo", "sft")}
    html = objective_table({"models": metrics, "objective": found})
    assert html.count('<th scope="col">') == 7
    assert "−1.354 [−1.406, −1.302]" in html
    assert "base, filtered" in html
    assert objective_table({"models": metrics}) == ""


def test_common_random_numbers_are_used_and_crystals_from_elsewhere_are_nobodys_pairs(table, found):
    """SFT drew with the base's seed: its difference is known better than from two independent samples."""
    apart = [found["models"][label]["objective"] for label in ("base", "sft")]
    independent = sum(((each["high"] - each["low"]) / 2) ** 2 for each in apart) ** 0.5
    change = found["comparison"]["sft"]["objective"]
    assert change["value"] == pytest.approx(-0.083, abs=QUOTED)
    assert 0.5 * independent < (change["high"] - change["low"]) / 2 < 0.85 * independent
    sft = pc.equal(table["label"], "sft")
    column = table.schema.get_field_index("seed")
    moved = table.set_column(column, "seed", pc.if_else(sft, 1, table["seed"]))
    others = objectives(moved)
    assert others is not None
    alone = others["comparison"]["sft"]["objective"]
    assert alone["value"] == pytest.approx(change["value"])
    assert (alone["high"] - alone["low"]) / 2 == pytest.approx(independent, rel=1e-3)
