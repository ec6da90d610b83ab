"""Mean reward against the KL that it cost: where a run went, and what is as good as what.

Along a line r = L + tau KL the objective L is the same. The highest one that any law can touch is that of L*, at
the star. What choosing among N crystals of the base gives for its KL is the curve that learning has to be measured by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from crystalforge.evaluation.metrics.measures import by_label, log_ratio_of
from crystalforge.evaluation.metrics.objective import TAU, passed_of, rewards_of
from crystalforge.evaluation.metrics.statistics import Z
from crystalforge.evaluation.report.figures import COLORS, INK, History, cycle, plotly, style
from crystalforge.rewards import tilted

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LINES = 5  # lines of equal objective from L(base) to L*
CHOICES = (1, 2, 4, 8, 16, 32, 64)  # N of best-of-N
FEWEST_TOP = 10  # crystals that the best of N rests on, at least: n/N
MARGIN = 0.08  # of what is shown, around it


def reward_against_kl(table: pa.Table, histories: Mapping[str, History]) -> Figure | None:
    """Every model as drawn (full) and filtered (hollow), the runs' paths, best-of-N of the first model, lines of equal
    objective; None where the table has no tau, or no model but the base has a KL.

    histories: rows of the fine-tunings' steps by name.
    """
    metadata = table.schema.metadata or {}
    if TAU not in metadata or not {"log_prob", "log_prob_base"} <= set(table.column_names):
        return None
    tau = float(metadata[TAU])
    parts = by_label(table)
    points = {label: _points(rows) for label, rows in parts.items()}
    if not any(found["as generated"] for found in list(points.values())[1:]):
        return None
    start = rewards_of(next(iter(parts.values())))
    best = tilted.optimum(start, tau)
    figure = plotly().Figure()
    shown: list[tuple[float, float]] = [(0.0, float(start.mean())), (best.kl, best.reward)]
    shown += _choices(figure, start)
    shown += _paths(figure, histories)
    for (label, found), color in zip(points.items(), cycle(), strict=False):
        for kind, point in found.items():
            if point is not None:
                shown.append((point["kl"].value, point["reward"].value))
                _point(figure, label, kind, point, color)
    figure.add_scatter(
        x=[best.kl], y=[best.reward], mode="markers", name="optimum, by the base's crystals",
        marker={"symbol": "star", "size": 14, "color": COLORS[5], "line": {"color": INK, "width": 1}},
        hovertemplate=f"L* {best.value:.3f}<br>KL %{{x:.2f}} nats, reward %{{y:.3f}}<extra></extra>",
    )  # fmt: skip
    x, y = np.array(shown).T
    right = float(x.max()) * (1 + MARGIN)
    room = float(y.max() - y.min()) * MARGIN + 1e-6
    low, high = float(y.min()) - room, float(y.max()) + room
    _lines(figure, np.linspace(float(start.mean()), best.value, LINES), tau, right, (low, high))
    figure.update_xaxes(range=[-right * MARGIN / 2, right])
    figure.update_yaxes(range=[low, high])
    return style(figure, "KL to base (nats)", "Mean reward", height=460)


def _points(rows: pa.Table) -> dict[str, dict[str, tilted.Measured] | None]:
    """Mean reward and KL of a model as drawn, and of what passes the guards where they refuse some."""
    reward, ratio, passed = rewards_of(rows), log_ratio_of(rows), passed_of(rows)
    everything = np.ones(len(rows), dtype=bool)
    found: dict[str, dict[str, tilted.Measured] | None] = {}
    for kind, chosen in (("as generated", everything), ("filtered", passed)):
        kl = tilted.divergence(ratio, chosen)
        if kl.n < tilted.FEWEST or (kind == "filtered" and passed.all()):
            found[kind] = None
            continue
        worth = reward[chosen]
        error = float(worth.std(ddof=1)) / len(worth) ** 0.5
        found[kind] = {"kl": kl, "reward": tilted.Measured(float(worth.mean()), error, len(worth))}
    return found


def _point(figure: Figure, label: str, kind: str, point: Mapping[str, tilted.Measured], color: str) -> None:
    def bars(found: tilted.Measured) -> dict[str, Any]:
        return {"type": "data", "array": [Z * found.error], "color": color, "thickness": 1.2, "width": 3}

    hollow = kind == "filtered"
    figure.add_scatter(
        x=[point["kl"].value],
        y=[point["reward"].value],
        error_x=bars(point["kl"]),
        error_y=bars(point["reward"]),
        mode="markers",
        name=f"{label}, filtered" if hollow else label,
        marker={"color": "#ffffff" if hollow else color, "size": 10, "line": {"color": color, "width": 2}},
        hovertemplate=f"{kind}<br>KL %{{x:.2f}} nats, reward %{{y:.3f}}<extra>{label}</extra>",
    )


def _choices(figure: Figure, start: np.ndarray) -> list[tuple[float, float]]:
    """The curve of the best of N: the KL is its upper bound, so the true curve lies to the left."""
    numbers = [n for n in CHOICES if n == 1 or n * FEWEST_TOP <= len(start)]
    pairs = [(tilted.best_of_kl(n), float((tilted.best_of(start, n) * start).sum())) for n in numbers]
    figure.add_scatter(
        x=[kl for kl, _ in pairs],
        y=[reward for _, reward in pairs],
        mode="lines+markers+text",
        line={"color": COLORS[3], "width": 1.5},
        marker={"size": 5},
        text=["" if n == 1 else f"{n}" for n in numbers],
        textposition="bottom right",
        textfont={"size": 11, "color": COLORS[3]},
        name="best of N of the base",
        hovertemplate="KL at most %{x:.2f} nats, reward %{y:.3f}<extra>best of N of the base</extra>",
    )
    return pairs


def _paths(figure: Figure, histories: Mapping[str, History]) -> list[tuple[float, float]]:
    """Where each run's batches lay, step by step; dotted: those of its crystals that passed the guards."""
    pairs: list[tuple[float, float]] = []
    for (name, rows), color in zip(histories.items(), COLORS[1:] + COLORS[:1], strict=False):
        for kl, reward, dash, caption in (
            ("kl/base", "reward/mean", "solid", name),
            ("filtered/kl", "filtered/reward", "dot", f"{name}, filtered"),
        ):
            path = [(float(row[kl] or 0.0), float(row[reward] or 0.0)) for row in rows if kl in row and reward in row]
            if len(path) > 1:
                figure.add_scatter(
                    x=[point[0] for point in path],
                    y=[point[1] for point in path],
                    mode="lines",
                    line={"color": color, "width": 1.2, "dash": dash},
                    opacity=0.7,
                    name=f"path of {caption}",
                    hovertemplate="KL %{x:.2f} nats, reward %{y:.3f}<extra>" + caption + "</extra>",
                )
                pairs += path
    return pairs


def _lines(figure: Figure, levels: np.ndarray, tau: float, right: float, limits: tuple[float, float]) -> None:
    """r = L + tau KL for each level of L, below the rest."""
    for number, level in enumerate(levels):
        last = number == len(levels) - 1
        figure.add_shape(
            type="line", x0=0, x1=right, y0=level, y1=level + tau * right, layer="below",
            line={"color": INK if last else "#b8c0c8", "width": 1, "dash": "dash" if last else "dot"},
        )  # fmt: skip
        at = min(right, (limits[1] - level) / tau) * 0.985
        name = "L*" if last else "L(base)" if number == 0 else "L"
        text = f"{name} {level:.2f}".replace("-", "−")
        figure.add_annotation(
            x=at, y=level + tau * at, text=text, showarrow=False, xanchor="right", yanchor="bottom",
            font={"size": 11, "color": "#52606d"},
        )  # fmt: skip
