"""What all rewards in process share: guards first, then the judge, then floors, caps and statuses.

Shapes: B crystals of a request, G of them that passed the guards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32

from crystalforge.common.files import sha256_json
from crystalforge.crystal import Crystal
from crystalforge.rewards import guards as guarding
from crystalforge.rewards.config import Guards
from crystalforge.rewards.protocol import RewardVersion, Scores, Status

SEMANTICS = 1
"""Part of every digest. Raise it when the code's meaning changes and the same configuration gives other
values.
"""

VALUE_FREE = ("device", "batch_atoms", "golden", "golden_tolerance", "path", "hull", "name")
"""Configuration keys that change no value; files are represented by the digests of their content."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a judge says of the crystals that it was shown; values may be NaN where the status is not OK."""

    values: Float64[np.ndarray, " G"]
    status: Int32[np.ndarray, " G"]
    components: dict[str, Float64[np.ndarray, " G"]]


@runtime_checkable
class Judge(Protocol):
    """The part of a reward that differs between kinds."""

    @property
    def elements(self) -> frozenset[int] | None:
        """Atomic numbers that it can judge, None for all."""
        ...

    @property
    def component_names(self) -> tuple[str, ...]:
        """Keys of the components that it gives."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of the content (weights, hull, ...) that its values depend on."""
        ...

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """Values of crystals that passed the guards; never raises because of a crystal."""
        ...


class GuardedReward:
    """A `Reward` in process: guards, one judge, floor and cap."""

    def __init__(
        self,
        judge: Judge,
        *,
        name: str,
        settings: Mapping[str, Any],
        guards: Guards,
        floor: float,
        cap: float | None,
    ) -> None:
        self.judge, self._guards, self._floor, self._cap = judge, guards, floor, cap
        digest = sha256_json(
            {"semantics": SEMANTICS, "settings": value_settings(settings), "content": dict(judge.digests)}
        )
        self.version = RewardVersion(name, digest)

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        """See `Reward.score`."""
        status = guarding.check(crystals, self._guards, self.judge.elements)
        values = np.full(len(crystals), self._floor)
        components = {name: np.full(len(crystals), np.nan) for name in self.judge.component_names}
        rows = np.flatnonzero(status == Status.OK)
        if len(rows):
            answer = self.judge.judge(
                [brought_home(crystal) for row in rows.tolist() if (crystal := crystals[row]) is not None]
            )
            finite = np.isfinite(answer.values)
            status[rows] = np.where((answer.status == Status.OK) & ~finite, Status.NOT_FINITE, answer.status)
            ok = status[rows] == Status.OK
            values[rows[ok]] = np.clip(answer.values[ok], self._floor, self._cap)
            for name in components:
                components[name][rows] = answer.components[name]
        return Scores(values, status, components)

    def counters(self) -> dict[str, int]:
        """What the judge counted since it was built, such as cache hits; for a service's metrics."""
        return getattr(self.judge, "counters", dict)()


def brought_home(crystal: Crystal) -> Crystal:
    """The same crystal without far images: a model's neighbour search spans the range of the coordinates, cubed."""
    if (np.abs(crystal.frac) < 2).all():
        return crystal
    return Crystal(crystal.lattice, crystal.numbers, crystal.frac - np.floor(crystal.frac))


ADDED = {"chemistry", "min_bond"}  # demands that came later; see below


def value_settings(settings: Any) -> Any:
    """The part of a configuration that decides values: without devices, batch sizes and places of files."""
    if isinstance(settings, Mapping):
        return {
            key: value_settings(value)
            for key, value in settings.items()
            # An absent demand changes nothing, so digests of before there was such a demand stay valid.
            if key not in VALUE_FREE and not (key in ADDED and value is None)
        }
    if isinstance(settings, list | tuple):
        return [value_settings(item) for item in settings]
    return settings


def failed_status(problems: Sequence[str | None], values: np.ndarray) -> Int32[np.ndarray, " G"]:
    """Status of model answers: FAILED where the model raised, NOT_FINITE where it answered NaN or infinity."""
    status = np.full(len(values), Status.OK, dtype=np.int32)
    status[~np.isfinite(values)] = Status.NOT_FINITE
    for row, problem in enumerate(problems):
        if problem is not None:
            status[row] = Status.NOT_FINITE if "not finite" in problem else Status.FAILED
    return status
