"""The figures of one model's rows in the table of crystals, and of their differences, each with a 95 % interval.

Denominators are all samples; for protocols that judge relaxed crystals, all that were to be relaxed. Rates of
independent crystals (valid, stable, novel) have Wilson intervals; rates of *distinct* crystals (unique, S.U.N.) the
conservative interval of `statistics.distinct_interval`; means Student's t. Differences between models: Newcombe for
rates, Welch for means, both pair by pair where the models drew with common random numbers.

A label under which several models were judged (one method, trained with several seeds) is judged by the spread between
them: its figures are means over the models, with k - 1 degrees of freedom, since samples of one model say nothing
about how another training would have ended.

Shapes: B rows of an evaluation's table.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64

from crystalforge.evaluation.config import MOST_HELD_OUT
from crystalforge.evaluation.judging.parts import held_out_prefix
from crystalforge.evaluation.metrics import statistics
from crystalforge.evaluation.metrics.statistics import Estimate
from crystalforge.rewards.protocol import Status

ORDINALS = ("", "second ", "third ")


def _held_out_metrics(prefix: str = "") -> dict[str, tuple[str, str, int]]:
    """Two lines for each held-out judge: its mean E_hull and the share that it finds stable."""
    when = ", relaxed" if prefix else ""
    found = {}
    for number, ordinal in zip(range(MOST_HELD_OUT), ORDINALS, strict=True):
        name = f"{prefix}{held_out_prefix(number)}"
        found[f"mean_{name}e_above_hull"] = (f"Mean E_hull, {ordinal}held-out potential{when}", "eV/atom", -1)
        found[f"{name}stable_rate"] = (f"Stable, {ordinal}held-out potential{when}", "%", 1)
    return found


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
    "passed_rate": ("Valid at the first draw", "%", 1),
    "scored_rate": ("Scored by the reward", "%", 1),
    **_held_out_metrics(),
    "agreed_rate": ("Stable by all", "%", 1),
    "mean_relaxed_e_above_hull": ("Mean E_hull, relaxed", "eV/atom", -1),
    "relaxed_stable_rate": ("Stable when relaxed", "%", 1),
    **_held_out_metrics("relaxed_"),
    "converged_rate": ("Relaxation converged", "%", 0),
    "mean_relaxed_rms": ("Displacement by relaxing", "(V/N)^(1/3)", -1),
    "mean_relaxed_rmsd": ("Displacement by relaxing", "Å", -1),
    "kl_to_base": ("KL to base", "nats", 0),
}


def by_label(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each label, in order of appearance."""
    labels = dict.fromkeys(table.column("label").to_pylist())
    return {label: table.filter(pc.field("label") == label) for label in labels}


def experiments(table: pa.Table) -> list[pa.Table]:
    """The rows of each model and sampling seed among one label's, in order of appearance."""
    pairs = list(zip(table.column("model_hash").to_pylist(), table.column("seed").to_pylist(), strict=True))
    number = {pair: k for k, pair in enumerate(dict.fromkeys(pairs))}
    which = np.array([number[pair] for pair in pairs], dtype=np.int64)
    return [table.filter(pa.array(which == k)) for k in range(len(number))]


def is_repeated(table: pa.Table) -> bool:
    """Whether several models, not one sampled several times, are behind a label's rows."""
    return len(set(table.column("model_hash").to_pylist())) > 1


def is_paired(first: pa.Table, second: pa.Table) -> bool:
    """Whether row k of both was drawn with the same seed, number and space group."""
    return len(first) == len(second) and all(
        first.column(name).equals(second.column(name)) for name in ("seed", "index", "spacegroup")
    )


def estimate(table: pa.Table, *, suffix: str = "") -> dict[str, Estimate]:
    """The figures of one label: `measure`, or for several models the means over them with the spread between them."""
    found = _pooled(table, suffix)
    return {name: _within(value) if METRICS[name][1] == "%" else value for name, value in found.items()}


def _pooled(table: pa.Table, suffix: str) -> dict[str, Estimate]:
    """`estimate` with intervals as they come: cut ones would make those of differences too short."""
    if not is_repeated(table):
        return measure(table, suffix=suffix)
    found = [measure(part, suffix=suffix) for part in experiments(table)]
    return {name: statistics.across_seeds([each[name] for each in found]) for name in found[0]}


def _within(share: Estimate) -> Estimate:
    """The same share, its interval cut at 0 and 1."""
    low, high = (float(np.clip(end, 0.0, 1.0)) for end in (share.low, share.high))
    return Estimate(share.value, low, high, share.n)


def log_ratio_of(table: pa.Table) -> Float64[np.ndarray, " B"]:
    """ln p(x) - ln p_base(x) of each row, not finite where one of the two is not known; the mean over a model's own
    samples estimates KL(p || p_base)."""
    return (_numbers(table, "log_prob") - _numbers(table, "log_prob_base")).astype(np.float64)


def measure(table: pa.Table, *, suffix: str = "") -> dict[str, Estimate]:
    """Every headline figure of the rows given (one model; several seeds are pooled); see METRICS for the names."""
    scored = _numbers(table, "status") == Status.OK
    judged = table.filter(pc.field(f"counted{suffix}"))
    size = len(judged)
    found = {
        "mean_reward": statistics.mean(_numbers(table, "reward")),
        "unique_rate": statistics.distinct_interval(_groups(judged, f"group{suffix}"), size),
        "novel_rate": statistics.share(_mask(judged, f"novel{suffix}")),
        "valid_rate": statistics.share(_mask(table, "valid")),
        "structure_valid_rate": statistics.share(_mask(table, "structure_valid")),
        "composition_valid_rate": statistics.share(_mask(table, "composition_valid")),
        "scored_rate": statistics.share(scored),
    }
    if "draws" in table.column_names:  # the others of each crystal were refused
        draws = _finite(_numbers(table, "draws"))
        found["passed_rate"] = statistics.share(draws == 1)
    for kind, sun in (("stable", "sun"), ("metastable", "msun")):
        if f"{kind}{suffix}" in table.column_names:
            found[f"{kind}_rate"] = statistics.share(_mask(judged, f"{kind}{suffix}"))
            found[f"{sun}_rate"] = statistics.distinct_interval(_sun_groups(judged, kind, sun, suffix), size)
    for metric, (column, population) in SHARES.items():
        if column in table.column_names:
            rows = table.filter(pc.field(population)) if population else table
            found[metric] = statistics.share(_mask(rows, column))
    for metric, column in MEANS.items():
        if column in table.column_names:
            found[metric] = statistics.mean(_finite(_numbers(table, column)))
    found["kl_to_base"] = statistics.mean(_finite(log_ratio_of(table)))
    return {name: found[name] for name in METRICS if name in found}


_PREFIXES = [held_out_prefix(number) for number in range(MOST_HELD_OUT)]
# Share of True in a column among the rows where another one is true (empty: all).
SHARES = {
    **{f"{prefix}stable_rate": (f"{prefix}stable", "") for prefix in _PREFIXES},
    "agreed_rate": ("agreed", ""),
    **{
        f"{prefix}stable_rate": (f"{prefix}stable", "relaxed_asked")
        for prefix in ["relaxed_", *(f"relaxed_{prefix}" for prefix in _PREFIXES)]
    },
    "converged_rate": ("relaxed_converged", "relaxed_asked"),
}
MEANS = {
    "mean_e_above_hull": "e_above_hull",
    "mean_relaxed_e_above_hull": "relaxed_e_above_hull",
    "mean_relaxed_rms": "relaxed_rms",
    "mean_relaxed_rmsd": "relaxed_rmsd",
    **{f"mean_{prefix}e_above_hull": f"{prefix}e_above_hull" for prefix in _PREFIXES},
    **{f"mean_relaxed_{prefix}e_above_hull": f"relaxed_{prefix}e_above_hull" for prefix in _PREFIXES},
}


def compare(first: pa.Table, second: pa.Table, *, suffix: str = "") -> dict[str, Estimate]:
    """second - first of every headline figure that both have, with the interval of the difference.

    Models that drew with common random numbers are compared pair by pair, others as independent samples; so are shares
    of distinct crystals, which makes their intervals too long rather than too short. Where one of the two comes from
    several models, the intervals of both figures are combined (`statistics.difference`).
    """
    a, b = _pooled(first, suffix), _pooled(second, suffix)
    repeated = is_repeated(first) or is_repeated(second)
    pairs = not repeated and is_paired(first, second)
    means = {"mean_reward": "reward"} | MEANS
    shares = _shares(first, second, suffix) if pairs else {}
    found = {}
    for name in a:
        if name not in b:
            continue
        if name in shares:
            found[name] = statistics.paired_shares(_mask(first, shares[name]), _mask(second, shares[name]))
        elif (name in means or name == "kl_to_base") and not repeated:
            u, v = (log_ratio_of(t) if name == "kl_to_base" else _numbers(t, means[name]) for t in (first, second))
            if pairs:
                found[name] = statistics.paired(b[name].value - a[name].value, _influence(u), _influence(v))
            else:
                found[name] = statistics.welch(_finite(u), _finite(v))
        else:
            found[name] = statistics.difference(a[name], b[name])
    return found


def _shares(first: pa.Table, second: pa.Table, suffix: str) -> dict[str, str]:
    """Columns of True and False by the figure that is their share of all rows, in both tables."""
    found = {f"{name}_rate": name for name in ("valid", "structure_valid", "composition_valid")}
    found |= {metric: column for metric, (column, population) in SHARES.items() if not population}
    if all(_mask(table, f"counted{suffix}").all() for table in (first, second)):
        found |= {f"{name}_rate": f"{name}{suffix}" for name in ("novel", "stable", "metastable")}
    return found


def _influence(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return statistics.influence(values, np.isfinite(values))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


def _mask(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy().astype(bool)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _groups(table: pa.Table, name: str) -> list[int]:
    groups = _numbers(table, name)
    return groups[groups >= 0].tolist()


def _sun_groups(table: pa.Table, kind: str, sun: str, suffix: str) -> list[int]:
    """The group of every stable sample whose group's first member is S.U.N."""
    groups, chosen = _numbers(table, f"{kind}_group{suffix}"), _mask(table, f"{sun}{suffix}")
    heads = set(groups[chosen].tolist())
    return [group for group in groups.tolist() if group in heads]
