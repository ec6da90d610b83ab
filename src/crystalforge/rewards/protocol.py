"""The contract between whoever wants crystals scored and whoever scores them.

In process and over gRPC are the same protocol and give the same answer. A bad crystal is data, not an exception:
it gets the floor and a status. An exception from `score` means that the *service* failed and no crystal was judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32

from crystalforge.common.errors import redacted
from crystalforge.crystal import Crystal


class Status(IntEnum):
    """Why a crystal got the value it got. Numbers are part of the wire format: append, never renumber."""

    OK = 0
    NOT_BUILT = 1  # no crystal: the tokens could not be turned into a structure
    BAD_CELL = 2  # not finite, zero or absurd volume
    TOO_CLOSE = 3  # two atoms nearer than the configured distance
    TOO_LARGE = 4  # more atoms than the service accepts in one crystal
    UNKNOWN_ELEMENT = 5  # an element the model was not trained on
    NOT_FINITE = 6  # the model answered NaN or infinity
    OUT_OF_BOUNDS = 7  # the model's answer lies outside physical bounds
    SPARSE_HULL = 8  # no trustworthy reference phases for this chemical system
    FAILED = 9  # the model raised for this crystal alone
    EXCLUDED = 10  # the wish forbids it (constraint on chemistry)


# Given by the guards, before any model is asked: such a crystal has cost next to nothing.
REFUSED = frozenset(
    {
        Status.NOT_BUILT,
        Status.BAD_CELL,
        Status.TOO_CLOSE,
        Status.TOO_LARGE,
        Status.UNKNOWN_ELEMENT,
        Status.EXCLUDED,
    }
)


@dataclass(frozen=True)
class RewardVersion:
    """What exactly judged: two rewards with equal `digest` give equal values.

    digest: SHA-256 over the configuration, the model's weights and the hull. golden: the values, by formula, that
    the service reproduced before it agreed to serve.
    """

    name: str
    digest: str
    golden: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:12]}"


@dataclass(frozen=True, eq=False)
class Scores:
    """One row per crystal, in the order in which they were given.

    values: the reward (larger is better; always finite). components: named parts of it, such as `e_above_hull`
    (eV/atom) or `energy_per_atom` (eV/atom); NaN where a part does not exist, as for floored crystals.
    """

    values: Float64[np.ndarray, " B"]
    status: Int32[np.ndarray, " B"]
    components: dict[str, Float64[np.ndarray, " B"]]

    def __post_init__(self) -> None:
        assert np.isfinite(self.values).all(), "a reward must be finite: floor it and set a status"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def ok(self) -> np.ndarray:
        """True where the value is the model's, not the floor."""
        return self.status == Status.OK

    @property
    def refused(self) -> np.ndarray:
        """True where a guard refused the crystal and no model was asked."""
        return np.isin(self.status, list(REFUSED))

    def counts(self) -> dict[str, int]:
        """How many crystals ended in each status, by name; statuses that did not occur are left out."""
        codes, numbers = np.unique(self.status, return_counts=True)
        return {Status(int(code)).name.lower(): int(n) for code, n in zip(codes, numbers, strict=True)}

    @staticmethod
    def concatenate(parts: Sequence[Scores]) -> Scores:
        """Rows of several answers, one after the other; all must have the same components."""
        names = list(parts[0].components) if parts else []
        assert all(list(part.components) == names for part in parts)
        return Scores(
            np.concatenate([part.values for part in parts]) if parts else np.zeros(0),
            np.concatenate([part.status for part in parts]) if parts else np.zeros(0, np.int32),
            {name: np.concatenate([part.components[name] for part in parts]) for name in names},
        )


@runtime_checkable
class Reward(Protocol):
    """Scores crystals. Implementations: in process (`rewards`), over gRPC (`integrations.triton`)."""

    @property
    def version(self) -> RewardVersion:
        """What judges; runs record it and refuse to mix two."""
        ...

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        """Score crystals; None stands for one that could not be built and gets `Status.NOT_BUILT`."""
        ...


class RewardUnavailable(RuntimeError):
    """The service did not answer, or not the right one; nothing was scored. Names the server and the remedy."""

    def __init__(self, text: str) -> None:
        super().__init__(redacted(text))
