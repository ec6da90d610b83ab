"""The paper's figures and tables from tables of crystals whose every number is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal.convert import tokenize_many
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.evaluate import evaluate_samples
from crystalforge.evaluation.judging.scoring import judged_by
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.measures import estimate, measure
from crystalforge.evaluation.metrics.pareto import CONSTANT, GAP, pareto_front
from crystalforge.evaluation.metrics.spacegroups import by_spacegroup, fourteen_groups
from crystalforge.evaluation.paper.runs import gather
from crystalforge.evaluation.paper.tables import candidates, retrieval
from crystalforge.rewards.protocol import Scores
from crystalforge.studies.figures import figures
from tests.unit.evaluation.conftest import RuleReward

KNOWN = 8  # of the prototypes are known crystals


class Dielectric(RuleReward):
    """The rule's E_hull as one part of a composite, with properties that depend on the atomic numbers too."""

    def score(self, crystals):
        scores = super().score(crystals)
        charge = np.array([np.nan if c is None else float(c.numbers.mean()) for c in crystals])
        parts = {
            "stability.e_above_hull": scores.components["e_above_hull"],
            "dielectric.band_gap": 100 / charge,
            "dielectric.dielectric_constant": charge,
        }
        return Scores(scores.values, scores.status, parts)


@pytest.fixture(scope="module")
def two_runs(prototypes, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the same base model, each with a tuned one of its own; in the layout of `crystalforge run`."""
    found = tokenize_many(prototypes[:40])
    tokens = found.tokens
    reference = Reference.from_crystals(prototypes[:KNOWN], [f"known-{k}" for k in range(KNOWN)])
    places = []
    for number in (0, 1):
        place = tmp_path_factory.mktemp("run") / "evaluate"
        sources = [
            SampleSet.from_tokens("base", tokens[:20], seed=5),
            SampleSet.from_tokens("tuned", tokens[4 + number : 34 + number], seed=5),
        ]
        lineage = {"base": {"model_hash": "b"}, "tuned": {"model_hash": f"t{number}"}}
        evaluate_samples(sources, Dielectric(), reference, EvaluateConfig(), out=place, lineage=lineage, quiet=True)
        history = [{"step": k, "reward/mean": k / 10 + number, "kl/base": k / 5} for k in range(6)]
        (place / "histories.json").write_text(json.dumps({"finetune": history, "pretrain": history}))
        places.append(place.parent)
    return places


def test_runs_of_one_method_become_its_seeds(two_runs: list[Path]) -> None:
    both = gather([("ppo", path) for path in two_runs])
    assert both.labels == ["base", "ppo"]
    assert len(both.of("base")) == 20, "the base model was judged in both runs, but is one"
    assert len(both.of("ppo")) == 60
    assert len(both.courses["ppo"]) == 2
    alone = [gather([("ppo", path)]) for path in two_runs]
    shares = [measure(runs.of("ppo"))["sun_rate"].value for runs in alone]
    assert estimate(both.of("ppo"))["sun_rate"].value == pytest.approx(np.mean(shares)), "groups were not mixed up"
    apart = gather([("first", two_runs[0]), ("second", two_runs[1])])
    assert apart.labels == ["base", "first", "second"]


def test_a_run_is_found_by_its_table_and_refused_without(two_runs: list[Path], tmp_path: Path) -> None:
    table = two_runs[0] / "evaluate" / "crystals.parquet"
    assert gather([(None, table)]).labels == gather([(None, two_runs[0])]).labels == ["base", "tuned"]
    with pytest.raises(InputError, match=r"crystals\.parquet"):
        gather([(None, tmp_path)])
    with pytest.raises(InputError, match="no run"):
        gather([])


def test_other_protocols_are_not_mixed(two_runs: list[Path], prototypes, tmp_path: Path) -> None:
    evaluate_samples(
        [SampleSet.of("base", prototypes[:3])], Dielectric(), Reference.from_crystals([], []),
        EvaluateConfig(protocols=("cdvae",)), out=tmp_path, quiet=True,
    )  # fmt: skip
    with pytest.raises(InputError, match="cdvae"):
        gather([(None, two_runs[0]), (None, tmp_path)])


def test_fourteen_groups_are_two_of_each_system(two_runs: list[Path]) -> None:
    runs = gather([(None, two_runs[0])])
    groups = fourteen_groups(runs.of("base"))
    assert groups == sorted(set(groups))
    assert len(groups) <= 14
    counted = [len(runs.of("base").filter(pc.field("spacegroup") == group)) for group in groups]
    assert min(counted) > 0
    shares = by_spacegroup(runs.table)["base"]
    assert sum(found.n for found in shares.values()) == sum(counted)


def test_candidates_are_the_best_by_merit(two_runs: list[Path]) -> None:
    runs = gather([("ppo", path) for path in two_runs])
    rows = candidates(runs, count=5)
    assert [row["model"] for row in rows] == ["ppo"] * 5
    merits = [row["figure_of_merit"] for row in rows]
    assert merits == pytest.approx([100.0] * 5), "gap times constant is 100 by construction"
    by_id = {f"{r['label']}/{r['seed']}/{r['index']}": r for r in runs.of("ppo").to_pylist()}
    for row in rows:
        assert (row["known"] == "yes") == by_id[row["sample"]]["reference_match"]
        assert row["nearest"].startswith("known-")
        assert row["e_above_hull"] < 0.1, "a merit without stability is no candidate"


def test_retrieval_counts_known_crystals_once_and_again(two_runs: list[Path]) -> None:
    runs = gather([(None, two_runs[0])])
    rows = retrieval(runs)
    everything = {row["model"]: row for row in rows if row["reward"] == "all"}
    table = runs.of("tuned").to_pylist()
    assert everything["tuned"]["samples"] == sum(row["built"] for row in table)
    assert everything["tuned"]["known"] == sum(row["reference_match"] for row in table)
    matched = {row["nearest_id"] for row in table if row["nearest_kind"] == "match"}
    assert everything["tuned"]["different_known"] == len(matched) > 0
    limit = next(row["at_least"] for row in rows if row["reward"].startswith("top 10 %"))
    top = [row for row in table if row["reward"] >= limit - 1e-4]
    assert next(r for r in rows if r["reward"].startswith("top 10 %") and r["model"] == "tuned")["samples"] == len(top)


def test_front_has_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(200), rng.random(200)
    expected = [
        not ((first > x) & (second >= y) | (first >= x) & (second > y)).any()
        for x, y in zip(first, second, strict=True)
    ]
    assert pareto_front(first, second).tolist() == expected


def test_parts_of_a_composite_are_found_by_name(prototypes) -> None:
    columns = judged_by(Dielectric(), prototypes[:3])
    assert columns[GAP].to_pylist() == columns["dielectric.band_gap"].to_pylist()
    assert CONSTANT in columns
    assert columns["e_above_hull"].to_pylist() == columns["stability.e_above_hull"].to_pylist()


def test_files_of_all_figures_and_tables(two_runs: list[Path], tmp_path: Path) -> None:
    made = figures([f"ppo={path}" for path in two_runs], tmp_path)
    assert made["without data"] == []
    assert made["models"] == ["base", "ppo"]
    for name in made["files"]:
        assert (tmp_path / name).stat().st_size > 100, name
    assert (tmp_path / "figure-6-pareto.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "headline.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["model"] for row in rows} == {"base", "ppo"}
    assert "| ppo |" in (tmp_path / "table-s3-retrieval.md").read_text()


def test_what_was_not_measured_is_said(prototypes, tmp_path: Path) -> None:
    evaluate_samples(
        [SampleSet.of("base", prototypes[:6])], RuleReward(), Reference.from_crystals([], []),
        EvaluateConfig(), out=tmp_path / "plain", quiet=True,
    )  # fmt: skip
    made = figures([str(tmp_path / "plain")], tmp_path / "out")
    assert made["without data"] == ["figure-3-training", "figure-4-spacegroups", "figure-6-pareto"], "nor space groups"
