"""Reward against KL, on the stability study's crystals: lines, star, curve and paths lie where they must."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from crystalforge.evaluation.report.leash import reward_against_kl

TABLE = Path(__file__).parents[3] / "docs" / "results" / "stability-crystals.parquet"
PATH = [{"step": k, "kl/base": 0.2 * k, "reward/mean": -1.35 + 0.03 * k} for k in range(9)]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    found = pq.read_table(TABLE)
    found = found.filter(pc.field("label").isin(["base", "sft"]))
    wide = [field.with_type(pa.float64()) if field.type == pa.float32() else field for field in found.schema]
    return found.cast(pa.schema(wide)).replace_schema_metadata({"tau": "0.1"})


@pytest.fixture(scope="module")
def figure(table: pa.Table):
    found = reward_against_kl(table, {"finetune sft": PATH})
    assert found is not None
    return found


def trace(figure, name: str):
    (found,) = [each for each in figure.data if each.name == name]
    return found


def test_models_lie_at_their_reward_and_kl_as_drawn_and_filtered(figure):
    # As docs/results.md quotes them: KL 4.34 and reward -1.004 as generated, 4.43 and -0.208 filtered.
    plain, cut = trace(figure, "sft"), trace(figure, "sft, filtered")
    assert (plain.x[0], plain.y[0]) == (pytest.approx(4.34, abs=6e-3), pytest.approx(-1.004, abs=6e-4))
    assert (cut.x[0], cut.y[0]) == (pytest.approx(4.43, abs=6e-3), pytest.approx(-0.208, abs=6e-4))
    assert trace(figure, "base").x[0] == pytest.approx(0, abs=1e-6)
    assert plain.error_y.array[0] == pytest.approx(0.058, abs=1e-3)


def test_lines_of_equal_objective_rise_by_tau_and_none_lies_above_the_optimum(figure):
    slopes = [(line.y1 - line.y0) / (line.x1 - line.x0) for line in figure.layout.shapes]
    assert slopes == pytest.approx([0.1] * 5)
    levels = [line.y0 for line in figure.layout.shapes]
    assert (levels[0], levels[-1]) == (pytest.approx(-1.354, abs=6e-4), pytest.approx(-0.182, abs=6e-4))
    star = trace(figure, "optimum, by the base's crystals")
    assert star.y[0] - 0.1 * star.x[0] == pytest.approx(levels[-1]), "the star touches the highest line"
    curve = trace(figure, "best of N of the base")
    objectives = np.array(curve.y) - 0.1 * np.array(curve.x)
    assert (objectives <= levels[-1] + 1e-9).all()
    assert (np.diff(curve.y) > 0).all()
    assert [text for text in curve.text if text] == ["2", "4", "8", "16", "32", "64"]
    assert {re.sub(r" .*", "", note.text) for note in figure.layout.annotations} == {"L(base)", "L", "L*"}


def test_the_path_is_the_run_s_and_what_is_shown_holds_it(figure):
    path = trace(figure, "path of finetune sft")
    assert list(path.x) == [row["kl/base"] for row in PATH]
    assert list(path.y) == [row["reward/mean"] for row in PATH]
    for each in figure.data:
        assert figure.layout.xaxis.range[0] <= min(each.x) <= max(each.x) <= figure.layout.xaxis.range[1]
        assert figure.layout.yaxis.range[0] <= min(each.y) <= max(each.y) <= figure.layout.yaxis.range[1]
    assert not [each for each in figure.data if each.name == "path of finetune sft, filtered"], "it was not logged"


def test_without_a_price_or_a_tuned_model_there_is_nothing_to_draw(table):
    assert reward_against_kl(table.replace_schema_metadata(None), {}) is None
    assert reward_against_kl(table.filter(pc.field("label") == "base"), {}) is None
