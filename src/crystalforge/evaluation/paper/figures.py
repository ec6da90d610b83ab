"""Figures 2 to 6 with matplotlib; see the package for what each shows. Plain data in, a matplotlib figure out.

Colours are the report's. A figure that the table has no data for is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64

from crystalforge.common.errors import missing_extra
from crystalforge.evaluation.metrics.measures import estimate, experiments
from crystalforge.evaluation.metrics.pareto import CONSTANT, GAP, pareto_front
from crystalforge.evaluation.metrics.spacegroups import by_spacegroup
from crystalforge.evaluation.metrics.statistics import Estimate, student_quantile
from crystalforge.evaluation.paper.runs import Runs
from crystalforge.evaluation.report.figures import COLORS, GRID, INK, series, spacegroup_symbol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.9  # inches: a printed page between its margins
E_RANGE = (-0.3, 1.2)  # eV/atom shown; what lies outside is counted in the outermost bins
E_BIN = 0.05  # eV/atom
CURVE_POINTS = 200  # of an accumulation curve: enough for its shape
JUDGES = (
    ("", "reward"),
    ("held_out_", "held-out potential"),
    ("relaxed_", "reward, relaxed"),
    ("relaxed_held_out_", "held-out potential, relaxed"),
)


def energies(runs: Runs) -> Figure | None:
    """Figure 2: distribution of E_hull of every model, one panel for each judge, relaxed crystals in panels of their
    own; shares are of all samples (of all that were to be relaxed)."""
    limit = runs.rules.get("stable_at")
    panels = [(prefix, title) for prefix, title in JUDGES if f"{prefix}e_above_hull" in runs.table.column_names]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    figure, axes = page_axes(rows, min(len(panels), 2), height=2.7 * rows)
    edges = np.arange(E_RANGE[0], E_RANGE[1] + E_BIN / 2, E_BIN)
    for (prefix, title), axis in zip(panels, axes, strict=False):
        for label, color in zip(runs.labels, COLORS, strict=False):
            part = runs.of(label)
            if prefix.startswith("relaxed_"):
                part = part.filter(pc.field("relaxed_asked"))
            energy = _finite(part, f"{prefix}e_above_hull")
            counts, _ = np.histogram(np.clip(energy, edges[0] + E_BIN / 2, edges[-1] - E_BIN / 2), bins=edges)
            first = label == runs.labels[0]
            share = 100 * counts / max(len(part), 1)
            axis.stairs(share, edges, color=color, fill=first, alpha=0.45 if first else 1, linewidth=1.4, label=label)
        if limit is not None:
            axis.axvline(limit, color=INK, linewidth=0.9, linestyle="--")
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_xlabel("Energy above hull (eV/atom)")
        axis.set_ylabel("Share of samples (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", frameon=False, fontsize=8, ncols=6)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def courses(runs: Runs) -> Figure | None:
    """Figure 3: reward, KL divergence and uniqueness against the step; thin lines are single seeds, the thick one is
    their mean, the band its 95 % interval where there are several."""
    found = {label: rows for label, rows in runs.courses.items() if any(rows)}
    wanted = (
        ("reward/mean", "Mean reward", 1.0),
        ("monitor/held_out/mean", "Held-out score", 1.0),
        ("kl/base", "KL to base (nats)", 1.0),
        ("unique/share", "Unique in the batch (%)", 100.0),
    )
    panels = [w for w in wanted if any(series(course, w[0])[0] for rows in found.values() for course in rows)]
    if not panels:
        return None
    figure, axes = page_axes(len(panels), 1, height=1.75 * len(panels), sharex=True)
    order = [*runs.labels, *(label for label in found if label not in runs.labels)]
    colors = dict(zip(order, COLORS * 4, strict=False))
    for (key, caption, scale), axis in zip(panels, axes, strict=True):
        for label, rows in sorted(found.items(), key=lambda item: order.index(item[0])):
            _course(axis, label, [series(course, key) for course in rows], scale, colors[label])
        axis.set_ylabel(caption)
    axes[-1].set_xlabel("Step")
    _legend(axes[0])
    return figure


def _course(axis: Axes, label: str, seeds: Sequence[tuple[list[float], list[float]]], scale: float, color: str) -> None:
    known = [(np.array(steps), scale * np.array(values)) for steps, values in seeds if steps]
    if not known:
        return
    common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in known)))
    if len(known) > 1:
        for steps, values in known:
            axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.45)
    if not common:
        return
    stacked = np.array([values[np.isin(steps, common)] for steps, values in known])
    mean = stacked.mean(axis=0)
    axis.plot(common, mean, color=color, linewidth=1.8, label=f"{label} ({_count(len(known), 'seed')})")
    if len(known) > 1:
        half = student_quantile(float(len(known) - 1)) * stacked.std(axis=0, ddof=1) / np.sqrt(len(known))
        axis.fill_between(common, mean - half, mean + half, color=color, alpha=0.13, linewidth=0)


def spacegroups(runs: Runs) -> Figure | None:
    """Figure 4: share of stable crystals in each of fourteen space groups, with intervals."""
    shares = by_spacegroup(runs.table)
    groups = sorted({group for found in shares.values() for group in found})
    if not groups:
        return None
    figure, (axis,) = page_axes(1, 1, height=3.2)
    _bars(axis, shares, groups)
    axis.set_xticks(range(len(groups)), [f"{spacegroup_symbol(group)}\n{group}" for group in groups], fontsize=6.3)
    axis.set_ylabel("Stable (%)")
    _legend(axis)
    return figure


def uniqueness(runs: Runs) -> Figure | None:
    """Figure 5: stable, unique, novel and S.U.N. shares with intervals; beside it, how the number of different S.U.N.
    crystals grows with the samples drawn."""
    names = {"stable_rate": "stable", "unique_rate": "unique", "novel_rate": "novel", "sun_rate": "S.U.N."}
    found = {label: estimate(runs.of(label)) for label in runs.labels}
    names = {name: caption for name, caption in names.items() if all(name in each for each in found.values())}
    figure, axes = page_axes(1, 2, height=3.0)
    kinds = list(names)
    _bars(axes[0], {label: {k: each[name] for k, name in enumerate(kinds)} for label, each in found.items()},
          list(range(len(kinds))))  # fmt: skip
    axes[0].set_xticks(range(len(kinds)), list(names.values()))
    axes[0].set_ylabel("Share of samples (%)")
    _legend(axes[0])
    column, caption = ("sun", "Different S.U.N. crystals") if "sun_rate" in names else ("unique", "Different crystals")
    for label, color in zip(runs.labels, COLORS, strict=False):
        for number, part in enumerate(experiments(runs.of(label))):
            total = np.cumsum(part.column(column).to_numpy().astype(np.int64))
            at = np.unique(np.linspace(0, len(total) - 1, CURVE_POINTS).astype(np.int64))
            axes[1].plot(at + 1, total[at], color=color, linewidth=1.3, label=label if not number else None)
    axes[1].set_xlabel("Samples drawn")
    axes[1].set_ylabel(caption)
    return figure


def pareto(runs: Runs) -> Figure | None:
    """Figure 6: band gap against dielectric constant with lines of equal figure of merit; each model's Pareto front."""
    if not {GAP, CONSTANT} <= set(runs.table.column_names):
        return None
    figure, (axis,) = page_axes(1, 1, height=3.6)
    for label, color in zip(runs.labels, COLORS, strict=False):
        gap, constant = _pairs(runs.of(label))
        axis.scatter(gap, constant, s=7, color=color, alpha=0.5, linewidths=0, label=label)
        front = pareto_front(gap, constant)
        order = np.argsort(gap[front])
        axis.step(gap[front][order], constant[front][order], where="pre", color=color, linewidth=1.2)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    low, high = axis.get_ylim()
    right = axis.get_xlim()[1]
    grid = np.linspace(max(right / 200, 1e-3), right, 200)
    for merit in (10, 30, 100):
        axis.plot(grid, merit / grid, color=INK, linewidth=0.7, linestyle=":")
        place = min(right, merit / low) * 0.93
        if low < merit / place < high:
            axis.annotate(f"{merit} eV", (place, merit / place), fontsize=7, color=INK, ha="center", va="center",
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axis.set_ylim(low, high)
    axis.set_xlim(0, right)
    axis.set_xlabel("Band gap (eV)")
    axis.set_ylabel("Dielectric constant")
    _legend(axis)
    return figure


def _pairs(table: pa.Table) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    gap, constant = (table.column(name).to_numpy() for name in (GAP, CONSTANT))
    known = np.isfinite(gap) & np.isfinite(constant) & (constant > 0)
    return np.maximum(gap[known], 0.0), constant[known]


def _bars(axis: Axes, values: dict[str, dict[int, Estimate]], keys: Sequence[int]) -> None:
    """Grouped bars in per cent with their intervals; a missing one leaves its place empty."""
    width = 0.8 / len(values)
    for number, ((label, found), color) in enumerate(zip(values.items(), COLORS, strict=False)):
        for place, key in enumerate(keys):
            figure = found.get(key)
            if figure is None or not np.isfinite(figure.value):
                continue
            x = place + (number - (len(values) - 1) / 2) * width
            down, up = (max(0.0, 100 * d) if np.isfinite(d) else 0.0
                        for d in (figure.value - figure.low, figure.high - figure.value))  # fmt: skip
            axis.bar(x, 100 * figure.value, width * 0.92, color=color)
            axis.errorbar(x, 100 * figure.value, [[down], [up]], color=INK, linewidth=0.8, capsize=1.5)
        axis.bar(0, 0, color=color, label=label)
    axis.set_ylim(bottom=0)


def _legend(axis: Axes) -> None:
    """Above the panel, where it hides nothing."""
    axis.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def _finite(table: pa.Table, name: str) -> Float64[np.ndarray, " n"]:
    values = table.column(name).to_numpy()
    return values[np.isfinite(values)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def page_axes(rows: int, columns: int, *, height: float, sharex: bool = False) -> tuple[Figure, list[Any]]:
    """A figure of the page's width with quiet axes, the panels row by row; needs no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "evaluation", error) from error
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, which="both")
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
    return figure, axes
