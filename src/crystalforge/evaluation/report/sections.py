"""Sections of the report that are tables or sentences: the monitor's verdict, space groups, second opinions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa

from crystalforge.evaluation.metrics.measures import by_label, is_repeated
from crystalforge.evaluation.metrics.spacegroups import by_spacegroup
from crystalforge.evaluation.report.figures import spacegroup_symbol
from crystalforge.evaluation.report.text import percent, signed

FEWEST_PAIRS = 3  # crystals that both judges answered for: fewer give no correlation

# What the monitor saw, in words and with its unit, in the order of the table.
SEEN = {
    "held_out/mean": ("Held-out score", ""),
    "held_out/reward_on_same": ("Reward on the same crystals", ""),
    "held_out/gap": ("Rise of the reward beyond the held-out score's", "sd"),
    "held_out/correlation": ("Correlation of the two", ""),
    "novel": ("Novel", "%"),
    "drift/elements": ("Drift of elements", "%"),
    "drift/spacegroups": ("Drift of space groups", "%"),
}


def monitor(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """What watched each fine-tuning and what it concluded, first look beside last; "" when nothing watched.

    verdicts: by name of the fine-tuning, what `rl.monitor.conclusion` gave.
    """
    parts = []
    for name, found in verdicts.items():
        if not found or not found.get("looks"):
            continue
        good = found.get("passed", True)
        badge = f'<span class="badge {"yes" if good else "no"}">{"passed" if good else "stopped"}</span>'
        judge = f" Held-out judge: {escape(str(found['held_out']))}." if found.get("held_out") else ""
        parts.append(f"<h3>{escape(name)} {badge}</h3><p>{escape(_sentence(str(found['verdict'])))}{judge}</p>")
        parts.append(_looks(found.get("first", {}), found.get("last", {})))
    if not parts:
        return ""
    intro = (
        "<p>During fine-tuning the policy was looked at through eyes that the training does not use: a held-out "
        "potential, uniqueness, novelty, the drift of what it writes. Too wide a gap ends a run with its last good "
        "policy.</p>"
    )
    return intro + "".join(parts)


def spacegroups(table: pa.Table) -> str:
    """Share of stable crystals in each of fourteen space groups, models side by side; "" without energies."""
    shares = by_spacegroup(table)
    groups = sorted({group for found in shares.values() for group in found})
    if not groups:
        return ""
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in shares)
    unit = {label: "trainings" if is_repeated(rows) else "crystals" for label, rows in by_label(table).items()}
    lines = []
    for group in groups:
        cells = []
        for label, found in shares.items():
            figure = found.get(group)
            if figure is None or not math.isfinite(figure.value):
                cells.append(f'<td data-label="{escape(label)}">–</td>')
                continue
            interval = ""
            if math.isfinite(figure.low):
                low, high = (f"{100 * max(0.0, min(1.0, end)):.0f}" for end in (figure.low, figure.high))
                interval = f"<small>{low} to {high} · {figure.n} {unit[label]}</small>"
            cells.append(f'<td data-label="{escape(label)}"><span><b>{percent(figure.value)}</b>{interval}</span></td>')
        lines.append(f'<tr><th scope="row">{spacegroup_symbol(group)} <small>{group}</small></th>{"".join(cells)}</tr>')
    return (
        "<p>Share of stable crystals in the two commonest space groups of each crystal system.</p>"
        '<div class="scroll"><table class="headline stack"><thead><tr><th scope="col">Space group</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def opinions(table: pa.Table, *, prefix: str = "held_out_") -> str:
    """How far the reward and a held-out judge agree on each model's crystals; "" without the latter."""
    columns = ("e_above_hull", f"{prefix}e_above_hull", "stable", f"{prefix}stable")
    if not set(columns) <= set(table.column_names):
        return ""
    rows = []
    for label, part in by_label(table).items():
        first, second = (part.column(name).to_numpy() for name in columns[:2])
        known = np.isfinite(first) & np.isfinite(second)
        both = int(known.sum())
        cells = [f"{both:,}", "–", "–", "–"]
        if both >= FEWEST_PAIRS and np.ptp(first[known]) > 0 and np.ptp(second[known]) > 0:
            ranks = [np.argsort(np.argsort(values[known])) for values in (first, second)]
            cells[1] = f"{np.corrcoef(ranks[0], ranks[1])[0, 1]:.2f}"
            cells[2] = signed(f"{np.median(second[known] - first[known]):+.3f} eV/atom")
        stable = part.column("stable").to_numpy().astype(bool)
        if stable.any():
            agreed = part.column(f"{prefix}stable").to_numpy().astype(bool) & stable
            cells[3] = f"{percent(agreed.sum() / stable.sum())} <small>of {int(stable.sum()):,}</small>"
        rows.append((label, cells))
    heads = ("Judged by both", "Rank correlation", "Held-out minus reward, median", "Stable by both, of the stable")
    lines = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f'<td data-label="{head}"><span>{cell}</span></td>' for head, cell in zip(heads, cells, strict=True))
        + "</tr>"
        for label, cells in rows
    )
    return (
        "<p>A potential that the reward does not use, with its own hull, judged the same crystals. Below both dashed "
        "lines they agree that a crystal is stable; left of the one but above the other the reward may be wrong.</p>"
        '<div class="scroll"><table class="headline stack"><thead><tr><th scope="col">Model</th>'
        + "".join(f'<th scope="col">{head}</th>' for head in heads)
        + f"</tr></thead><tbody>{lines}</tbody></table></div>"
    )


COVERAGE = {
    "cov_recall": ("COV-R: real crystals with a generated one near by", "%"),
    "cov_precision": ("COV-P: generated crystals with a real one near by", "%"),
    "wdist_density": ("Wasserstein distance of densities", "g/cm³"),
    "wdist_n_elements": ("… of the number of elements", ""),
    "wdist_energy_per_atom": ("… of energies", "eV/atom"),
}


def coverage(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Each model's crystals beside real ones as sets, from what `sets.set_metrics` gave; "" for nothing."""
    names = [name for name in COVERAGE if any(name in figures for figures in found.values())]
    if not names:
        return ""
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in found)
    lines = ""
    for name in names:
        caption, unit = COVERAGE[name]
        cells = ""
        for label, figures in found.items():
            cells += f'<td data-label="{escape(label)}"><span>{_estimate(figures.get(name), unit)}</span></td>'
        small = f" <small>({unit})</small>" if unit not in ("", "%") else ""
        lines += f'<tr><th scope="row">{caption}{small}</th>{cells}</tr>'
    return (
        "<p>Compared as sets with real crystals that were held back from training, after CDVAE. Near by: similar in "
        "the atoms' surroundings and in composition.</p>"
        '<div class="scroll"><table class="headline stack"><thead><tr><th scope="col">95 % intervals below</th>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _estimate(figure: Mapping[str, Any] | None, unit: str) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    if unit == "%":
        low, high = (f"{100 * figure[end]:.1f}" for end in ("low", "high"))
        return f"<b>{percent(figure['value'])}</b><small>{low} to {high}</small>"
    return f"<b>{figure['value']:.3f}</b><small>{figure['low']:.3f} to {figure['high']:.3f}</small>"


def _looks(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    names = [name for name in SEEN if name in first or name in last]
    if not names:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{SEEN[name][0]}</th>'
        + "".join(
            f'<td data-label="{when}">{_seen(look.get(name), SEEN[name][1])}</td>'
            for when, look in (("first look", first), ("last look", last))
        )
        + "</tr>"
        for name in names
    )
    heads = "".join(
        f'<th scope="col">{when} <small>step {look["step"]:g}</small></th>' if "step" in look else "<th>–</th>"
        for when, look in (("First look", first), ("Last look", last))
    )
    return (
        f'<div class="scroll"><table class="headline stack"><thead><tr><th scope="col">Seen</th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _seen(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "%":
        return percent(value)
    return signed(f"{value:.3f}") + (f" {unit}" if unit else "")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
