"""Generated crystals on their way into an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32, Int64

from crystalforge.common.files import sha256_json
from crystalforge.crystal import Crystal, PackedCrystals, Tokens
from crystalforge.crystal.convert import to_crystals


@dataclass(frozen=True, eq=False)
class SampleSet:
    """n samples of one model drawn with one seed; every sample has a row, also those that are no crystal.

    label: the model, such as `base` or `tuned`. index: number of each sample within (label, seed). crystals: None
    where nothing could be built. log_prob, log_prob_base: log-probability under the model itself and under the base
    model in nats; NaN where unknown. tokens: what the model wrote, if it was a token model. draws: how
    many crystals were drawn for each until one passed the geometric checks; None where none were made.

    >>> crystals = [Crystal.of(4 * np.eye(3), [6], [[0, 0, 0]]), None]
    >>> len(SampleSet.of("mine", crystals))
    2
    """

    label: str
    seed: int
    index: Int64[np.ndarray, " n"]
    crystals: Sequence[Crystal | None]
    log_prob: Float64[np.ndarray, " n"]
    log_prob_base: Float64[np.ndarray, " n"]
    tokens: Tokens | None = None
    draws: Int32[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        assert len(self.index) == len(self.crystals) == len(self.log_prob) == len(self.log_prob_base)
        assert self.tokens is None or len(self.tokens) == len(self.index)

    @classmethod
    def of(
        cls,
        label: str,
        crystals: Sequence[Crystal | None],
        *,
        seed: int = 0,
        first_index: int = 0,
        log_prob: Float64[np.ndarray, " n"] | None = None,
        log_prob_base: Float64[np.ndarray, " n"] | None = None,
        tokens: Tokens | None = None,
        draws: Int32[np.ndarray, " n"] | None = None,
    ) -> SampleSet:
        """Samples numbered from `first_index` on."""
        unknown = np.full(len(crystals), np.nan)
        return cls(
            label,
            seed,
            np.arange(first_index, first_index + len(crystals), dtype=np.int64),
            list(crystals),
            unknown if log_prob is None else log_prob,
            unknown if log_prob_base is None else log_prob_base,
            tokens,
            draws,
        )

    @classmethod
    def from_tokens(
        cls,
        label: str,
        tokens: Tokens,
        *,
        seed: int = 0,
        first_index: int = 0,
        log_prob: Float64[np.ndarray, " n"] | None = None,
        log_prob_base: Float64[np.ndarray, " n"] | None = None,
        draws: Int32[np.ndarray, " n"] | None = None,
    ) -> SampleSet:
        """Token samples; their crystals are primitive cells."""
        return cls.of(
            label,
            to_crystals(tokens, primitive=True),
            seed=seed,
            first_index=first_index,
            log_prob=log_prob,
            log_prob_base=log_prob_base,
            tokens=tokens,
            draws=draws,
        )

    def __len__(self) -> int:
        return len(self.index)

    def identity(self) -> str:
        """Hash of the samples: an interrupted evaluation goes on only with the very same ones."""
        packed = PackedCrystals.pack(self.crystals)
        return sha256_json(
            [
                self.index.tolist(),
                packed.n_atoms.tolist(),
                packed.numbers.tolist(),
                packed.lattice.tolist(),
                packed.frac.tolist(),
            ]
        )

    def draw(self, first: int, count: int) -> SampleSet:
        """Samples first .. first + count - 1."""
        part = slice(first, first + count)
        return SampleSet(
            self.label,
            self.seed,
            self.index[part],
            self.crystals[part],
            self.log_prob[part],
            self.log_prob_base[part],
            None if self.tokens is None else self.tokens[part],
            None if self.draws is None else self.draws[part],
        )


@runtime_checkable
class Source(Protocol):
    """Where an evaluation gets its samples, a chunk at a time: a `SampleSet`, or a model (`generate.ModelSource`).

    `draw` must give the same samples for the same arguments, whatever was drawn before.
    """

    @property
    def label(self) -> str:
        """Name of the model."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the samples."""
        ...

    def identity(self) -> str:
        """Hash of everything that decides what `draw` returns."""
        ...

    def __len__(self) -> int: ...

    def draw(self, first: int, count: int) -> SampleSet:
        """Samples first .. first + count - 1."""
        ...
