"""The worker's frame: who shares a forward pass with whom, and whose error is whose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.wire import WireError, canary, encode
from crystalforge.rewards.protocol import RewardVersion, Scores
from serving.service import Limits, RewardService, plan

LIMITS = Limits(chunk_structures=8, chunk_atoms=100, merge_below=4, max_atoms=1000)


class Recorder:
    """A reward whose value tells which forward pass a crystal was in; raises on iron."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    @property
    def version(self) -> RewardVersion:
        return RewardVersion("recorder", "0" * 64, {"NaCl": 0.0})

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        if any(crystal is not None and 26 in crystal.numbers for crystal in crystals):
            raise RuntimeError("/secret/path exploded")
        self.passes.append(len(crystals))
        n = len(crystals)
        return Scores(np.full(n, float(len(self.passes))), np.zeros(n, np.int32), {"row": np.arange(n, dtype=float)})


def requests(*sizes: int) -> list[dict[str, np.ndarray]]:
    return [encode([canary()] * size) for size in sizes]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 300)), max_size=20))
def test_every_request_is_in_exactly_one_pass_and_large_ones_are_alone(work: list[tuple[int, int]]) -> None:
    sizes, atoms = [size for size, _ in work], [n for _, n in work]
    groups = plan(sizes, atoms, LIMITS)
    assert sorted(i for group in groups for i in group) == list(range(len(work)))
    for group in groups:
        if len(group) > 1:
            assert all(sizes[i] < LIMITS.merge_below for i in group)
            assert sum(sizes[i] for i in group) <= LIMITS.chunk_structures
            assert sum(atoms[i] for i in group) <= LIMITS.chunk_atoms


def test_small_requests_share_a_pass_and_get_their_own_rows() -> None:
    service = RewardService(Recorder(), LIMITS)
    answers = service.answer(requests(2, 3, 1))
    rows = [answer.components["row"].tolist() for answer in answers if isinstance(answer, Scores)]
    assert rows == [[0, 1], [2, 3, 4], [5]]


def test_a_large_request_has_the_same_passes_with_and_without_company() -> None:
    alone, busy = Recorder(), Recorder()
    one = RewardService(alone, LIMITS).answer(requests(20))[0]
    other = RewardService(busy, LIMITS).answer(requests(2, 20, 3))[1]
    assert isinstance(one, Scores)
    assert isinstance(other, Scores)
    assert np.array_equal(one.components["row"], other.components["row"])
    assert alone.passes == [1, 8, 8, 4]  # the first is the probe at the start
    assert busy.passes == [1, 8, 8, 4, 5]


def test_a_malformed_request_does_not_touch_its_neighbours() -> None:
    broken = {**requests(2)[0], "frac": np.zeros((1, 3))}
    answers = RewardService(Recorder(), LIMITS).answer([requests(2)[0], broken, requests(1)[0]])
    assert [type(answer) for answer in answers] == [Scores, WireError, Scores]


def test_a_reward_that_raises_fails_its_own_pass_only() -> None:
    iron = encode([Crystal.of(np.eye(3) * 3, [26], [[0, 0, 0]])] * 5)
    answers = RewardService(Recorder(), LIMITS).answer([iron, *requests(1)])
    assert isinstance(answers[0], RuntimeError)
    assert isinstance(answers[1], Scores)


@pytest.mark.parametrize(("crystals", "atoms", "accepted"), [(2, 500, True), (2, 501, False), (1, 5000, True)])
def test_a_request_with_too_many_atoms_is_refused_but_a_single_crystal_is_the_rewards_matter(
    crystals: int, atoms: int, accepted: bool
) -> None:
    batch = encode([Crystal.of(np.eye(3), np.ones(atoms), np.zeros((atoms, 3)))] * crystals)
    answer = RewardService(Recorder(), LIMITS).answer([batch])[0]
    assert isinstance(answer, Scores if accepted else WireError)
    if isinstance(answer, WireError):
        assert "1,002 atoms in 2 crystals" in str(answer)


def test_the_service_describes_the_reward_it_holds() -> None:
    about = RewardService(Recorder(), LIMITS, instances=3).about
    assert (about.name, about.components, about.instances) == ("recorder", ("row",), 3)
    assert about.canary == 1.0
    assert about.golden == {"NaCl": 0.0}
