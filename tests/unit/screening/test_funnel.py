"""The funnel: what falls where, when it ends, and that neither order nor interruption changes what comes out."""

from __future__ import annotations

from collections import Counter

import pytest

from crystalforge.screening.shortlist import ranked
from tests.unit.screening.conftest import Killed, Rules, config_of


def outcome(funnel, config):
    return [(one.index, one.after, [flag.name for flag in one.flags]) for one in ranked(funnel.candidates, config)]


def fell_shaken(counts) -> int:
    return sum(number for name, number in counts.items() if name.startswith("fell: shaken"))


def test_the_wish_is_met_by_crystals_that_all_judges_believe_in(make_funnel):
    config = config_of()
    funnel, _ = make_funnel(config)
    funnel.run()
    assert funnel.ended == "the wish is met"
    best = ranked(funnel.candidates, config)
    assert len(best) == config.top
    for one in best:
        assert one.fulfils(config)
        assert all(energy <= config.limit for energy in one.energies(["one", "two"]).values())
        assert min(one.energies(["one", "two"]).values()) >= -0.1
    formulas = [one.relaxed.formula for one in best]
    assert len(set(formulas)) == len(formulas), "all different"
    assert all(one.index % 5 and one.index % 17 for one in best), "unsound and remembered ones fell"
    assert 4 not in [one.index for one in best], "known"


def test_every_crystal_is_somewhere_in_the_counts(make_funnel):
    funnel, _ = make_funnel(config_of(top=500, budget={"crystals": 240}))
    funnel.run()
    assert funnel.ended == "the budget of crystals is spent"
    counts = funnel.counts
    assert counts["drawn"] == 240
    assert counts["sound"] == counts["drawn"] - counts["fell: too_close"]
    assert counts["new"] == counts["sound"] - counts["fell: known"] - counts["fell: duplicate"]
    assert counts["promising"] == counts["new"] - counts["fell: not judged"] - counts["fell: far above the hull"]
    assert counts["relaxed"] == counts["promising"] - counts["fell: relaxed to nothing sound"]
    assert counts["believed by one"] == counts["different"] - counts["fell: above the limit"] - fell_shaken(counts)
    assert counts["believed by one"] == len(funnel.candidates)
    assert counts["fell: duplicate"] > 0
    assert funnel.calls["relax"] == counts["promising"]


@pytest.mark.parametrize("order", range(5))
def test_timing_decides_nothing(make_funnel, tmp_path, order):
    config = config_of()
    reference, _ = make_funnel(config, folder=tmp_path / "a")
    reference.run()
    other, _ = make_funnel(config, order=order + 1, folder=tmp_path / "b")
    other.run()
    assert outcome(other, config) == outcome(reference, config)
    assert other.counts == reference.counts
    assert other.calls == reference.calls


@pytest.mark.parametrize("deaths", [(0,), (1, 1, 1, 1), (3, 7, 2), (12, 5)])
def test_a_killed_screening_goes_on_and_asks_nothing_twice(make_funnel, tmp_path, deaths):
    config = config_of(top=9)
    undisturbed, _ = make_funnel(config, folder=tmp_path / "a")
    undisturbed.run()
    rules = Rules()
    for number, after in enumerate(deaths):
        funnel, _ = make_funnel(config, order=number, rules=rules, folder=tmp_path / "b", die_after=after)
        with pytest.raises(Killed):
            funnel.run()
    funnel, _ = make_funnel(config, order=99, rules=rules, folder=tmp_path / "b")
    funnel.run()
    assert outcome(funnel, config) == outcome(undisturbed, config)
    assert funnel.counts == undisturbed.counts
    assert max(Counter(rules.asked).values()) == 1


def test_more_is_found_where_it_stopped(make_funnel):
    rules = Rules()
    few, _ = make_funnel(config_of(top=4), rules=rules)
    few.run()
    many, _ = make_funnel(config_of(top=8), rules=rules)
    many.run()
    assert max(Counter(rules.asked).values()) == 1
    assert many.fulfilled >= 8


def test_a_budget_of_calls_ends_it_in_the_same_place(make_funnel, tmp_path):
    config = config_of(top=500, budget={"calls": 60})
    found = []
    for order in range(3):
        funnel, _ = make_funnel(config, order=order, folder=tmp_path / str(order))
        funnel.run()
        assert funnel.ended == "the budget of calls is spent"
        found.append(funnel.counts)
    assert found[0] == found[1] == found[2]


def test_a_budget_of_seconds_ends_it(make_funnel):
    funnel, pool = make_funnel(config_of(budget={"seconds": 1e-6}))
    funnel.run()
    assert funnel.ended == "the budget of seconds is spent"
    assert not pool.waiting


def test_a_property_is_asked_for_and_counts(make_funnel):
    wish = {"reward": {"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}}, "at_least": 0.0}
    config = config_of(wish=wish, top=3)
    funnel, _ = make_funnel(config)
    funnel.run()
    best = ranked(funnel.candidates, config)
    assert all(one.property is not None and one.property >= 0 for one in best)
    assert any(one.property < 0 for one in funnel.candidates), "others have it not"


def test_a_workers_error_is_raised(make_funnel, monkeypatch):
    funnel, pool = make_funnel(config_of())
    monkeypatch.setattr(pool, "get", lambda timeout=None: (pool.waiting.pop(), ValueError("no such element")))
    with pytest.raises(ValueError, match="no such element"):
        funnel.run()
