"""How much of the attainable each algorithm has attained after how many scored crystals: a contest's figure.

A step's batch is drawn from the policy before anything is learned from it, so the batches that a run scored anyway tell
its objective all along; the last point is that of the fresh crystals by which the model was judged. Base and optimum
are those of the contest's base, by the crystals of all seeds.

Shapes: S seeds, K points along the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from crystalforge.rl.contest.contest import BASE
from crystalforge.rl.record import METRICS, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from crystalforge.rl.contest.contest import Outcome

PANELS = {"objective": "as generated", "filtered/objective": "filtered by the guards"}
POINTS = 10  # along the budget: a batch alone says too little
LOWEST = -40  # %, shown: what lies far below the base is only far below
SPREAD = 0.015  # of the budget, between two algorithms' last intervals
BLACK, SKY = "#1f2933", "#56b4e9"


@dataclass(frozen=True)
class Attainable:
    """L(base) and L* of a contest, by the crystals that its base was judged by in all seeds."""

    start: float
    best: float

    @staticmethod
    def of(outcomes: Sequence[Outcome], tau: float) -> Attainable | None:
        """None where no base was measured, or its rewards do not differ."""
        bases = [outcome for outcome in outcomes if outcome.label == BASE and outcome.optimum is not None]
        if not bases:
            return None
        judged = np.array([outcome.judged for outcome in bases], dtype=np.float64)
        start = float(np.average([outcome.reward for outcome in bases], weights=judged))
        exponents = np.array([outcome.optimum for outcome in bases], dtype=np.float64) / tau
        top = float(exponents.max())  # L* of all crystals together: the mean of exp(r/tau) is over all of them
        best = tau * (top + math.log(float(np.average(np.exp(exponents - top), weights=judged))))
        return Attainable(start, best) if best > start else None

    def share(self, value: float) -> float:
        """(L - L(base)) / (L* - L(base))."""
        return (value - self.start) / (self.best - self.start)


def courses(
    folder: Path, outcomes: Sequence[Outcome], ground: Attainable, tau: float, budget: int
) -> dict[str, dict[str, list[tuple[float, Float64[np.ndarray, " S"]]]]]:
    """By learner and panel: scored crystals and what each seed had attained by then (a share, 1 is all)."""
    learners = [outcome for outcome in outcomes if outcome.kind == "learner" and outcome.tau == tau]
    found: dict[str, dict[str, list[tuple[float, Float64[np.ndarray, " S"]]]]] = {}
    for label in dict.fromkeys(outcome.label for outcome in learners):
        group = [outcome for outcome in learners if outcome.label == label]
        histories = [rows(folder / f"{label}-seed{outcome.seed}" / METRICS) for outcome in group]
        ends = {"objective": [o.objective for o in group], "filtered/objective": [o.filtered for o in group]}
        found[label] = {}
        for key, last in ends.items():
            points = _along(histories, key, budget)
            known = [value for value in last if value is not None]
            if len(known) == len(group):
                points.append((float(np.mean([outcome.scored for outcome in group])), np.array(known)))
            found[label][key] = [(at, np.array([ground.share(value) for value in values])) for at, values in points]
    return found


def _along(
    histories: Sequence[Sequence[Mapping[str, Any]]], key: str, budget: int
) -> list[tuple[float, Float64[np.ndarray, " S"]]]:
    """Means over tenths of the budget, at the mean of what had been scored before each batch; where all seeds have any.

    Where nothing was refused, the filtered law is the law itself.
    """
    bins: list[list[list[tuple[int, float]]]] = [[[] for _ in histories] for _ in range(POINTS)]
    for seed, history in enumerate(histories):
        before = 0
        for row in history:
            value = row.get(key, row.get("objective"))
            if value is not None:
                bins[min(POINTS * before // budget, POINTS - 1)][seed].append((before, float(value)))
            before = int(row.get("budget/scored", before))
    points = []
    for each in bins:
        if all(each):
            at = float(np.mean([before for seed in each for before, _ in seed]))
            points.append((at, np.array([np.mean([value for _, value in seed]) for seed in each])))
    return points


def draw(found: Mapping[str, Mapping[str, Sequence[tuple[float, Any]]]], start: float | None = None) -> Figure:
    """Attained share against scored crystals: a panel as generated, one filtered.

    Thick: mean of the seeds, which are thin; the last point has its 95 % interval over seeds.

    start: what the filtered base attains, drawn across the second panel.
    """
    from crystalforge.evaluation.metrics.statistics import student_quantile
    from crystalforge.evaluation.paper.figures import page_axes
    from crystalforge.evaluation.report.figures import COLORS

    figure, panels = page_axes(1, len(PANELS), height=3.4)
    colors = [*COLORS[1:], SKY, BLACK, COLORS[0]]
    for axis, (key, caption) in zip(panels, PANELS.items(), strict=True):
        for number, (label, course) in enumerate(found.items()):
            points = course[key]
            color = colors[number % len(colors)]
            x = np.array([at for at, _ in points])
            values = np.array([shares for _, shares in points]) * 100
            mean, seeds = values.mean(axis=1), values.shape[1]
            axis.plot(x, mean, color=color, linewidth=1.6, marker="o", markersize=2.6, label=label)
            for each in values.T if seeds > 1 else ():
                axis.plot(x, each, color=color, linewidth=0.5, alpha=0.35)
            if seeds > 1:
                half = student_quantile(float(seeds - 1)) * float(values[-1].std(ddof=1)) / math.sqrt(seeds)
                at = x[-1] * (1 + SPREAD * number)  # side by side
                axis.errorbar(at, mean[-1], half, color=color, linewidth=1.2, capsize=2, marker="o", markersize=2.6)
        axis.axhline(0, color=BLACK, linewidth=0.8)
        axis.set_title(caption, loc="left", fontsize=9)
        axis.set_xlabel("Scored crystals")
        axis.set_ylabel("Attained of L* − L(base) (%)")
    if start is not None:
        panels[-1].axhline(100 * start, color=BLACK, linewidth=0.9, linestyle="--")
        panels[-1].set_title(f"{PANELS['filtered/objective']} (dashed: base)", loc="left", fontsize=9)
    for axis in panels:
        axis.set_ylim(LOWEST, 100)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", frameon=False, fontsize=8, ncols=7)
    return figure
