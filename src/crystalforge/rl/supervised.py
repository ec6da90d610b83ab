"""What supervised fine-tuning learns from: good crystals among the policy's own, relaxed first if so asked.

The control of arXiv 2504.02367 generates crystals, relaxes them, keeps those with E_hull below 0.1 eV/atom and
trains on them. Declared deviations:
- Generation goes on while the policy learns, step by step like every other algorithm's, rather than once before.
- Crystals may be left unrelaxed, which costs nothing (`finetune.relax` absent), and those too far above the hull for
  a relaxation to save them need not be relaxed (`finetune.relax_below`).
- A relaxed crystal is kept by what the reward says of its tokens, the very thing that is learned from.

Shapes: B crystals of a step, C candidates for relaxation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.crystal.convert import to_crystals, tokenize_many
from crystalforge.crystal.tokens import Tokens
from crystalforge.rewards.protocol import Reward, Scores
from crystalforge.rl import journal
from crystalforge.rl.config import FinetuneConfig
from crystalforge.rl.journal import Scored
from crystalforge.rl.rollout import score

log = logging.getLogger(__name__)

STEPS = "relax_steps"  # component of the journalled scores: how long each crystal's relaxation took


@runtime_checkable
class Relaxer(Protocol):
    """Moves atoms and cells to where a potential wants them."""

    def __call__(self, crystals: Sequence[Crystal]) -> tuple[list[Crystal | None], Int32[np.ndarray, " C"]]:
        """Each crystal relaxed, None where that failed, and the steps that it took."""
        ...


@dataclass(frozen=True, eq=False)
class Learnable:
    """The pool after a step. scored: crystals that the reward judged for it. metrics: what happened, by name."""

    tokens: Tokens
    scored: int
    metrics: dict[str, float]


class Pool:
    """The latest kept crystals of all steps, newest first.

    What was relaxed is journalled in `out/relaxed` as what was drawn is in `out/samples`: a run that was killed
    relaxes nothing twice, and the pool of a new session is read back from there.
    """

    def __init__(self, config: FinetuneConfig, out: Path, reward: Reward, relaxer: Relaxer | None) -> None:
        if config.relax is not None and relaxer is None:
            raise InputError(
                "relaxing samples needs a potential, and none was given",
                source="finetune.relax",
                remedy="use a reward with a potential (kind: ehull), or drop finetune.relax",
            )
        self._config, self._out, self._reward = config, out, reward
        self._relaxer = relaxer if config.relax is not None else None
        self._kept: Tokens | None = None

    def add(self, step: int, scored: Scored) -> Learnable:
        """The pool with the good crystals of `step`."""
        if self._kept is None:
            folder = self._out / ("samples" if self._relaxer is None else "relaxed")
            earlier = [s.tokens[kept(self._config, s.scores)] for _, s in journal.steps(folder, before=step)]
            self._kept = Tokens.concatenate(earlier[::-1]) if earlier else Tokens.empty()
        judged, metrics = scored, {}
        if self._relaxer is not None:
            judged, metrics = self._relaxed(step, scored, self._relaxer)
        new = judged.tokens[kept(self._config, judged.scores)]
        self._kept = Tokens.concatenate([new, self._kept])[: self._config.pool_size]
        metrics |= {"pool/new": float(len(new)), "pool/size": float(len(self._kept))}
        return Learnable(self._kept, 0 if self._relaxer is None else len(judged), metrics)

    def _relaxed(self, step: int, scored: Scored, relaxer: Relaxer) -> tuple[Scored, dict[str, float]]:
        """The candidates of a step, relaxed, tokenised and judged again; those that have no tokens are left out."""
        path = journal.step_file(self._out / "relaxed", step)
        rows = np.flatnonzero(self._candidates(scored.scores))
        began = time.perf_counter()
        known = _read_back(path, scored.index[rows])
        if known is None:
            crystals = to_crystals(scored.tokens[rows], primitive=True)
            assert all(crystal is not None for crystal in crystals), "the reward judged a crystal that cannot be built"
            relaxed, steps = relaxer([crystal for crystal in crystals if crystal is not None])
            slots = scored.tokens.wyckoff.shape[1]
            found = tokenize_many(relaxed, max_sites=slots - 1)
            scores = score(self._reward, found.tokens)
            parts = scores.components | {STEPS: steps[found.index].astype(np.float64)}
            unknown = np.full(len(found.index), np.nan)
            judged = Scores(scores.values, scores.status, parts)
            known = Scored(scored.index[rows[found.index]], found.tokens, judged, unknown)
            journal.write(path, step, known)
        metrics = {
            "relax/candidates": float(len(rows)),
            "relax/tokenised": float(len(known)),
            "relax/steps": float(known.scores.components[STEPS].sum()),
            "seconds/relax": time.perf_counter() - began,
        }
        return known, metrics

    def _candidates(self, scores: Scores) -> Bool[np.ndarray, " B"]:
        limit = self._config.relax_below
        if limit is None:
            return scores.ok
        with np.errstate(invalid="ignore"):
            return scores.ok & (component(self._config, scores) < limit)


def _read_back(path: Path, candidates: np.ndarray) -> Scored | None:
    """What an earlier session relaxed, if it is there, whole, and of these candidates."""
    if not path.exists():
        return None
    try:
        known = journal.read(path)
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): its crystals are relaxed again", path, error)
        return None
    return known if np.isin(known.index, candidates).all() else None


def component(config: FinetuneConfig, scores: Scores) -> np.ndarray:
    """The component of the reward that decides what is kept; InputError when the reward has none of that name."""
    if config.keep_component not in scores.components:
        raise InputError(
            f"the reward has no component {config.keep_component!r}; it has {sorted(scores.components)}",
            source="finetune.keep_component",
            remedy="name one of its components",
        )
    return scores.components[config.keep_component]


def kept(config: FinetuneConfig, scores: Scores) -> Bool[np.ndarray, " B"]:
    """Which crystals are good enough to be learned from."""
    with np.errstate(invalid="ignore"):  # NaN marks a crystal that has no such component: not kept
        return scores.ok & (component(config, scores) < config.keep_below)
