"""The report's figures, as plotly figures made from the table of crystals and the histories of training.

Every function takes plain data and gives a figure; nothing here knows of HTML. Colours are those of Okabe & Ito
(2008), which stay apart for colour-blind readers and in print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crystalforge.common.errors import missing_extra
from crystalforge.evaluation.metrics.measures import by_label
from crystalforge.evaluation.metrics.spacegroups import SYSTEMS
from crystalforge.evaluation.report.elements import ELEMENTS, ElementStyle

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLORS: tuple[str, ...] = (
    "#7f8c8d",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
)  # the first model is the quiet one
KNOWN = "#c8ccd0"  # the training set
INK, GRID = "#1f2933", "#e3e7eb"
E_RANGE = (-0.5, 1.5)  # eV/atom shown in the histogram; what lies outside is counted in its outermost bins
E_BIN = 0.05  # eV/atom
LARGEST_GROUPS = 20  # space groups shown by name

History = Sequence[Mapping[str, float | int | None]]


def plotly() -> Any:
    """plotly.graph_objects; raises InputError naming the extra to install."""
    try:
        import plotly.graph_objects as graph_objects
    except ImportError as error:
        raise missing_extra("plotly", "evaluation", error) from error
    return graph_objects


def energy_histogram(table: pa.Table, limit: float | None, *, column: str = "e_above_hull") -> Figure:
    """Share of all samples per bin of E_hull for each model, with a line at the stability limit (eV/atom)."""
    edges = np.arange(E_RANGE[0], E_RANGE[1] + E_BIN / 2, E_BIN)
    centres = (edges[:-1] + edges[1:]) / 2
    figure = plotly().Figure()
    for (label, rows), color in zip(by_label(table).items(), cycle(), strict=False):
        energy = rows.column(column).to_numpy()
        energy = energy[np.isfinite(energy)]
        counts, _ = np.histogram(np.clip(energy, centres[0], centres[-1]), bins=edges)
        figure.add_bar(
            x=centres,
            y=100 * counts / max(len(rows), 1),
            name=label,
            marker={"color": color, "opacity": 0.62, "line": {"width": 0}},
            customdata=np.stack([counts, edges[:-1], edges[1:]], axis=1),
            hovertemplate="%{customdata[1]:.2f} to %{customdata[2]:.2f} eV/atom<br>%{y:.1f} % of samples"
            f" (%{{customdata[0]}} crystals)<extra>{label}</extra>",
        )
    if limit is not None:
        figure.add_vline(x=limit, line={"color": INK, "width": 1.5, "dash": "dash"})
        figure.add_annotation(
            x=limit,
            y=1,
            yref="paper",
            text=f" {limit:g} eV/atom",
            showarrow=False,
            xanchor="left",
            yanchor="top",
            font={"size": 12},
            bgcolor="rgba(255,255,255,0.75)",
        )
    figure.update_layout(barmode="overlay", bargap=0)
    return style(figure, "Energy above hull (eV/atom)", "Share of all samples (%)")


def finetuning(histories: Mapping[str, History]) -> Figure:
    """Reward (mean and, where logged, the 10-90 % band), KL to base and shares against step, one colour per run."""
    from plotly.subplots import make_subplots

    plotly()
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.45, 0.3, 0.25])
    several = len(histories) > 1
    for (name, rows), color in zip(histories.items(), COLORS[1:] + COLORS[:1], strict=False):
        prefix = f"{name}: " if several else ""
        low, high = series(rows, "reward/q10"), series(rows, "reward/q90")
        if low[0] and high[0]:
            figure.add_scatter(
                x=low[0] + high[0][::-1],
                y=low[1] + high[1][::-1],
                fill="toself",
                fillcolor=_pale(color),
                line={"width": 0},
                hoverinfo="skip",
                name=f"{prefix}10-90 % of samples",
                row=1,
                col=1,
            )
        for row, key, caption, dash, alone in (
            (1, "reward/mean", "mean reward", "solid", COLORS[1]),
            (2, "kl/base", "KL to base", "solid", COLORS[2]),
            (3, "unique/share", "unique within the batch", "solid", COLORS[3]),
            (3, "floors/share", "floored by the reward", "dot", COLORS[0]),
        ):
            steps, values = series(rows, key)
            if steps:
                scale = 100 if row == 3 else 1
                figure.add_scatter(
                    x=steps,
                    y=[scale * value for value in values],
                    mode="lines",
                    line={"color": color if several else alone, "width": 2, "dash": dash},
                    name=f"{prefix}{caption}",
                    row=row,
                    col=1,
                )
    figure.update_yaxes(title_text="Reward", row=1, col=1)
    figure.update_yaxes(title_text="KL (nats)", row=2, col=1)
    figure.update_yaxes(title_text="Share (%)", range=[0, 105], row=3, col=1)
    figure.update_xaxes(title_text="Step", row=3, col=1)
    return style(figure, None, None, height=560)


def pretraining(histories: Mapping[str, History]) -> Figure:
    """Negative log-likelihood per crystal of training and validation split against step."""
    figure = plotly().Figure()
    several = len(histories) > 1
    for name, rows in histories.items():
        prefix = f"{name}: " if several else ""
        for key, caption, color, mode in (
            ("train/nll", "training", COLORS[0], "lines"),
            ("val/nll", "validation", COLORS[1], "lines+markers"),
        ):
            steps, values = series(rows, key)
            if steps:
                figure.add_scatter(
                    x=steps, y=values, mode=mode, line={"color": color, "width": 2}, name=f"{prefix}{caption}"
                )
    return style(figure, "Step", "NLL (nats per crystal)")


def periodic_table(counts: Mapping[int, float], caption: str) -> Figure:
    """Share of crystals (in %) that contain each element, over the periodic table, on a logarithmic colour scale.

    counts: percentage by atomic number; elements that do not occur stay blank.
    """
    figure = plotly().Figure()
    grid = _tiles({z: np.log10(share) for z, share in counts.items() if share > 0})
    ticks = [-1, 0, 1, 2]
    _table(
        figure,
        grid,
        lambda element: f"in {counts.get(element.number, 0.0):.2f} % of the crystals",
        colorscale=[[0, "#edf4f9"], [0.5, "#a6cbe3"], [1, "#0b4f7d"]],
        zmin=-1,
        zmax=2,
        colorbar={"tickvals": ticks, "ticktext": [f"{10.0**t:g} %" for t in ticks]},
    )
    return _table_style(figure, caption)


def element_change(before: Mapping[int, float], after: Mapping[int, float], caption: str) -> Figure:
    """Change of each element's share in percentage points, over the periodic table."""
    figure = plotly().Figure()
    change = {z: after.get(z, 0.0) - before.get(z, 0.0) for z in before.keys() | after.keys()}
    most = max([1.0, *(abs(value) for value in change.values())])
    _table(
        figure,
        _tiles(change),
        lambda element: f"{change.get(element.number, 0.0):+.2f} percentage points",
        colorscale=[[0, "#b5571f"], [0.5, "#f4f5f6"], [1, "#0b5c96"]],
        zmin=-most,
        zmax=most,
        colorbar={"ticksuffix": " pt", "nticks": 5},
    )
    return _table_style(figure, caption)


def _tiles(values: Mapping[int, float]) -> np.ndarray:
    """[9 18] Values at the elements' places, NaN where there is none."""
    grid = np.full((9, 18), np.nan)
    for z, value in values.items():
        grid[ELEMENTS[z].row - 1, ELEMENTS[z].column - 1] = value
    return grid


def _table(
    figure: Figure, grid: np.ndarray, describe: Callable[[ElementStyle], str], *, colorbar: dict[str, Any], **scale: Any
) -> None:
    """Draw tiles with symbols; elements without a value get a faint tile, so that the table keeps its shape."""
    text, hover = np.full((9, 18), "", dtype=object), np.full((9, 18), "", dtype=object)
    blank = np.full((9, 18), np.nan)
    absent = []
    for element in ELEMENTS.values():
        cell = (element.row - 1, element.column - 1)
        if np.isnan(grid[cell]):
            blank[cell] = 0.0
            absent.append(element)
        else:
            text[cell] = element.symbol
            hover[cell] = f"{element.name} ({element.number})<br>{describe(element)}"
    figure.add_heatmap(
        z=blank, colorscale=[[0, "#f1f4f6"], [1, "#f1f4f6"]], showscale=False, hoverinfo="skip", xgap=2, ygap=2
    )
    figure.add_heatmap(
        z=grid,
        text=text,
        texttemplate="%{text}",
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        xgap=2,
        ygap=2,
        colorbar={"thickness": 10, "outlinewidth": 0, "len": 0.9, **colorbar},
        **scale,
    )
    figure.add_scatter(
        x=[element.column - 1 for element in absent],
        y=[element.row - 1 for element in absent],
        mode="text",
        text=[element.symbol for element in absent],
        textfont={"color": "#66727e"},
        hoverinfo="skip",
        showlegend=False,
    )


def _table_style(figure: Figure, caption: str) -> Figure:
    figure.update_layout(title={"text": caption, "font": {"size": 14}, "x": 0.01, "xanchor": "left"})
    style(figure, None, None, height=310, margin={"l": 4, "r": 4, "t": 34, "b": 4})
    figure.update_xaxes(visible=False, constrain="domain", range=[-0.5, 17.5])
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", scaleratio=1)
    return figure.update_layout(font={"size": 11})


def spacegroups(shares: Mapping[str, Mapping[int, float]]) -> Figure:
    """Share of crystals (in %) in the commonest space groups, one bar per set of crystals."""
    total: dict[int, float] = {}
    for share in shares.values():
        for group, value in share.items():
            total[group] = total.get(group, 0.0) + value
    largest = sorted(total, key=lambda group: -total[group])[:LARGEST_GROUPS]
    names = [f"{spacegroup_symbol(group)} ({group})" for group in largest]
    figure = plotly().Figure()
    for (label, share), color in zip(shares.items(), _set_colors(shares), strict=True):
        figure.add_bar(
            y=names,
            x=[share.get(group, 0.0) for group in largest],
            name=label,
            orientation="h",
            marker={"color": color},
            hovertemplate="%{y}: %{x:.2f} %<extra>" + label + "</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(autorange="reversed")
    return style(figure, "Share of crystals (%)", None, height=150 + 26 * len(largest))


def crystal_systems(shares: Mapping[str, Mapping[int, float]]) -> Figure:
    """Share of crystals (in %) in each of the seven crystal systems."""
    figure = plotly().Figure()
    for (label, share), color in zip(shares.items(), _set_colors(shares), strict=True):
        heights = [sum(value for group, value in share.items() if low <= group <= high) for _, low, high in SYSTEMS]
        figure.add_bar(
            x=[name for name, _, _ in SYSTEMS],
            y=heights,
            name=label,
            marker={"color": color},
            hovertemplate="%{x}: %{y:.1f} %<extra>" + label + "</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.3)
    return style(figure, None, "Share of crystals (%)")


def element_shares(table: pa.Table) -> dict[int, float]:
    """Percentage of the built crystals that contain each element."""
    rows = [set(numbers) for numbers in table.column("atomic_numbers").to_pylist() if numbers]
    counts: dict[int, int] = {}
    for elements in rows:
        for z in elements:
            counts[z] = counts.get(z, 0) + 1
    return {z: 100 * count / len(rows) for z, count in counts.items()}


def spacegroup_shares(groups: Sequence[int] | np.ndarray) -> dict[int, float]:
    """Percentage of each space group among those given; 0 (unknown) is left out."""
    known = np.asarray(groups)
    known = known[known > 0]
    numbers, counts = np.unique(known, return_counts=True)
    return {int(g): 100 * int(n) / len(known) for g, n in zip(numbers, counts, strict=True)}


def series(rows: History, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `key`."""
    steps, values = [], []
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if step is not None and value is not None:
            steps.append(float(step))
            values.append(float(value))
    return steps, values


@cache
def spacegroup_symbol(group: int) -> str:
    """International short symbol with overbars and subscripts, such as P2₁/c."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    symbol = sg_symbol_from_int_number(group)
    if 3 <= group <= 15 and symbol[1] == "1" and symbol.endswith("1"):  # monoclinic, written in full
        symbol = symbol[0] + symbol[2:-1]
    for digit in "12345":
        symbol = symbol.replace(f"_{digit}", "₀₁₂₃₄₅"[int(digit)])
    first, *rest = symbol.split("-")
    return first + "".join(f"{part[0]}̅{part[1:]}" for part in rest)


def cycle() -> list[str]:
    return [*COLORS] * 4


def _set_colors(shares: Mapping[str, object]) -> list[str]:
    """Grey for the training set, if it is there, then the models' colours."""
    others = iter(cycle())
    return [KNOWN if label == TRAINING else next(others) for label in shares]


TRAINING = "training set"


def _pale(color: str) -> str:
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def style(
    figure: Figure,
    x: str | None,
    y: str | None,
    *,
    height: int = 380,
    margin: Mapping[str, int] | None = None,
) -> Figure:
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": "#b8c0c8",
        "ticks": "outside",
        "tickcolor": GRID,
    }
    figure.update_xaxes(**axis, automargin=True)
    figure.update_yaxes(**axis, automargin=True)
    if x is not None:
        figure.update_xaxes(title_text=x)
    if y is not None:
        figure.update_yaxes(title_text=y)
    figure.update_layout(
        template="none",
        height=height,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin=dict(margin) if margin is not None else {"l": 62, "r": 14, "t": 34, "b": 52},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
    )
    return figure
