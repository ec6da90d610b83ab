"""The page of a screening: the funnel, the crystals in three dimensions, the list, and what speaks against each.

It is the evaluation report's page with other sections: one file that needs no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.evaluation.judging.scoring import formula
from crystalforge.evaluation.report.elements import ELEMENTS
from crystalforge.evaluation.report.figures import INK, plotly, spacegroup_symbol, style
from crystalforge.evaluation.report.text import key_values, signed
from crystalforge.evaluation.report.write import CANDIDATE_LIST, page
from crystalforge.evaluation.validity import composition_valid, reduced_composition
from crystalforge.screening.candidates import Candidate
from crystalforge.screening.config import ScreenConfig
from crystalforge.screening.shortlist import confirmed_by, conventional

if TYPE_CHECKING:
    import pyarrow as pa
    from plotly.graph_objects import Figure

STEPS = {
    "drawn": "drawn",
    "sound": "sound",
    "new": "new",
    "promising": "promising",
    "relaxed": "relaxed",
    "different": "different",
    "believed by one": "one judge",
    "believed by all": "all judges",
    "without a red flag": "no red flag",
}
"""The funnel's counts in their order, and how the figure calls them."""


EXPLAINED = """<p>Sound: no atoms too close, no absurd cell. New: neither known nor drawn before. Promising: near the
hull by the first judge, as generated. Relaxed: still sound then. Different: from all others and all known once more.
One judge, all judges: below the limit after relaxing, and after being shaken at rest. Percentages are of the step
before.</p>"""


def write_report(
    path: Path, best: Sequence[Candidate], table: pa.Table, config: ScreenConfig, summary: Mapping[str, Any]
) -> None:
    """Write the page to `path`, atomically. summary: what the stage records."""
    rows = table.to_pylist()
    records = [_record(one, row, config) for one, row in zip(best, rows, strict=True)]
    judges = " and ".join(config.judge_names)
    found, asked = summary["fulfilled"], config.top
    lede = (
        f"{found} of {asked} crystals asked for: after relaxing below {config.limit:g} eV/atom by {escape(judges)}, "
        f"all different, none known. {escape(str(summary['ended']).capitalize())}."
    )
    figures = {"figure-funnel": _funnel(summary["counts"])}
    blocks = [
        ("funnel", "The funnel", EXPLAINED + _saddles(summary) + _figure("figure-funnel") + _fallen(summary["counts"])),
        ("crystals", "The best", '<ul class="gallery" id="gallery"></ul>'),
        ("candidates-list", "The list", _opinions(rows, config) + CANDIDATE_LIST),
        ("experiment", "How it was made", key_values(summary["experiment"])),
    ]
    page(
        path,
        title=str(summary["title"]),
        lede=lede,
        blocks=blocks,
        footer="All figures come from shortlist.parquet and funnel.json.",
        data={
            "figures": {name: json.loads(str(figure.to_json())) for name, figure in figures.items()},
            "candidates": records,
            "gallery": [record["id"] for record in records[:12]],
            "judges": [*config.judge_names, *config.confirm_names],
            "elements": {
                z: {"symbol": e.symbol, "name": e.name, "color": e.color, "radius": e.radius, "metal": e.metal}
                for z, e in ELEMENTS.items()
            },
        },
    )


def _record(one: Candidate, row: Mapping[str, Any], config: ScreenConfig) -> dict[str, Any]:
    crystal = one.relaxed
    assert crystal is not None
    group, cell, cif = conventional(one)
    name = formula(dict(reduced_composition(crystal)))
    energies = one.energies([*config.judge_names, *config.confirm_names])
    believed = [judge for judge in config.judge_names if energies[judge] <= config.limit]
    known = {judge: energy for judge, energy in energies.items() if math.isfinite(energy)}
    why = [f"{judge} finds {signed(f'{energy:.3f}')} eV/atom." for judge, energy in known.items()]
    if math.isfinite(one.rmsd):
        volume = signed(f"{one.volume_change:+.0%}")
        why.append(f"Relaxing moved its atoms by {one.rmsd:.2f} Å and its volume by {volume}.")
    confirming = confirmed_by(one, config)
    for judge in config.confirm_names:
        why.append(f"{judge}, which took no part, {'confirms it' if judge in confirming else 'does not confirm it'}.")
    nearest = None
    if row["nearest_id"] is not None:
        kinds = {"polymorph": "other structure of the same formula"}
        similar = f"most similar formula, distance {row['nearest_distance']:.1f}"
        nearest = {
            "id": row["nearest_id"],
            "formula": row["nearest_formula"],
            "kind": row["nearest_kind"],
            "text": kinds.get(row["nearest_kind"], similar),
        }
    return {
        "id": f"{row['rank']}",
        "file": f"{row['rank']:03d}-{name}-{group}",
        "label": "shortlist",
        "formula": name,
        "group": group,
        "symbol": spacegroup_symbol(group),
        "atoms": len(crystal),
        "energy": _rounded(max((known[judge] for judge in config.judge_names if judge in known), default=None)),
        "heldOut": None,
        "relaxed": None,
        "rmsd": _rounded(one.rmsd),
        "gap": None,
        "constant": None,
        "reward": _rounded(one.property),
        "logProb": round(one.log_prob, 2),
        "stable": len(believed) == len(config.judge_names),
        "novel": True,
        "unique": True,
        "sun": one.fulfils(config),
        "valid": composition_valid(crystal),
        "opinions": [_rounded(energies[judge]) for judge in energies],
        "nearest": nearest,
        "why": why,
        "flags": row["flags"],
        "lattice": [round(float(x), 4) for x in cell.lattice.ravel()],
        "numbers": [int(z) for z in cell.numbers],
        "frac": [round(float(x), 5) for x in cell.frac.ravel()],
        "cif": cif,
    }


def _funnel(counts: Mapping[str, int]) -> Figure:
    names = [name for name in STEPS if name in counts]
    figure = plotly().Figure()
    figure.add_funnel(
        y=[STEPS[name] for name in names],
        x=[counts[name] for name in names],
        textinfo="value+percent previous",
        marker={"color": "#0b5c96"},
        connector={"line": {"color": INK, "width": 0.5}},
    )
    figure.update_yaxes(automargin=True)
    return style(figure, "", "", height=420)


def _saddles(summary: Mapping[str, Any]) -> str:
    shaken = summary.get("calls", {}).get("shake", 0)
    if not shaken:
        return ""
    fell = summary["counts"].get("saddles", 0)
    return f"<p>{fell:,} of {shaken:,} that had come to rest were on saddles: moved a little, they fell further.</p>"


def _fallen(counts: Mapping[str, int]) -> str:
    fallen = {name.removeprefix("fell: "): number for name, number in counts.items() if name.startswith("fell: ")}
    if not fallen:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td>{number:,}</td></tr>'
        for name, number in sorted(fallen.items(), key=lambda item: -item[1])
    )
    return f'<details><summary>What the others fell at</summary><table class="headline">{lines}</table></details>'


def _opinions(rows: Sequence[Mapping[str, Any]], config: ScreenConfig) -> str:
    if not rows or not config.confirm_names:
        return ""
    parts = []
    for name in config.confirm_names:
        confirmed = sum(name in row["confirmed_by"] for row in rows)
        parts.append(f"{escape(name)}, which took no part, finds {confirmed} of {len(rows)} below the limit as well.")
    return f"<p>E<sub>hull</sub> in the list is the larger of what the judges find. {' '.join(parts)}</p>"


def _figure(name: str) -> str:
    return f'<div class="figure" id="{name}" role="img" aria-label="How many crystals passed each step"></div>'


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4)
