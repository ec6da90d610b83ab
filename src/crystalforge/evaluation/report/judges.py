"""Figures that set one judgement against another: the reward against a held-out potential, gap against constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from crystalforge.evaluation.metrics.measures import by_label
from crystalforge.evaluation.metrics.pareto import CONSTANT, GAP, pareto_front
from crystalforge.evaluation.report.figures import INK, cycle, plotly, style

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_POINTS = 600  # of each model in a scatter plot: more hide one another and make the page heavy
WIDEST = (-0.5, 1.5)  # eV/atom shown at most; points beyond what is shown are at the edge
NARROWEST = (-0.1, 0.4)
TICKS = [digit * 10**power for power in range(3) for digit in (1, 2, 3, 5)]  # of the dielectric constant
MERITS = (10.0, 30.0, 100.0)  # eV: lines of equal figure of merit


def agreement(table: pa.Table, limit: float | None, *, prefix: str = "held_out_") -> Figure | None:
    """E_hull of every crystal by the reward and by another judge, whose columns have `prefix`; None without them.

    Below both limits they agree that it is stable; below the reward's alone the reward may have been deceived.
    """
    columns = ("e_above_hull", f"{prefix}e_above_hull")
    if not set(columns) <= set(table.column_names):
        return None
    figure = plotly().Figure()
    values = np.concatenate([table.column(name).to_numpy() for name in columns])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    low = float(np.clip(np.quantile(values, 0.02) - 0.05, WIDEST[0], NARROWEST[0]))
    high = float(np.clip(np.quantile(values, 0.96), NARROWEST[1], WIDEST[1]))
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": "#b8c0c8", "width": 1}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    for (label, rows), color in zip(by_label(table).items(), cycle(), strict=False):
        pairs, names = _known_pairs(rows, columns)
        x, y = np.clip(pairs, low, high).T
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=label,
            marker={"color": color, "size": 5, "opacity": 0.6},
            customdata=np.column_stack([np.array(names, dtype=object), pairs]),
            hovertemplate="%{customdata[0]}<br>reward %{customdata[1]:.3f}, held-out %{customdata[2]:.3f} eV/atom"
            f"<extra>{label}</extra>",
        )
    if limit is not None:
        for line in (figure.add_vline, figure.add_hline):
            line(limit, line={"color": INK, "width": 1, "dash": "dash"})
    figure.update_xaxes(range=[low, high])
    figure.update_yaxes(range=[low, high])
    return style(figure, "E<sub>hull</sub> by the reward (eV/atom)", "by the held-out potential", height=440)


def pareto(table: pa.Table) -> Figure | None:
    """Band gap against dielectric constant with each model's Pareto front and lines of equal figure of merit."""
    if not {GAP, CONSTANT} <= set(table.column_names):
        return None
    figure = plotly().Figure()
    reach = 1.0
    for (label, rows), color in zip(by_label(table).items(), cycle(), strict=False):
        pairs, names = _known_pairs(rows, (GAP, CONSTANT))
        gap, constant = np.maximum(pairs[:, 0], 0.0), pairs[:, 1]
        reach = max(reach, float(gap.max(initial=0.0)))
        figure.add_scatter(
            x=gap,
            y=constant,
            mode="markers",
            name=label,
            legendgroup=label,
            marker={"color": color, "size": 5, "opacity": 0.55},
            text=names,
            hovertemplate="%{text}<br>gap %{x:.2f} eV, constant %{y:.1f}<extra>" + label + "</extra>",
        )
        front = np.flatnonzero(pareto_front(gap, constant))
        order = front[np.argsort(gap[front])]
        figure.add_scatter(
            x=gap[order], y=constant[order], mode="lines", line={"color": color, "width": 1.5, "shape": "vh"},
            name=f"{label}, front", legendgroup=label, showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    grid = np.linspace(reach / 100, reach, 100)
    for merit in MERITS:
        figure.add_scatter(
            x=grid, y=merit / grid, mode="lines", line={"color": INK, "width": 1, "dash": "dot"}, name=f"{merit:g} eV",
            hovertemplate=f"gap × constant = {merit:g} eV<extra></extra>", showlegend=False,
        )  # fmt: skip
    values = table.column(CONSTANT).to_numpy()
    values = values[np.isfinite(values) & (values > 0)]
    span = np.log10([values.min(), values.max()]) if len(values) else np.array([0.0, 2.0])
    figure.update_yaxes(type="log", range=[float(span[0]) - 0.1, float(span[1]) + 0.1], tickvals=TICKS)
    return style(figure, "Band gap (eV)", "Dielectric constant", height=440)


def _known_pairs(rows: pa.Table, columns: tuple[str, str]) -> tuple[Float64[np.ndarray, "n 2"], list[str]]:
    """Values of two columns where both are known, and the formulas; at most MOST_POINTS, the first ones."""
    values = np.stack([rows.column(name).to_numpy().astype(np.float64) for name in columns], axis=1)
    shown = np.flatnonzero(np.isfinite(values).all(axis=1))[:MOST_POINTS]
    return values[shown], rows.take(pa.array(shown, pa.int64())).column("formula").to_pylist()
