"""From the table of crystals to the figures that are quoted, each with a 95 % interval.

Denominators are all samples. Rates of independent crystals (valid, stable, novel) have Wilson intervals; rates of
*distinct* crystals (unique, S.U.N.) the conservative interval of `statistics.distinct_interval`; means Student's t.
Differences between models: Newcombe for rates, Welch for means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crystalforge.evaluation import statistics
from crystalforge.evaluation.statistics import Estimate
from crystalforge.rewards.protocol import Status

# Headline figures in the order of tables: caption, unit (% for rates), better direction (1 up, -1 down, 0 neither).
METRICS: dict[str, tuple[str, str, int]] = {
    "mean_reward": ("Mean reward", "", 1),
    "mean_e_above_hull": ("Mean E_hull", "eV/atom", -1),
    "stable_rate": ("Stable", "%", 1),
    "metastable_rate": ("Metastable", "%", 1),
    "unique_rate": ("Unique", "%", 1),
    "novel_rate": ("Novel", "%", 1),
    "sun_rate": ("S.U.N.", "%", 1),
    "msun_rate": ("M.S.U.N.", "%", 1),
    "valid_rate": ("Valid", "%", 1),
    "structure_valid_rate": ("Valid structure", "%", 1),
    "composition_valid_rate": ("Valid composition", "%", 1),
    "scored_rate": ("Scored by the reward", "%", 1),
    "mean_held_out_e_above_hull": ("Mean E_hull, held-out potential", "eV/atom", -1),
    "mean_relaxed_e_above_hull": ("Mean E_hull, relaxed", "eV/atom", -1),
    "mean_relaxed_rms": ("Displacement by relaxing", "(V/N)^(1/3)", -1),
    "kl_to_base": ("KL to base", "nats", 0),
}


def summarise(table: pa.Table, *, protocol: str | None = None) -> dict[str, Any]:
    """Figures of every model in the table, and of every model minus the first one.

    protocol: one of those the table was judged by; by default its headline. Returns
    `{"protocol": rules, "models": {label: {"n", "seeds", "metrics": {name: {value, low, high, n}}, "status": {...},
    "per_seed": {seed: {name: value}}}}, "baseline": first label, "comparison": {label: {name: {value, low, high,
    n}}}}`; a figure that was not measured has value None. Everything is JSON.
    """
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    rules = json.loads(metadata["protocols"])
    headline = metadata["headline"]
    name = headline if protocol is None else protocol
    suffix = "" if name == headline else f":{name}"
    labels = list(dict.fromkeys(table.column("label").to_pylist()))
    parts = {label: table.filter(pc.field("label") == label) for label in labels}
    estimates = {label: measure(part, suffix=suffix) for label, part in parts.items()}
    models = {label: _model(part, estimates[label], suffix) for label, part in parts.items()}
    return {
        "protocol": rules[name],
        "models": models,
        "baseline": labels[0],
        "comparison": {
            label: {
                metric: found.as_dict()
                for metric, found in compare(parts[labels[0]], parts[label], suffix=suffix).items()
            }
            for label in labels[1:]
        },
    }


def measure(table: pa.Table, *, suffix: str = "") -> dict[str, Estimate]:
    """Every headline figure of the rows given (one model; several seeds are pooled); see METRICS for the names."""
    size = len(table)
    scored = _numbers(table, "status") == Status.OK
    found = {
        "mean_reward": statistics.mean(_numbers(table, "reward")),
        "unique_rate": statistics.distinct_interval(_groups(table, f"group{suffix}"), size),
        "novel_rate": statistics.share(_mask(table, f"novel{suffix}")),
        "valid_rate": statistics.share(_mask(table, "valid")),
        "structure_valid_rate": statistics.share(_mask(table, "structure_valid")),
        "composition_valid_rate": statistics.share(_mask(table, "composition_valid")),
        "scored_rate": statistics.share(scored),
    }
    for kind, sun in (("stable", "sun"), ("metastable", "msun")):
        if f"{kind}{suffix}" in table.column_names:
            found[f"{kind}_rate"] = statistics.share(_mask(table, f"{kind}{suffix}"))
            found[f"{sun}_rate"] = statistics.distinct_interval(_sun_groups(table, kind, sun, suffix), size)
    for metric, column in MEANS.items():
        if column in table.column_names:
            found[metric] = statistics.mean(_finite(_numbers(table, column)))
    found["kl_to_base"] = statistics.mean(_log_ratio(table))
    return {name: found[name] for name in METRICS if name in found}


MEANS = {
    "mean_e_above_hull": "e_above_hull",
    "mean_held_out_e_above_hull": "held_out_e_above_hull",
    "mean_relaxed_e_above_hull": "relaxed_e_above_hull",
    "mean_relaxed_rms": "relaxed_rms",
}


def compare(first: pa.Table, second: pa.Table, *, suffix: str = "") -> dict[str, Estimate]:
    """second - first of every headline figure that both have, with the interval of the difference.

    The two sets of samples are independent (different models), so nothing is paired.
    """
    a, b = measure(first, suffix=suffix), measure(second, suffix=suffix)
    values: dict[str, Callable[[pa.Table], np.ndarray]] = {
        "mean_reward": lambda table: _numbers(table, "reward"),
        "kl_to_base": _log_ratio,
    }
    for metric, column in MEANS.items():
        values[metric] = lambda table, column=column: _finite(_numbers(table, column))
    found = {}
    for name in a:
        if name not in b:
            continue
        if name in values:
            found[name] = statistics.welch(values[name](first), values[name](second))
        else:
            found[name] = statistics.difference(a[name], b[name])
    return found


def across_seeds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several experiments (different training seeds) as one: means of their figures, intervals from their spread.

    Takes what `summarise` returned for each; all must have the same protocol and models. With k experiments the
    Student-t interval has k - 1 degrees of freedom.
    """
    assert summaries, "nothing to aggregate"
    first = summaries[0]
    assert all(other["protocol"] == first["protocol"] for other in summaries), "different protocols"

    def merged(tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
        return {
            name: statistics.across_seeds(
                [Estimate(np.nan if t[name]["value"] is None else t[name]["value"], np.nan, np.nan, 1) for t in tables]
            ).as_dict()
            for name in tables[0]
            if all(name in table for table in tables)
        }

    return {
        "protocol": first["protocol"],
        "experiments": len(summaries),
        "models": {
            label: {"metrics": merged([s["models"][label]["metrics"] for s in summaries])} for label in first["models"]
        },
        "comparison": {label: merged([s["comparison"][label] for s in summaries]) for label in first["comparison"]},
    }


def status_counts(table: pa.Table) -> dict[str, int]:
    """How many rows ended in each status of the reward, by name."""
    codes, numbers = np.unique(_numbers(table, "status").astype(np.int64), return_counts=True)
    return {Status(int(code)).name.lower(): int(n) for code, n in zip(codes, numbers, strict=True)}


def per_spacegroup(table: pa.Table, *, suffix: str = "") -> dict[int, dict[str, Any]]:
    """The figures of one model for each space group that it wrote, most frequent first."""
    groups, numbers = np.unique(_numbers(table, "spacegroup").astype(np.int64), return_counts=True)
    order = np.argsort(-numbers, kind="stable")
    return {
        int(groups[k]): {
            name: estimate.as_dict()
            for name, estimate in measure(table.filter(pc.field("spacegroup") == int(groups[k])), suffix=suffix).items()
        }
        for k in order
    }


def _model(table: pa.Table, estimates: Mapping[str, Estimate], suffix: str) -> dict[str, Any]:
    seeds = sorted(set(table.column("seed").to_pylist()))
    return {
        "n": len(table),
        "seeds": seeds,
        "metrics": {name: estimate.as_dict() for name, estimate in estimates.items()},
        "status": status_counts(table),
        "per_seed": {
            str(seed): {
                name: estimate.as_dict()["value"]
                for name, estimate in measure(table.filter(pc.field("seed") == seed), suffix=suffix).items()
            }
            for seed in seeds
        },
    }


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


def _mask(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy().astype(bool)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _log_ratio(table: pa.Table) -> np.ndarray:
    """log p(x) - log p_base(x) of the model's own samples where both are known; its mean estimates KL(p || p_base)."""
    return _finite(_numbers(table, "log_prob") - _numbers(table, "log_prob_base"))


def _groups(table: pa.Table, name: str) -> list[int]:
    groups = _numbers(table, name)
    return groups[groups >= 0].tolist()


def _sun_groups(table: pa.Table, kind: str, sun: str, suffix: str) -> list[int]:
    """The group of every stable sample whose group's first member is S.U.N."""
    groups, chosen = _numbers(table, f"{kind}_group{suffix}"), _mask(table, f"{sun}{suffix}")
    heads = set(groups[chosen].tolist())
    return [group for group in groups.tolist() if group in heads]
