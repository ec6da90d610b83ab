"""What a reward's guards say of a crystal, without the reward: for whoever draws until one passes.

A reward made of others refuses what any of its parts refuses. The elements that a part's model does not know are left
to the reward: only the model knows them.

Shapes: B crystals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from crystalforge.crystal import Crystal
from crystalforge.rewards import guards as guarding
from crystalforge.rewards.config import CompositeReward, EnsembleReward, Guards, RewardConfig
from crystalforge.rewards.protocol import Status


@dataclass(frozen=True)
class Screen:
    """All guards of a reward, and the value of what they refuse."""

    guards: tuple[Guards, ...]
    floor: float

    @staticmethod
    def of(config: RewardConfig) -> Screen:
        """The screen that belongs to a reward.

        >>> from crystalforge.rewards.config import EHullReward
        >>> Screen.of(EHullReward(floor=-3)).floor
        -3.0
        """
        different: list[Guards] = []
        for guards in _guards(config):
            if guards not in different:
                different.append(guards)
        return Screen(tuple(different), config.floor)

    def __call__(self, crystals: Sequence[Crystal | None]) -> Int32[np.ndarray, " B"]:
        """Status of each crystal: OK, or why the reward would not ask a model about it."""
        status = np.full(len(crystals), Status.OK, dtype=np.int32)
        for guards in self.guards:
            rows = np.flatnonzero(status == Status.OK)
            status[rows] = guarding.check([crystals[row] for row in rows.tolist()], guards, None)
        return status


def _guards(config: RewardConfig) -> Iterator[Guards]:
    yield config.guards
    if isinstance(config, CompositeReward):
        for term in config.terms:
            yield from _guards(term.reward)
    elif isinstance(config, EnsembleReward):
        for member in config.members:
            yield from _guards(member)
