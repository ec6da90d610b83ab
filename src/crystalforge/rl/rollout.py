"""Draw crystals from the policy and have them scored.

Crystals are numbered through the whole run, and all randomness of crystal i follows from (seed, i): a step can be
drawn again at any time, and nothing of a random generator's state needs saving.

Shapes: B crystals of one step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import to_crystals
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.constraints.automaton import feasible_spacegroups
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import draw_spacegroups, sample
from crystalforge.rewards.protocol import Reward, Scores, Status
from crystalforge.rl import journal
from crystalforge.rl.journal import Scored
from crystalforge.rl.policy import one_thread
from crystalforge.training.ranks import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class Source:
    """Where crystals come from: space groups by weight, and what the sampler may draw.

    group_size: how many consecutive crystals share one drawn space group.
    """

    weights: Float64[np.ndarray, " 230"]
    seed: int
    constraints: Constraints | None = None
    group_size: int = 1

    def spacegroups(self, first_index: int, count: int) -> Int64[np.ndarray, " B"]:
        """Space groups of crystals first_index, first_index + 1, ..."""
        size = self.group_size
        assert first_index % size == count % size == 0
        groups = draw_spacegroups(self.weights, count // size, seed=self.seed, first_index=first_index // size)
        return np.repeat(groups.astype(np.int64), size)

    def draw(self, model: CrystalFormer, first_index: int, count: int) -> tuple[Tokens, Float64[np.ndarray, " B"]]:
        """Crystals first_index, ... in this order, and their log-probabilities under the model.

        In float32, or in float64 where the model is.
        """
        model.eval()
        double = model.head.weight.dtype == torch.float64
        with one_thread():
            samples = sample(
                model,
                self.spacegroups(first_index, count),
                seed=self.seed,
                first_index=first_index,
                constraints=self.constraints,
                precision="float64" if double else "float32",
            )
        assert np.array_equal(samples.index, np.arange(first_index, first_index + count))
        return samples.tokens, samples.total_log_prob


def weights_within(
    weights: Float64[np.ndarray, " 230"], spacegroups: Sequence[int] | None, constraints: Constraints | None = None
) -> Float64[np.ndarray, " 230"]:
    """`weights` restricted to `spacegroups` and to what `constraints` make possible, and normalised.

    Where the training set has none of the groups that remain, they get equal weights: the wish counts more than the
    data. Raises InputError when the weights themselves are no distribution, or when no group remains.
    """
    if weights.shape != (230,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise InputError(
            "space-group weights must be 230 numbers >= 0, not all zero",
            source="spacegroup_weights",
            remedy="take them from a token store with TokenStore.spacegroup_weights('train')",
        )
    wanted = np.zeros(230)
    wanted[np.asarray(spacegroups or range(1, 231)) - 1] = 1
    if constraints is not None:
        possible = np.zeros(230)
        possible[np.asarray(feasible_spacegroups(constraints), dtype=np.int64) - 1] = 1
        wanted *= possible
    if not wanted.any():
        raise InputError(
            f"no crystal in the space groups {list(spacegroups or range(1, 231))} can meet the constraints",
            source="constraints",
            remedy="loosen the constraints, or allow more space groups",
        )
    weights = weights * wanted if (weights * wanted).any() else wanted
    return (weights / weights.sum()).astype(np.float64)


MOST_DRAWS = 64  # draws for one crystal that passes, on average, before a policy is given up
LARGEST_PIECE = 512  # crystals drawn between two counts of those that passed


@runtime_checkable
class Screen(Protocol):
    """What can be said of a crystal before any model is asked; see `crystalforge.rewards.screen`."""

    @property
    def floor(self) -> float:
        """Value of what is refused."""
        ...

    def __call__(self, crystals: Sequence[Crystal | None]) -> Int32[np.ndarray, " B"]:
        """Status of each crystal; OK: the reward is to be asked."""
        ...


@dataclass(frozen=True, eq=False)
class Rollout:
    """One step's scored crystals, and the seconds spent on drawing and on scoring."""

    scored: Scored
    seconds_sample: float
    seconds_score: float


def roll_out(
    model: CrystalFormer,
    source: Source,
    reward: Reward,
    *,
    step: int,
    first_index: int,
    count: int,
    folder: Path,
    ranks: Ranks = ALONE,
    screen: Screen | None = None,
) -> Rollout:
    """Draw and score the crystals of `step`, or read them back when `folder` already holds them.

    With a `screen`, as many are drawn as it takes for `count` of them to pass it; the others are part of the step, with
    the status that they were refused for and the floor. Each of several ranks draws and scores its share, and gets all.
    """
    path = journal.step_file(folder, step)
    index = np.arange(first_index, first_index + count, dtype=np.int64)
    began = time.perf_counter()
    known = ranks.by_first(
        lambda: journal.recall(path, index) if screen is None else journal.recall_from(path, first_index)
    )
    if known is not None:
        return Rollout(known, time.perf_counter() - began, 0.0)
    if screen is None:
        tokens, log_prob = drawn_by_all(model, source, first_index, count, ranks)
        at = time.perf_counter()
        scores = score_together(reward, tokens, ranks, unit=source.group_size)
    else:
        tokens, log_prob, status = _drawn_until(model, source, first_index, count, ranks, screen)
        at = time.perf_counter()
        passed = np.flatnonzero(status == Status.OK)
        scores = _scattered(score_together(reward, tokens[passed], ranks), passed, status, screen.floor)
        index = np.arange(first_index, first_index + len(tokens), dtype=np.int64)
    scored = Scored(index, tokens, scores, log_prob)
    if ranks.leads:
        journal.write(path, step, scored)
    return Rollout(scored, at - began, time.perf_counter() - at)


def drawn_by_all(
    model: CrystalFormer, source: Source, first_index: int, count: int, ranks: Ranks
) -> tuple[Tokens, Float64[np.ndarray, " B"]]:
    """Crystals first_index, ..., each rank drawing its share."""
    own = share_of(ranks, count, source.group_size)
    drawn = ranks.gather(source.draw(model, first_index + own.start, len(own)))
    return Tokens.concatenate([part for part, _ in drawn]), np.concatenate([log_prob for _, log_prob in drawn])


def _drawn_until(
    model: CrystalFormer, source: Source, first_index: int, count: int, ranks: Ranks, screen: Screen
) -> tuple[Tokens, Float64[np.ndarray, " B"], Int32[np.ndarray, " B"]]:
    """Crystals first_index, ... up to the one with which `count` of them pass, and what the screen says of each.

    Pieces are of one size, so that a step that is drawn again is drawn in the same waves.
    """
    piece = min(max(count // 2, ranks.world_size), LARGEST_PIECE)
    parts: list[tuple[Tokens, Float64[np.ndarray, " B"], Int32[np.ndarray, " B"]]] = []
    found = drawn = 0
    while found < count:
        if drawn >= MOST_DRAWS * count:
            raise InputError(
                f"of {drawn:,} crystals drawn {found:,} pass the reward's guards, and a step needs {count:,}",
                source="finetune.filter",
                remedy="look at the guards (reward.guards) and at the base model, or set finetune.filter=false",
            )
        tokens, log_prob = drawn_by_all(model, source, first_index + drawn, piece, ranks)
        own = share_of(ranks, piece)
        mine = to_crystals(tokens[own.start : own.stop], primitive=True)
        status = np.concatenate(ranks.gather(screen(mine)))
        parts.append((tokens, log_prob, status))
        found, drawn = found + int((status == Status.OK).sum()), drawn + piece
    tokens = Tokens.concatenate([part for part, _, _ in parts])
    log_prob = np.concatenate([part for _, part, _ in parts])
    status = np.concatenate([part for _, _, part in parts])
    end = int(np.flatnonzero(status == Status.OK)[count - 1]) + 1
    return tokens[:end], log_prob[:end], status[:end]


def _scattered(judged: Scores, rows: np.ndarray, status: Int32[np.ndarray, " B"], floor: float) -> Scores:
    """Scores of all crystals, those of `rows` judged, the others with their status and the floor."""
    values, full = np.full(len(status), floor), status.copy()
    values[rows], full[rows] = judged.values, judged.status
    components = {}
    for name, given in judged.components.items():
        components[name] = np.full(len(status), np.nan)
        components[name][rows] = given
    return Scores(values, full, components)


def share_of(ranks: Ranks, count: int, unit: int = 1) -> range:
    """This rank's part of `count` crystals, of which `unit` consecutive ones stay together.

    >>> [list(share_of(Ranks(rank, 2), 6, unit=2)) for rank in (0, 1)]
    [[0, 1, 2, 3], [4, 5]]
    """
    bounds = [len(part) for part in np.array_split(np.arange(count // unit), ranks.world_size)]
    return range(unit * sum(bounds[: ranks.rank]), unit * sum(bounds[: ranks.rank + 1]))


def score_together(reward: Reward, tokens: Tokens, ranks: Ranks, *, unit: int = 1) -> Scores:
    """`score`, each rank asking for its share at the same time; whatever goes wrong on one is raised on all."""
    own = share_of(ranks, len(tokens), unit)
    return Scores.concatenate(ranks.by_all(lambda: score(reward, tokens[own.start : own.stop])))


def score(reward: Reward, tokens: Tokens) -> Scores:
    """Score tokens as primitive cells (the cheapest equivalent); one row each, in order."""
    scores = reward.score(to_crystals(tokens, primitive=True))
    assert len(scores) == len(tokens), f"{reward.version} scored {len(scores)} of {len(tokens)} crystals"
    return scores
