"""The gates by hand: where each opens, to the last point, and the sentence that it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from crystalforge.evaluation.config import MOST_HELD_OUT
from crystalforge.platform.promote import Gate, Judged, PromotionGates, judge, objective_gate

Figure = tuple[float, float, float] | float


def model(name: str = "version 7", *, protocol: str = "p", reward: str = "ab" * 32, **figures: Any) -> Judged:
    """Figures as (value, low, high), or a number without spread."""
    metrics: dict[str, Any] = {"unique_rate": {"value": 0.9, "low": 0.9, "high": 0.9, "n": 100}}
    for metric, figure in figures.items():
        value, low, high = figure if isinstance(figure, tuple) else (figure, figure, figure)
        metrics[metric] = {"value": value, "low": low, "high": high, "n": 100}
    return Judged(name, {"name": protocol}, reward, metrics)


def every(names: Iterable[str], value: float) -> dict[str, Any]:
    """Keyword arguments, all of one value."""
    return dict.fromkeys(names, value)


def gates(candidate: Judged, reference: Judged | None, **options: float | str) -> dict[str, Gate]:
    return {gate.name: gate for gate in judge(candidate, reference, PromotionGates.model_validate(options))}


def test_uniqueness_is_the_lower_end_of_the_interval_and_the_floor_itself_is_enough() -> None:
    for low, passed in [(0.5, True), (0.499, False), (0.501, True)]:
        found = gates(model(unique_rate=(0.6, low, 0.7)), None)
        assert found["uniqueness"].passed is passed
    found = gates(model(unique_rate=(0.6, 0.5, 0.7)), None)
    assert found["uniqueness"].why == "unique crystals 60.0 % [50.0, 70.0], at least 50 % wanted"
    assert found["discovery"] == Gate("discovery", True, "the first model, and nothing to be worse than")
    assert gates(model(unique_rate=(0.6, 0.5, 0.7)), None, smallest_unique=0.55)["uniqueness"].passed is False


def test_without_a_measurement_no_gate_of_shares_opens() -> None:
    blank = Judged(
        "version 7", {"name": "p"}, "ab" * 32, {"unique_rate": {"value": None, "low": None, "high": None, "n": 0}}
    )
    found = gates(blank, model())
    assert [found[name].passed for name in ("uniqueness", "discovery", "comparable")] == [False, False, True]
    assert found["uniqueness"].why.startswith("unique crystals not measured, ")
    assert math.isnan(blank.figure("unique_rate").value)
    assert blank.figure("sun_rate").n == 0


def test_a_loss_as_large_as_the_margin_is_borne() -> None:
    reference = model("version 3", sun_rate=0.5)
    for share, passed in [(0.375, True), (0.374, False), (0.6, True)]:
        assert gates(model(sun_rate=share), reference, margin=0.125)["discovery"].passed is passed
    why = gates(model(sun_rate=0.375), reference, margin=0.125)["discovery"].why
    assert why == "sun_rate -12.5 % [-12.5, -12.5] against version 3, a loss of 12.5 points is borne"
    # MOVER by hand: 0.5 -> 0.5, both +- 0.03 and 0.04: half-width 0.05.
    wide = gates(model(sun_rate=(0.5, 0.47, 0.53)), model(sun_rate=(0.5, 0.46, 0.54)), margin=0.0501)
    assert wide["discovery"].passed
    assert wide["discovery"].why.startswith("sun_rate +0.0 % [-5.0, +5.0]")
    assert not gates(model(sun_rate=(0.5, 0.47, 0.53)), model(sun_rate=(0.5, 0.46, 0.54)), margin=0.0499)[
        "discovery"
    ].passed
    assert gates(model(sun_rate=0.1, novel_rate=0.9), model(sun_rate=0.5, novel_rate=0.9), metric="novel_rate")[
        "discovery"
    ].passed


def test_what_is_asked_for_unless_told_otherwise() -> None:
    """A loss of five points of a hundred is borne; half of the crystals must be unique."""
    reference = model("version 3", sun_rate=0.5, unique_rate=0.5)
    for share, passed in [(0.451, True), (0.449, False)]:
        assert gates(model(sun_rate=share), reference)["discovery"].passed is passed
    for low, passed in [(0.501, True), (0.499, False)]:
        assert gates(model(unique_rate=(0.6, low, 0.7)), reference)["uniqueness"].passed is passed


@pytest.mark.parametrize("setting", ["margin", "smallest_unique"])
def test_settings_that_are_shares_lie_between_nothing_and_all(setting: str) -> None:
    for share in (0.0, 1.0):
        assert getattr(PromotionGates.model_validate({setting: share}), setting) == share
    for wrong in (-0.01, 1.01):
        with pytest.raises(ValueError, match=setting):
            PromotionGates.model_validate({setting: wrong})


def test_comparable_means_same_protocol_and_same_reward() -> None:
    same = gates(model(), model("version 3"))["comparable"]
    assert (same.passed, same.why) == (True, "both judged by protocol p, reward abababababab")
    for other in (model("version 3", protocol="q"), model("version 3", reward="cd" * 32)):
        found = gates(model(), other)["comparable"]
        assert found.passed is False
        assert found.why.startswith("judged by protocol p, reward abababababab; version 3 by protocol ")
    assert gates(model(), model("version 3", reward="cd" * 32))["comparable"].why.endswith("p, reward cdcdcdcdcdcd")


@pytest.mark.parametrize(
    ("held_out", "own", "passed", "says"),
    [
        ((0.05, 0.01, 0.09), -0.1, False, "higher with 95 % confidence: mean E_hull +0.050 [+0.010, +0.090] eV/atom"),
        ((0.05, 0.0, 0.1), 0.0, True, "agrees: "),  # perhaps higher, and the reward's own sees nothing either
        ((0.05, -0.01, 0.11), -0.1, False, "does not see the gain: "),
        ((0.0, -0.05, 0.05), -0.1, False, "does not see the gain: "),  # stands still
        ((-0.001, -0.05, 0.05), -0.1, True, "agrees: "),
        ((0.05, -0.01, 0.11), (-0.1, -0.2, 0.0), True, "agrees: "),  # the reward's own gain is not for sure
        ((-0.1, -0.12, -0.08), 0.1, True, "agrees: "),
    ],
)
def test_a_held_out_potential_against_the_reward_s_own(held_out: Figure, own: Figure, passed: bool, says: str) -> None:
    names = ("mean_e_above_hull", "mean_held_out_e_above_hull")
    found = gates(
        model(mean_e_above_hull=own, mean_held_out_e_above_hull=held_out), model("version 3", **every(names, 0.0))
    )
    gate = found["held-out potential"]
    assert gate.passed is passed
    assert gate.why.startswith(says)
    assert " against version 3, by the reward's own potential " in gate.why


def test_every_held_out_potential_is_heard_and_one_that_contradicts_is_enough() -> None:
    from crystalforge.evaluation.judging.parts import held_out_prefix

    names = [f"mean_{held_out_prefix(number)}e_above_hull" for number in range(MOST_HELD_OUT)]
    zero = model("version 3", mean_e_above_hull=0.0, **every(names, 0.0))
    for contradicting in names:
        figures: dict[str, Any] = every(names, -0.2) | {contradicting: 0.2}
        gate = gates(model(mean_e_above_hull=-0.2, **figures), zero)["held-out potential"]
        assert gate.passed is False
        assert gate.why.count("agrees") == MOST_HELD_OUT - 1
    all_agree = gates(model(mean_e_above_hull=-0.2, **every(names, -0.2)), zero)["held-out potential"]
    assert all_agree.passed is True
    assert gates(model(mean_e_above_hull=-0.2), zero)["held-out potential"].why == "not measured"
    assert (
        gates(model(mean_e_above_hull=-0.2, mean_held_out_e_above_hull=0.2), model())["held-out potential"].passed
        is True
    )


def evaluation(change: float | None, **more: Any) -> dict[str, Any]:
    blank = change is None
    figure = {"value": change, "low": None if blank else change - 0.25, "high": None if blank else change + 0.25}
    objective = {
        "tau": 0.1,
        "models": {"tuned": {"objective": {"value": -0.5, "low": -0.6, "high": -0.4}}},
        "comparison": {"tuned": {"objective": figure}},
    }
    return {"baseline": "base", "objective": objective} | more


def test_the_objective_may_stand_still_and_not_fall() -> None:
    for change, passed in [(0.0, True), (-0.001, False), (0.25, True)]:
        assert objective_gate(evaluation(change), "tuned").passed is passed
    why = "L -0.500, +0.250 [+0.000, +0.500] against its base (tau 0.1)"
    assert objective_gate(evaluation(0.25), "tuned") == Gate("objective", True, why)
    for summary, label, said in [
        (evaluation(None), "tuned", "not measured"),
        (evaluation(-1.0), "base", "a base model"),
        (evaluation(-1.0), "other", "not measured"),
        (evaluation(-1.0, objective=None), "tuned", "not measured"),
        ({"baseline": "base"}, "base", "a base model"),
    ]:
        assert objective_gate(summary, label) == Gate("objective", True, said)
