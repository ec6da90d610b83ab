"""The objective of reinforcement in an evaluation: L of each model, what is attainable, and what a filter gives anyway.

L = E[r] - tau KL(p || p_base) and its maximum are `crystalforge.rewards.tilted`'s. Beside each model stands the same
model behind a filter that costs nothing: only crystals that pass the reward's guards, drawn again until one does.
Without that control the filter's merit is taken for the learner's. Models that drew with common random numbers are
compared draw by draw (`tilted.influence`).

Shapes: B rows of an evaluation's table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64

from crystalforge.evaluation.metrics import statistics
from crystalforge.evaluation.metrics.measures import (
    by_label,
    experiments,
    is_paired,
    is_repeated,
    log_ratio_of,
    measure,
)
from crystalforge.evaluation.metrics.statistics import Estimate, Z
from crystalforge.rewards import tilted
from crystalforge.rewards.protocol import REFUSED
from crystalforge.rewards.tilted import Measured

TAU = b"tau"  # in a table's metadata: the price of a nat, where the table says one

# Captions and units of what is found here, as in `measures.METRICS`.
CAPTIONS: dict[str, tuple[str, str]] = {
    "passed_share": ("Passes the guards", "%"),
    "objective": ("Objective L", ""),
    "attained": ("Attained of L* − L(base)", "%"),
}


def rewards_of(table: pa.Table) -> Float64[np.ndarray, " B"]:
    """The reward of each row."""
    return table.column("reward").to_numpy().astype(np.float64)


def passed_of(table: pa.Table) -> Bool[np.ndarray, " B"]:
    """True where the reward's guards refuse nothing."""
    return ~np.isin(table.column("status").to_numpy(), list(REFUSED))


def objectives(table: pa.Table) -> dict[str, Any] | None:
    """Of every model: L and the attained share, and all figures of what passes the guards; None without tau.

    `{"tau", "optimum": {value, low, high, n, effective, kl, reward}, "models": {label: {"objective", "attained"}},
    "filtered": {label: {"passed_share", "objective", "attained", "kl_to_base", and `measure`'s figures}}, "comparison":
    {label: {"objective"}}, "filtered_comparison": {label: {...}}}`, each figure {value, low, high, n}; the comparisons
    are with the first model as drawn, and with the first model filtered. JSON-able.
    """
    metadata = table.schema.metadata or {}
    if TAU not in metadata:
        return None
    tau = float(metadata[TAU])
    parts = by_label(table)
    first = next(iter(parts))
    start = rewards_of(parts[first])
    best = tilted.optimum(start, tau)
    plain = {label: _over(part, lambda rows: _figures(rows, start, tau)) for label, part in parts.items()}
    cut = {label: _over(part, lambda rows: _filtered(rows, start, tau)) for label, part in parts.items()}
    return {
        "tau": tau,
        "optimum": _estimate(Measured(best.value, best.error, best.n)).as_dict()
        | {"effective": best.effective, "kl": best.kl, "reward": best.reward},
        "models": {label: _plain(found) for label, found in plain.items()},
        "filtered": {label: _plain(found) for label, found in cut.items()},
        "comparison": {
            label: _plain(_less(plain[first], found) | _paired(parts[first], parts[label], tau, filtered=False))
            for label, found in plain.items()
            if label != first
        },
        "filtered_comparison": {
            label: _plain(_less(cut[first], found) | _paired(parts[first], parts[label], tau, filtered=True))
            for label, found in cut.items()
            if label != first
        },
    }


def _over(table: pa.Table, figures: Any) -> dict[str, Estimate]:
    """Figures of one model, or of several models behind one label with the spread between them."""
    if not is_repeated(table):
        return figures(table)
    found = [figures(part) for part in experiments(table)]
    return {name: statistics.across_seeds([each[name] for each in found]) for name in found[0]}


def _figures(table: pa.Table, base_reward: np.ndarray, tau: float) -> dict[str, Estimate]:
    found = tilted.objective(rewards_of(table), log_ratio_of(table), tau)
    return {"objective": _estimate(found), "attained": _estimate(tilted.attained(found, base_reward, tau))}


def _filtered(table: pa.Table, base_reward: np.ndarray, tau: float) -> dict[str, Estimate]:
    passed, ratio = passed_of(table), log_ratio_of(table)
    found = tilted.objective(rewards_of(table), ratio, tau, passed)
    return {
        **measure(table.filter(pa.array(passed))),
        "passed_share": statistics.share(passed),
        "objective": _estimate(found),
        "attained": _estimate(tilted.attained(found, base_reward, tau)),
        "kl_to_base": _estimate(tilted.divergence(ratio, passed)),
    }


def _less(first: Mapping[str, Estimate], second: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name: statistics.difference(first[name], second[name]) for name in first if name in second}


def _paired(first: pa.Table, second: pa.Table, tau: float, *, filtered: bool) -> dict[str, Estimate]:
    """Differences of L, and with the filter of reward and KL too, of models that drew with common random numbers.

    The intervals are those of pairs of draws; nothing where there are no pairs.
    """
    if is_repeated(first) or is_repeated(second) or not is_paired(first, second):
        return {}
    parts = [(rewards_of(t), log_ratio_of(t), passed_of(t) if filtered else None) for t in (first, second)]
    found = {"objective": _difference(parts, tau)}
    if filtered:
        # KL is L of nothing but a nat's price of -1; the mean reward that of nats which cost nothing.
        found["kl_to_base"] = _difference([(np.zeros(len(reward)), *rest) for reward, *rest in parts], -1.0)
        found["mean_reward"] = _difference(
            [(reward, np.zeros(len(reward)), passed) for reward, _, passed in parts], 0.0
        )
    return found


def _difference(parts: Sequence[Any], tau: float) -> Estimate:
    """L of the second less L of the first, each (reward, log-ratio, what passed or None), pair by pair."""
    a, b = (tilted.objective(reward, ratio, tau, passed).value for reward, ratio, passed in parts)
    u, v = (tilted.influence(reward, ratio, tau, passed) for reward, ratio, passed in parts)
    return statistics.paired(b - a, u, v)


def _plain(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.as_dict() for name, estimate in found.items()}


def _estimate(found: Measured) -> Estimate:
    return Estimate(found.value, found.value - Z * found.error, found.value + Z * found.error, found.n)
