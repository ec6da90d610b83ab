"""What the sampler gives back. Shapes: n crystals, S site slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from crystalforge.crystal.tokens import Tokens

FACTORS = ("wyckoff", "element", "coords", "lattice")


@dataclass(frozen=True, eq=False)
class Samples:
    """Drawn crystals with their log-probabilities in nats.

    index: number of each crystal in its run, which decides its random numbers. log_prob: under the model, per factor
    ("wyckoff", "element", "coords", "lattice"), [n] each; equals `likelihood.log_prob` of the tokens. log_prob_drawn:
    under the law drawn from, that is after temperature, top-p and constraints (the reference law's lattice: before
    its invalid cells were drawn again, and before crystals were refused, see `log_share`). resampled: how often a
    crystal's lattice was drawn again; 0 in the exact law. draws: how many crystals were drawn until this one passed
    the geometric checks; 1 where none were made.
    """

    index: Int64[np.ndarray, " n"]
    tokens: Tokens
    log_prob: dict[str, Float64[np.ndarray, " n"]]
    log_prob_drawn: dict[str, Float64[np.ndarray, " n"]]
    resampled: Int32[np.ndarray, " n"]
    draws: Int32[np.ndarray, " n"]

    @property
    def total_log_prob(self) -> Float64[np.ndarray, " n"]:
        """log p(crystal | space group) under the model."""
        return np.sum([self.log_prob[name] for name in FACTORS], axis=0)

    @property
    def total_log_prob_drawn(self) -> Float64[np.ndarray, " n"]:
        """log p(crystal | space group) under the law drawn from."""
        return np.sum([self.log_prob_drawn[name] for name in FACTORS], axis=0)

    @property
    def log_share(self) -> Float64[np.ndarray, " n"]:
        """An unbiased estimate, from each crystal's draws, of ln P(g): the share of its space group's law that passes.

        -(1 + 1/2 + ... + 1/(draws - 1)), see `sampling.valid`; 0 where nothing was refused. `total_log_prob_drawn -
        log_share` estimates the log-probability under the law restricted to crystals that pass.
        """
        longest = int(self.draws.max(initial=1))
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, longest))])
        return -harmonic[self.draws - 1]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> Samples:
        """Rows by slice, mask or index array; an integer gives one crystal."""
        if isinstance(rows, (int, np.integer)):
            rows = [int(rows)]
        return Samples(
            self.index[rows],
            self.tokens[rows],
            {name: values[rows] for name, values in self.log_prob.items()},
            {name: values[rows] for name, values in self.log_prob_drawn.items()},
            self.resampled[rows],
            self.draws[rows],
        )

    @staticmethod
    def concatenate(parts: Sequence[Samples], *, slots: int = 1) -> Samples:
        """All parts in the order of their index. `slots` is the width of the result when there are no parts."""
        if not parts:
            none = np.zeros(0)
            return Samples(
                np.zeros(0, np.int64),
                Tokens.empty(slots),
                dict.fromkeys(FACTORS, none),
                dict.fromkeys(FACTORS, none),
                np.zeros(0, np.int32),
                np.zeros(0, np.int32),
            )
        index = np.concatenate([part.index for part in parts])
        whole = Samples(
            index,
            Tokens.concatenate([part.tokens for part in parts]),
            {name: np.concatenate([part.log_prob[name] for part in parts]) for name in FACTORS},
            {name: np.concatenate([part.log_prob_drawn[name] for part in parts]) for name in FACTORS},
            np.concatenate([part.resampled for part in parts]),
            np.concatenate([part.draws for part in parts]),
        )
        return whole[np.argsort(index, kind="stable")]
