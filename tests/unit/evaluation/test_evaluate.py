"""An evaluation from end to end on crystals whose every figure can be said beforehand; resuming; failures."""

from __future__ import annotations

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.evaluate import CHUNKS, TABLE, evaluate_samples, read_table
from crystalforge.evaluation.judging.parts import NOT_ASKED
from crystalforge.evaluation.judging.relaxing import Relaxations, chosen_rows
from crystalforge.evaluation.judging.scoring import crystals_of
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.measures import by_label, compare, measure
from crystalforge.evaluation.metrics.summary import across_seeds, per_spacegroup, summarise
from crystalforge.rewards.protocol import RewardUnavailable, Scores
from tests.unit.evaluation.conftest import RuleReward

SALT = [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def salt(a: int, b: int, size: float = 5.6) -> Crystal:
    return Crystal.of(size * np.array(SALT), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])


def chloride(a: int, b: int) -> Crystal:
    """The CsCl arrangement: another structure of the same formula."""
    return Crystal.of(3.5 * np.eye(3), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])


# The rule's E_hull is (sum of Z mod 20)/100: NaCl 28 -> 0.08 stable; KBr 54 -> 0.14; MgO 20 -> 0.00 stable;
# CaO 28 -> 0.08 stable; LiH 4 -> 0.04 stable.
SAMPLES = [
    salt(11, 17),  # stable, known
    salt(11, 17, 5.9),  # the same again: neither unique nor novel
    chloride(11, 17),  # stable, new: a polymorph
    salt(19, 35),  # not stable, new
    salt(12, 8),  # stable, new
    salt(12, 8, 4.1),  # again
    None,  # could not be built
    Crystal.of(5.6 * np.array(SALT), [11, 17], [[0, 0, 0], [0.01, 0, 0]]),  # atoms on top of each other
]


@pytest.fixture
def reference() -> Reference:
    return Reference.from_crystals([salt(11, 17), salt(20, 8)], ["known-1", "known-2"])


def run(out, reward, reference, samples=None, **settings):
    config = EvaluateConfig(**{"chunk": 3, **settings})
    sources = samples or [SampleSet.of("mine", SAMPLES)]
    return evaluate_samples(sources, reward, reference, config, out=out, quiet=True)


def same(first, second) -> bool:
    """Equal to the last bit, NaN being equal to NaN."""
    return (
        first.schema.equals(second.schema)
        and first.schema.metadata == second.schema.metadata
        and str(first.to_pylist()) == str(second.to_pylist())
    )


def test_every_column_of_a_small_evaluation(tmp_path, make_reward, reference):
    table = run(tmp_path, make_reward(), reference)
    rows = table.to_pylist()
    assert [row["group"] for row in rows] == [0, 0, 2, 3, 4, 4, -1, -1]
    assert [row["unique"] for row in rows] == [True, False, True, True, True, False, False, False]
    assert [row["novel"] for row in rows] == [False, False, True, True, True, True, False, False]
    assert [row["stable"] for row in rows] == [True, True, True, False, True, True, False, True]
    assert [row["sun"] for row in rows] == [False, False, True, False, True, False, False, False]
    assert [row["valid"] for row in rows] == [True, True, True, True, True, True, False, False]
    assert [row["built"] for row in rows] == [True] * 6 + [False, True]
    assert [row["nearest_kind"] for row in rows[:5]] == ["match", "match", "polymorph", "similar", "similar"]
    assert rows[0]["nearest_id"] == "known-1"
    assert rows[4]["nearest_formula"] == "CaO"
    assert rows[0]["nearest_distance"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["formula"] == "NaCl"
    assert rows[6]["reward"] == -5.0
    back = crystals_of(table)
    assert back[6] is None
    assert np.array_equal(back[2].lattice, SAMPLES[2].lattice)


def test_rates_count_the_failures(tmp_path, make_reward, reference):
    found = measure(run(tmp_path, make_reward(), reference))
    values = {name: estimate.value for name, estimate in found.items()}
    assert values["stable_rate"] == 6 / 8
    assert values["unique_rate"] == 4 / 8
    assert values["novel_rate"] == 4 / 8
    assert values["sun_rate"] == 2 / 8
    assert values["valid_rate"] == 6 / 8
    assert values["scored_rate"] == 7 / 8
    assert values["mean_e_above_hull"] == pytest.approx(np.mean([0.08, 0.08, 0.08, 0.14, 0, 0, 0.08]))
    assert np.isnan(values["kl_to_base"])


def test_crystals_that_had_to_be_valid_say_how_many_were_drawn(tmp_path, make_reward, reference):
    drawn = [SampleSet.of("valid", SAMPLES[:4], draws=np.int32([1, 3, 1, 7])), SampleSet.of("plain", SAMPLES[:4])]
    table = run(tmp_path, make_reward(), reference, drawn)
    assert table.column("draws").to_pylist() == [1, 3, 1, 7] + 4 * [None]
    summary = summarise(table)["models"]
    assert summary["valid"]["metrics"]["passed_rate"]["value"] == 0.5
    assert summary["plain"]["metrics"]["passed_rate"]["value"] is None


def test_several_protocols_judge_the_same_samples(tmp_path, make_reward, reference):
    table = run(tmp_path, make_reward(), reference, protocols=("crystalformer-rl", "cdvae", "mattergen"))
    assert {"unique", "unique:cdvae", "novel:mattergen", "stable"} <= set(table.column_names)
    assert "stable:cdvae" not in table.column_names, "this protocol has no thermodynamics"
    assert "stable:mattergen" not in table.column_names, "nothing was relaxed"
    for name in ("crystalformer-rl", "cdvae", "mattergen"):
        assert summarise(table, protocol=name)["protocol"]["name"] == name
    assert "sun_rate" not in summarise(table, protocol="cdvae")["models"]["mine"]["metrics"]


def test_models_and_seeds_do_not_see_each_others_duplicates(tmp_path, make_reward, reference):
    sources = [
        SampleSet.of("base", SAMPLES[:4], seed=0),
        SampleSet.of("base", SAMPLES[:4], seed=1),
        SampleSet.of("tuned", SAMPLES[2:6], seed=0, log_prob=np.full(4, -3.0), log_prob_base=np.full(4, -5.0)),
    ]
    table = run(tmp_path, make_reward(), reference, sources)
    summary = summarise(table)
    base, tuned = summary["models"]["base"], summary["models"]["tuned"]
    assert base["seeds"] == [0, 1]
    assert base["metrics"]["unique_rate"]["value"] == tuned["metrics"]["unique_rate"]["value"] == 3 / 4
    assert base["per_seed"]["0"] == base["per_seed"]["1"]
    assert tuned["metrics"]["kl_to_base"]["value"] == 2.0
    assert tuned["status"] == {"ok": 4}
    assert summary["baseline"] == "base"
    assert summary["comparison"]["tuned"]["novel_rate"]["value"] == pytest.approx(1.0 - 0.5)
    merged = across_seeds([summary, summary])
    assert merged["comparison"]["tuned"]["novel_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2}


def test_a_better_model_is_told_from_chance(tmp_path, make_reward, reference):
    rng = np.random.default_rng(0)
    bad = [salt(19, 35, 6 + s) for s in rng.normal(0, 0.05, 60)]
    good = [salt(12, 8, 4.2 + s) if k % 3 else salt(19, 35) for k, s in enumerate(rng.normal(0, 0.05, 60))]
    table = run(tmp_path, make_reward(), reference, [SampleSet.of("base", bad), SampleSet.of("tuned", good)])
    parts = by_label(table)
    found = compare(parts["base"], parts["tuned"])
    assert found["mean_reward"].value == pytest.approx(0.14 * 40 / 60)
    assert found["mean_reward"].low > 0
    assert found["stable_rate"].low > 0
    assert not found["valid_rate"].excludes(0.0)


def test_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, make_reward, reference):
    expected = run(tmp_path / "whole", make_reward(), reference)
    with pytest.raises(RewardUnavailable):
        run(tmp_path / "broken", make_reward(fail_at=7), reference)
    assert len(list((tmp_path / "broken" / CHUNKS).rglob("*.parquet"))) == 2
    assert not (tmp_path / "broken" / TABLE).exists()
    again = make_reward()
    found = run(tmp_path / "broken", again, reference)
    assert again.scored == 2, "six samples had been scored before"
    assert same(found, expected)
    assert same(read_table(tmp_path / "broken" / TABLE), expected)


def test_other_inputs_do_not_reuse_chunks(tmp_path, make_reward, reference):
    run(tmp_path, make_reward(), reference)
    other = make_reward("another")
    run(tmp_path, other, reference)
    assert other.scored == len(SAMPLES)
    third = make_reward()
    run(tmp_path, third, reference, [SampleSet.of("mine", SAMPLES[::-1])])
    assert third.scored == len(SAMPLES)


def test_damaged_chunk_is_scored_again(tmp_path, make_reward, reference, capsys):
    expected = run(tmp_path, make_reward(), reference)
    sorted((tmp_path / CHUNKS).rglob("*.parquet"))[1].write_bytes(b"PAR1 cut off")
    again = make_reward()
    assert same(run(tmp_path, again, reference), expected)
    assert again.scored == 3
    assert "damaged" in capsys.readouterr().err


def test_held_out_potential_has_its_own_columns(tmp_path, make_reward, reference):
    table = evaluate_samples(
        [SampleSet.of("mine", SAMPLES)], make_reward(), reference, EvaluateConfig(), out=tmp_path,
        held_out=[make_reward("other")], lineage={"mine": {"run_id": "r1", "model_hash": "m1", "data_hash": "d1"}},
        quiet=True,
    )  # fmt: skip
    row = table.to_pylist()[0]
    assert row["held_out_e_above_hull"] == row["e_above_hull"] == 0.08
    assert (row["run_id"], row["model_hash"], row["data_hash"]) == ("r1", "m1", "d1")
    assert row["reward_version"] == "rule@rule-digest"
    assert "mean_held_out_e_above_hull" in measure(table)


class Swelling:
    """A stand-in for a potential: cells grow by 2 %, atoms of potassium escape the matcher's tolerance, MgO fails."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.relaxed, self.fail_at = 0, fail_at

    def identity(self) -> str:
        return "swelling"

    def relax(self, crystals):
        if self.fail_at is not None and self.relaxed + len(crystals) > self.fail_at:
            raise KeyboardInterrupt
        self.relaxed += len(crystals)

        def one(crystal):
            if 12 in crystal.numbers:
                return None
            frac = crystal.frac + ([[0, 0, 0], [0.3, 0.1, 0.2]] if 19 in crystal.numbers else 0.0)
            return Crystal.of(1.02 * crystal.lattice, crystal.numbers, frac)

        count = len(crystals)
        return Relaxations([one(crystal) for crystal in crystals], np.ones(count, bool), np.full(count, 7, np.int32))


def test_relaxed_crystals_are_judged_by_the_protocols_that_want_it(tmp_path, make_reward, reference):
    config = EvaluateConfig(protocols=("crystalformer-rl", "mattergen", "lemat-genbench"), chunk=3)
    table = evaluate_samples(
        [SampleSet.of("mine", SAMPLES)], make_reward(), reference, config, out=tmp_path, relaxer=Swelling(), quiet=True
    )
    rows = table.to_pylist()
    assert [row["stable:mattergen"] for row in rows] == [True, True, True, False, False, False, False, False]
    assert [row["metastable:lemat-genbench"] for row in rows] == [True, True, True, False, False, False, False, False]
    assert not any(row["stable:lemat-genbench"] for row in rows), "0.08 eV/atom is metastable only"
    assert rows[0]["relaxed_rms"] == pytest.approx(0, abs=1e-6)
    assert np.isnan(rows[3]["relaxed_rms"]), "it became another crystal"
    assert rows[4]["relaxed_lattice"] == []
    assert rows[4]["relaxed_status"] == 1
    found = summarise(table, protocol="lemat-genbench")["models"]["mine"]["metrics"]
    assert found["msun_rate"]["value"] == 1 / 8
    assert found["sun_rate"]["value"] == 0
    assert found["mean_relaxed_e_above_hull"]["n"] == 4


def test_interrupted_relaxation_goes_on_where_it_stopped(tmp_path, make_reward, reference):
    """Killed in the middle of the third relaxed piece: neither crystals relaxed before nor scores are made again."""
    settings = {"chunk": 3, "relax": {"crystals": 7, "piece": 2}}

    def run(out, reward, relaxer):
        return evaluate_samples(
            [SampleSet.of("mine", SAMPLES)], reward, reference, EvaluateConfig(**settings), out=out,
            held_out=[make_reward("other")], relaxer=relaxer, quiet=True,
        )  # fmt: skip

    expected = run(tmp_path / "whole", make_reward(), Swelling())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", make_reward(), Swelling(fail_at=3))
    again, relaxer = make_reward(), Swelling()
    found = run(tmp_path / "broken", again, relaxer)
    assert 0 < relaxer.relaxed <= 4, "the first piece had been relaxed before"
    assert again.scored == 7, "only the relaxed crystals are scored: the samples had been"
    assert same(found, expected)


def test_a_subset_is_relaxed_and_is_the_denominator(tmp_path, make_reward, reference):
    config = EvaluateConfig(protocols=("crystalformer-rl", "mattergen"), relax={"crystals": 5})
    samples = [SampleSet.of("mine", SAMPLES), SampleSet.of("other", SAMPLES)]
    table = evaluate_samples(samples, make_reward(), reference, config, out=tmp_path, relaxer=Swelling(), quiet=True)
    asked = np.array(table.column("relaxed_asked").to_pylist())
    assert asked[:8].sum() == 5
    assert np.array_equal(asked[:8], asked[8:]), "the same samples of every model"
    rows = table.to_pylist()
    for row, chosen in zip(rows, asked, strict=True):
        if not chosen:
            assert row["relaxed_status"] == NOT_ASKED
            assert np.isnan(row["relaxed_e_above_hull"])
            assert row["relaxed_lattice"] == []
            assert not row["counted:mattergen"]
    found = summarise(table, protocol="mattergen")["models"]["mine"]["metrics"]
    chosen = [row for row in rows[:8] if row["relaxed_asked"]]
    assert found["stable_rate"]["n"] == found["relaxed_stable_rate"]["n"] == found["unique_rate"]["n"] == 5
    assert found["stable_rate"]["value"] == sum(row["stable:mattergen"] for row in chosen) / 5
    assert summarise(table)["models"]["mine"]["metrics"]["stable_rate"]["n"] == 8
    more = chosen_rows(8, 7, samples[0].seed)
    assert more[:5].tolist() == chosen_rows(8, 5, samples[0].seed).tolist(), "a larger choice begins with a smaller"


class Pessimist(RuleReward):
    """Finds every crystal 0.05 eV/atom less stable than the rule does."""

    def score(self, crystals):
        scores = super().score(crystals)
        return Scores(scores.values, scores.status, {"e_above_hull": scores.components["e_above_hull"] + 0.05})


def test_held_out_judges_are_counted_beside_the_reward(tmp_path, make_reward, reference):
    table = evaluate_samples(
        [SampleSet.of("mine", SAMPLES)], make_reward(), reference,
        EvaluateConfig(protocols=("crystalformer-rl", "lemat-genbench")), out=tmp_path,
        held_out=[Pessimist("gloomy"), make_reward("same")], relaxer=Swelling(), quiet=True,
    )  # fmt: skip
    found = measure(table)
    assert found["stable_rate"].value == found["held_out_2_stable_rate"].value == 6 / 8
    assert found["held_out_stable_rate"].value == found["agreed_rate"].value == 2 / 8, "MgO alone, drawn twice"
    assert found["relaxed_stable_rate"].value == 3 / 8, "neither MgO nor overlapping atoms relax"
    assert found["relaxed_held_out_stable_rate"].value == 0
    # The mean over the ensemble for relaxed NaCl, (0.08 + 0.13 + 0.08) / 3, is below 0.1: each has equal weight.
    rows = table.to_pylist()
    assert [row["metastable:lemat-genbench"] for row in rows] == [True, True, True, False, False, False, False, False]
    for name in ("relaxed_e_above_hull", "relaxed_held_out_e_above_hull", "relaxed_held_out_2_e_above_hull"):
        assert np.isfinite(rows[0][name])


def test_several_trainings_of_one_method_are_judged_by_their_spread(tmp_path, make_reward, reference):
    sources = [
        SampleSet.of("base", SAMPLES, seed=0),
        SampleSet.of("ppo", SAMPLES[:4], seed=0),
        SampleSet.of("ppo", SAMPLES[2:6], seed=1),
        SampleSet.of("ppo", SAMPLES[4:], seed=2),
    ]
    lineage = {(s.label, s.seed): {"model_hash": f"{s.label}-{s.seed}"} for s in sources}
    table = evaluate_samples(
        sources, make_reward(), reference, EvaluateConfig(), out=tmp_path, lineage=lineage, quiet=True
    )
    summary = summarise(table)
    stable = summary["models"]["ppo"]["metrics"]["stable_rate"]
    shares = np.array([3 / 4, 3 / 4, 3 / 4])
    assert summary["models"]["ppo"]["experiments"] == 3
    assert summary["models"]["base"]["experiments"] == 1
    assert stable == {"value": shares.mean(), "low": shares.mean(), "high": shares.mean(), "n": 3}
    novel = np.array([2 / 4, 4 / 4, 2 / 4])
    found = summary["models"]["ppo"]["metrics"]["novel_rate"]
    half = 4.302653 * novel.std(ddof=1) / 3**0.5  # Student's t with two degrees of freedom
    assert (found["low"], found["high"]) == (max(novel.mean() - half, 0), 1.0), "no share lies above 1"
    difference = summary["comparison"]["ppo"]["novel_rate"]
    base = summary["models"]["base"]["metrics"]["novel_rate"]
    assert difference["value"] == pytest.approx(found["value"] - base["value"])
    assert difference["high"] - difference["value"] > half, "the base has an interval too"


def test_processes_change_nothing(tmp_path, make_reward, reference):
    one = run(tmp_path / "one", make_reward(), reference)
    two = run(tmp_path / "two", make_reward(), reference, processes=2)
    assert same(two, one)


def test_empty_reference_and_no_lookup(tmp_path, make_reward):
    nothing = Reference.from_crystals([], [])
    table = run(tmp_path / "a", make_reward(), nothing)
    assert table.column("novel").to_pylist()[:6] == [True] * 6
    assert table.column("nearest_id").to_pylist() == [None] * len(SAMPLES)
    assert "nearest_id" not in run(tmp_path / "b", make_reward(), nothing, nearest=False).column_names


def test_figures_by_space_group_add_up(tmp_path, make_reward, reference):
    table = run(tmp_path, make_reward(), reference)
    by_group = per_spacegroup(table)
    assert sum(found["mean_reward"]["n"] for found in by_group.values()) == len(SAMPLES)


def test_wrong_files_and_settings_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pydantic import ValidationError

    with pytest.raises(InputError, match=r"nothing\.parquet"):
        read_table(tmp_path / "nothing.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="not written by an evaluation"):
        read_table(tmp_path / "other.parquet")
    with pytest.raises(ValidationError, match="crystalformer-rl"):
        EvaluateConfig(protocols=("crystalformer",))
