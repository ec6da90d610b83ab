"""The report's sections on second opinions, relaxation, space groups and the monitor say what the table holds."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from crystalforge.crystal.convert import tokenize_many
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.evaluate import evaluate_samples
from crystalforge.evaluation.judging.relaxing import Relaxations
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.summary import summarise
from crystalforge.evaluation.report import sections, write_report
from crystalforge.evaluation.report.candidates import choose
from crystalforge.evaluation.report.judges import agreement, pareto
from crystalforge.rewards.protocol import Scores
from tests.unit.evaluation.conftest import RuleReward

VERDICT = {
    "verdict": "monitor at step 40: KL is 120; the policy of step 30 is kept",
    "passed": False,
    "looks": 4,
    "last_good_step": 30,
    "held_out": "other@abc <b>",
    "first": {"step": 0, "held_out/mean": -0.4, "drift/elements": 0.0},
    "last": {"step": 40, "held_out/mean": -0.6, "held_out/gap": 1.25, "drift/elements": 0.3},
}


class Reversed(RuleReward):
    """Finds stable what the rule does not; also knows properties."""

    def score(self, crystals):
        scores = super().score(crystals)
        energy = 0.2 - scores.components["e_above_hull"]
        charge = np.array([np.nan if c is None else float(c.numbers.mean()) for c in crystals])
        parts = {"e_above_hull": energy, "band_gap": charge / 10, "dielectric_constant": 100 / charge}
        return Scores(scores.values, scores.status, parts)


class Still:
    """A relaxer for which everything is at rest."""

    def identity(self) -> str:
        return "still"

    def relax(self, crystals):
        return Relaxations(list(crystals), np.ones(len(crystals), bool), np.zeros(len(crystals), np.int32))


@pytest.fixture(scope="module")
def judged(prototypes, tmp_path_factory):
    tokens = tokenize_many(prototypes[:24]).tokens
    sources = [SampleSet.from_tokens("base", tokens[:14]), SampleSet.from_tokens("tuned", tokens[6:])]
    return evaluate_samples(
        sources, Reversed("first"), Reference.from_crystals(prototypes[:4], list("abcd")),
        EvaluateConfig(relax={"crystals": 10}), out=tmp_path_factory.mktemp("judged"), held_out=[RuleReward("second")],
        relaxer=Still(), quiet=True,
    )  # fmt: skip


def test_opposite_judges_are_seen_to_disagree(judged) -> None:
    page = sections.opinions(judged)
    correlations = [float(x) for x in re.findall(r'Rank correlation"><span>(-?[0-9.]+)', page)]
    assert len(correlations) == 2
    assert max(correlations) < -0.5
    figure = agreement(judged, 0.1)
    assert figure is not None
    assert [trace.name for trace in figure.data[1:]] == ["base", "tuned"]
    assert agreement(judged.drop_columns(["held_out_e_above_hull"]), 0.1) is None


def test_fronts_are_those_of_the_points(judged) -> None:
    figure = pareto(judged)
    assert figure is not None
    traces = {trace.name: trace for trace in figure.data}
    points, front = traces["base"], traces["base, front"]
    for x, y in zip(front.x, front.y, strict=True):
        assert not ((np.array(points.x) > x) & (np.array(points.y) > y)).any()


def test_a_stopped_run_says_why_and_names_are_escaped() -> None:
    page = sections.monitor({"finetune ppo": VERDICT, "finetune sft": {}})
    assert "stopped" in page
    assert "The policy of step 30" not in page.split("Monitor")[0]
    assert "the policy of step 30 is kept" in page
    assert "other@abc &lt;b&gt;" in page
    assert "1.250 sd" in page
    assert "sft" not in page, "nothing was watched there"
    assert sections.monitor({}) == ""


def test_space_groups_have_every_model_and_how_many_crystals(judged) -> None:
    page = sections.spacegroups(judged)
    assert page.count('data-label="base"') == page.count('data-label="tuned"') > 3
    assert re.search(r"\d+ to \d+ · \d+ crystals", page)


def test_page_has_the_sections_and_the_relaxed_columns(judged, tmp_path) -> None:
    summary = summarise(judged)
    write_report(tmp_path / "report.html", judged, summary, {}, {"monitor": {"finetune": VERDICT}})
    text = (tmp_path / "report.html").read_text()
    for heading in ("A second opinion", "After relaxing", "Monitor", "Band gap and dielectric constant", "p = "):
        assert heading in text
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.S)
    assert found is not None
    data = json.loads(found.group(1))
    assert {"figure-agreement", "figure-relaxed", "figure-pareto"} <= set(data["figures"])
    rows = {c["id"]: c for c in data["candidates"]}
    relaxed = [row for row in judged.to_pylist() if row["relaxed_asked"] and row["unique"]]
    for row in relaxed:
        shown = rows[f"{row['label']}/{row['seed']}/{row['index']}"]
        assert shown["relaxed"] == pytest.approx(row["relaxed_e_above_hull"], abs=1e-4)
        assert shown["rmsd"] == 0


def test_what_two_trainings_wrote_is_shown_once(prototypes, tmp_path) -> None:
    tokens = tokenize_many(prototypes[:6]).tokens
    sources = [SampleSet.from_tokens("ppo", tokens, seed=seed) for seed in (0, 1)]
    table = evaluate_samples(
        sources, RuleReward(), Reference.from_crystals([], []), EvaluateConfig(), out=tmp_path, quiet=True
    )
    assert len(table) == 12
    assert len(choose(table, 100)) == 6
