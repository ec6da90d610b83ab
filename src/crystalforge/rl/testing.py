"""A reward that costs nothing and whose right answer is known, and guards of its kind: for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32

from crystalforge.common.files import sha256_json
from crystalforge.crystal.crystal import Crystal
from crystalforge.rewards.protocol import RewardUnavailable, RewardVersion, Scores, Status


@dataclass
class ElementReward:
    """The mean over atoms of a number per element: no physics, but smooth, exact and deterministic.

    worth: reward by atomic number; elements that are not named are worth `other`. calls and scored count what was
    asked. The component `cost` is the negative reward.

    >>> reward = ElementReward({8: 1.0})
    >>> reward.score([Crystal.of(np.eye(3) * 4, [8, 12], [[0, 0, 0], [.5, .5, .5]]), None]).values.tolist()
    [0.5, -1.0]
    """

    worth: Mapping[int, float]
    other: float = 0.0
    floor: float = -1.0
    name: str = "element"
    calls: int = field(default=0, init=False)
    scored: int = field(default=0, init=False)

    @property
    def version(self) -> RewardVersion:
        """Digest of the numbers."""
        worth = {str(z): value for z, value in sorted(self.worth.items())}
        return RewardVersion(self.name, sha256_json([worth, self.other, self.floor]))

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        """See `crystalforge.rewards.protocol.Reward`."""
        self.calls += 1
        self.scored += len(crystals)
        built = np.array([crystal is not None for crystal in crystals], dtype=bool)
        values = np.full(len(crystals), self.floor)
        for row, crystal in enumerate(crystals):
            if crystal is not None:
                values[row] = np.mean([self.worth.get(int(z), self.other) for z in crystal.numbers])
        status = np.where(built, Status.OK, Status.NOT_BUILT).astype(np.int32)
        return Scores(values, status, {"cost": np.where(built, -values, np.nan)})


@dataclass
class FailingReward(ElementReward):
    """An `ElementReward` whose service goes away after `away_after` calls, until told otherwise (None)."""

    away_after: int | None = None

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        """Raises RewardUnavailable while it is away."""
        if self.away_after is not None and self.calls >= self.away_after:
            raise RewardUnavailable("server at localhost does not answer")
        return super().score(crystals)


@dataclass(frozen=True)
class ElementScreen:
    """Guards that refuse whatever holds an element beyond `heaviest`; see `crystalforge.rl.rollout.Screen`.

    >>> heavy = Crystal.of(np.eye(3) * 4, [12, 101], [[0, 0, 0], [.5, .5, .5]])
    >>> [Status(status).name for status in ElementScreen()([heavy, None])]
    ['EXCLUDED', 'NOT_BUILT']
    """

    heaviest: int = 100
    floor: float = -1.0

    def __call__(self, crystals: Sequence[Crystal | None]) -> Int32[np.ndarray, " B"]:
        """Status of each crystal."""
        status = [
            Status.NOT_BUILT if crystal is None
            else Status.EXCLUDED if crystal.numbers.max() > self.heaviest
            else Status.OK
            for crystal in crystals
        ]  # fmt: skip
        return np.array(status, dtype=np.int32)
