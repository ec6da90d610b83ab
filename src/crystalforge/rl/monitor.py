"""Is the policy still honest? Looks at it through eyes that the training does not use.

Every few steps the crystals just drawn - from the present policy, before anything was learned from them - are
scored by a held-out reward too. A policy that exploits a weakness of its reward raises the one and not the other.
Uniqueness, floors, KL and entropies are watched beside it, with their standard errors, and so is the drift of
elements and space groups from the first look, which is the base model's. So is the objective itself, E[r] - tau KL: a
policy that it calls worse than the base was better left alone.

Shapes: B crystals of one look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from crystalforge.crystal.tokens import ATOM_TYPES, Tokens
from crystalforge.model.likelihood import LogProb
from crystalforge.rewards import tilted
from crystalforge.rewards.protocol import Scores
from crystalforge.rl.config import MonitorConfig
from crystalforge.rl.journal import Scored, unique_share

# Fewer crystals judged by both rewards give no gap worth acting on.
FEWEST_JUDGED_BY_BOTH = 8

PREFIX = "monitor/"
PASSED = PREFIX + "passed"
OBJECTIVE = PREFIX + "objective"
WORSE = "the objective"  # how the reason begins for which the policy of the best one is kept

IsKnown = Callable[[Tokens], Bool[np.ndarray, " B"]]


@dataclass
class FirstLook:
    """The base model as first seen; everything later is compared with it. JSON-able."""

    entropy: dict[str, list[float]]  # of each factor: nats per crystal, and the variance of that mean
    unique: float
    elements: list[float]
    spacegroups: list[float]
    objective: list[float]  # E[r], and the variance of that mean
    gap: dict[str, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """metrics: what was seen, by name. reasons: each limit passed, in words; none means that all is well. best: no look
    has seen a greater objective.
    """

    metrics: dict[str, float]
    reasons: list[str] = field(default_factory=list)
    best: bool = False


class Monitor:
    """Compares looks at the policy with the first one."""

    def __init__(self, config: MonitorConfig, tau: float, memory: dict[str, Any]) -> None:
        self.config, self.tau = config, tau
        self._first = FirstLook(**memory["first"]) if memory else None
        self._worse: int = memory.get("worse", 0)  # looks in a row that saw an objective below the base's
        self._best: float | None = memory.get("best")

    def memory(self) -> dict[str, Any]:
        """What to give to the next session's monitor."""
        return {"first": asdict(self._first), "worse": self._worse, "best": self._best} if self._first else {}

    def due(self, step: int) -> bool:
        """Whether to look before learning from the crystals of `step`."""
        return step % self.config.every == 0

    def look(
        self, scored: Scored, held_out: Scores | None, log_prob: LogProb, log_ratio: Float64[np.ndarray, " B"]
    ) -> Verdict:
        """Judge the policy that drew `scored`; `log_ratio` is ln(p/p_base)."""
        config = self.config
        entropy = {name: list(_mean_and_variance(-_numpy(v))) for name, v in log_prob.factors().items()}
        elements, groups = _elements(scored.tokens), _spacegroups(scored)
        if self._first is None:
            start = list(_mean_and_variance(scored.scores.values))
            self._first = FirstLook(entropy, unique_share(scored.tokens), elements.tolist(), groups.tolist(), start)
        metrics = {
            "drift/elements": _total_variation(elements, np.asarray(self._first.elements)),
            "drift/spacegroups": _total_variation(groups, np.asarray(self._first.spacegroups)),
        }
        reasons: list[str] = []

        def watch(what: str, value: float, variance: float, limit: float | None, *, above: bool = True) -> None:
            """Add a reason when `value` lies beyond its limit by more than chance."""
            margin = config.standard_errors * float(np.sqrt(max(variance, 0.0)))
            if limit is not None and (value - margin > limit if above else value + margin < limit):
                side = "above" if above else "below"
                reasons.append(f"{what} is {value:.3g} (+-{margin:.2g}), {side} its limit {limit:g}")

        n = len(scored)
        unique = unique_share(scored.tokens)
        fewest = None if config.min_unique is None else config.min_unique * self._first.unique
        watch("share of unique crystals", unique, unique * (1 - unique) / n, fewest, above=False)
        watch("KL from the base", *_mean_and_variance(log_ratio), config.max_kl)
        floors = float(1 - scored.scores.ok.mean())
        watch("share of floored crystals", floors, floors * (1 - floors) / n, config.max_floors)
        for name in ("wyckoff", "element"):
            (now, error), (then, error_then) = entropy[name], self._first.entropy[name]
            watch(f"fall of the {name} entropy", then - now, error + error_then, config.max_entropy_loss)
        best = self._objective(scored.scores, log_ratio, metrics, reasons)
        if held_out is not None:
            gap, more = self._gap(scored.scores, held_out)
            metrics |= more
            if gap is not None:
                watch("rise of the reward beyond the held-out score's", *gap, config.max_gap)
        metrics["passed"] = float(not reasons)
        return Verdict({PREFIX + name: value for name, value in metrics.items()}, reasons, best)

    def _objective(
        self, scores: Scores, log_ratio: Float64[np.ndarray, " B"], metrics: dict[str, float], reasons: list[str]
    ) -> bool:
        """Compare L with the base's; gives whether it is the greatest so far."""
        assert self._first is not None
        config = self.config
        found = tilted.objective(scores.values, log_ratio, self.tau)
        if found.n < tilted.FEWEST:
            return False
        start, variance = self._first.objective
        margin = config.standard_errors * float(np.hypot(found.error, np.sqrt(variance)))
        self._worse = self._worse + 1 if found.value + margin < start else 0
        metrics |= {"objective": found.value, "objective_error": found.error, "worse": float(self._worse)}
        if config.max_worse is not None and self._worse >= config.max_worse:
            looks = "look" if self._worse == 1 else f"{self._worse} looks in a row"
            reasons.append(
                f"{WORSE} E[r] - tau KL is {found.value:.3g} (+-{margin:.2g}), below the base's {start:.3g} for {looks}"
            )
        best = self._best is None or found.value > self._best
        if best:
            self._best = found.value
        return best

    def _gap(self, scores: Scores, held_out: Scores) -> tuple[tuple[float, float] | None, dict[str, float]]:
        """((gap, variance of it), metrics): each reward's rise since the first look in its own first spread."""
        both = scores.ok & held_out.ok
        metrics = {
            "held_out/judged": float(both.mean()),
            "held_out/floors": float(1 - held_out.ok.mean()),
        }
        if both.sum() < FEWEST_JUDGED_BY_BOTH:
            return None, metrics
        r, h = scores.values[both], held_out.values[both]
        metrics |= {"held_out/mean": float(h.mean()), "held_out/reward_on_same": float(r.mean())}
        if r.std() > 0 and h.std() > 0:
            metrics["held_out/correlation"] = float(np.corrcoef(r, h)[0, 1])
        assert self._first is not None
        if self._first.gap is None:
            if r.std() == 0 or h.std() == 0:  # no unit to measure a rise in: the next look will do as the first
                return None, metrics
            first = {"r": float(r.mean()), "h": float(h.mean()), "rs": float(r.std()), "hs": float(h.std())}
            difference = (r - first["r"]) / first["rs"] - (h - first["h"]) / first["hs"]
            self._first.gap = first | {"variance": _mean_and_variance(difference)[1]}
        first = self._first.gap
        gap, variance = _mean_and_variance((r - first["r"]) / first["rs"] - (h - first["h"]) / first["hs"])
        return (gap, variance + first["variance"]), metrics | {"held_out/gap": gap}


def conclusion(rows: Sequence[Mapping[str, Any]], stopped: str | None, *, held_out: str | None) -> dict[str, Any]:
    """What all looks came to, JSON-able, from the metrics of every step; for records and reports.

    verdict: one sentence. looks: how many there were; last_good_step: of the last that passed, or None; best_step: of
    the greatest objective, or None. first, last: the `monitor/...` metrics of those two looks without the prefix.
    held_out: which version judged, or None.
    """
    looks = [row for row in rows if PASSED in row]
    good = [int(row["step"]) for row in looks if row[PASSED]]
    ranked = sorted((row for row in looks if OBJECTIVE in row), key=lambda row: -row[OBJECTIVE])
    tripped = stopped if stopped is not None and stopped.startswith("monitor") else None
    if not looks:
        verdict = "no look was due"
    elif tripped is None:
        verdict = f"all {len(looks)} looks passed"
    elif keeps_best(tripped) and ranked:
        verdict = f"{tripped}; the policy of the best objective, that of step {ranked[0]['step']}, is kept"
    elif good:
        verdict = f"{tripped}; the policy of step {good[-1]} is kept"
    else:
        verdict = f"{tripped}; no look passed, the base is kept"
    if looks and held_out is None:
        verdict += " (without a held-out judge)"

    def seen(row: Mapping[str, Any]) -> dict[str, Any]:
        named = {name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX)}
        return {"step": row["step"], **named}

    return {
        "verdict": verdict,
        "passed": tripped is None,
        "looks": len(looks),
        "last_good_step": good[-1] if good else None,
        "best_step": int(ranked[0]["step"]) if ranked else None,
        "held_out": held_out,
        "first": seen(looks[0]) if looks else {},
        "last": seen(looks[-1]) if looks else {},
    }


def keeps_best(stopped: str) -> bool:
    """Whether a run that ended for this reason hands over the policy of the best objective, not the last good one."""
    return stopped.startswith("monitor") and WORSE in stopped


def _numpy(values: Any) -> Float64[np.ndarray, " B"]:
    return values.detach().cpu().double().numpy()


def _mean_and_variance(values: Float64[np.ndarray, " B"]) -> tuple[float, float]:
    """Mean, and variance of that mean; what is not finite is left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 0.0
    return float(values.mean()), float(values.var() / len(values))


def _elements(tokens: Tokens) -> Float64[np.ndarray, " Z"]:
    """Share of each element among all sites."""
    counts = np.bincount(tokens.element[tokens.is_site], minlength=ATOM_TYPES).astype(np.float64)
    return counts / max(counts.sum(), 1.0)


def _spacegroups(scored: Scored) -> Float64[np.ndarray, " 231"]:
    """Share of each space group among the crystals that the reward could judge."""
    counts = np.bincount(scored.tokens.spacegroup[scored.scores.ok], minlength=231).astype(np.float64)
    return counts / max(counts.sum(), 1.0)


def _total_variation(p: Float64[np.ndarray, " Z"], q: Float64[np.ndarray, " Z"]) -> float:
    """Half the absolute difference of two distributions: 0 equal, 1 disjoint."""
    return float(np.abs(p - q).sum() / 2)
