"""Puts the report together: text and tables here, figures from `figures`, crystals from `candidates`.

The file holds plotly's own script once, the crystal viewer, and all data. A content-security policy in its head
forbids every request, so that it is the same file in a year's time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from crystalforge.common.files import atomic_file
from crystalforge.evaluation.metrics.measures import by_label
from crystalforge.evaluation.report import candidates, figures, judges, leash, sections
from crystalforge.evaluation.report.elements import ELEMENTS
from crystalforge.evaluation.report.figures import History
from crystalforge.evaluation.report.text import headline_table, key_values, objective_table, status_table
from crystalforge.evaluation.report.text import lede as text_lede

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from crystalforge.thermo.hull import HullStore

GALLERY = 12
CANDIDATES = 300


def write_report(
    path: Path,
    table: pa.Table,
    summary: Mapping[str, Any],
    histories: Mapping[str, History],
    metadata: Mapping[str, Any],
    *,
    gallery: int = GALLERY,
    rows: int = CANDIDATES,
    hull: HullStore | None = None,
) -> None:
    """Write the report to `path`, atomically.

    table: what `evaluate_samples` gave, with one label per model or run; the first label is the base that the others
    are compared with, the gallery shows the last one's crystals. summary: `summarise(table)`. histories: rows of
    metrics.jsonl (dicts with `step`) by name; names that begin with `pretrain` or `finetune` are drawn together, so
    several runs can be compared (`finetune tau=0.1`, ...). metadata: `title` (text), `training` (optional:
    `{"spacegroups": {number: share in %}, "elements": {Z: share in %}}` of the training set), and any further
    sections for the experiment summary as nested mappings, such as `run`, `config`, `data`, `reward`, `versions`.
    `monitor` (optional): by name of each fine-tuning, what `rl.monitor.conclusion` gave.
    gallery, rows: crystals shown in three dimensions and in the list. hull: reference phases, to say what each crystal
    competes with.
    """
    rules = summary["protocol"]
    models = by_label(table)
    labels = list(models)
    counted = candidates.with_copies(table)
    limit = candidates.LIMIT if rules.get("stable_at") is None else rules["stable_at"]
    chosen = candidates.records(candidates.choose(counted, rows, hull=hull, limit=limit), dict(rules))
    new = [c for c in chosen if c["label"] == labels[-1] and (c["novel"] or c["sun"])]
    best = [c["id"] for c in new if all(flag["level"] != "red" for flag in c["flags"])][:gallery]
    drawn = _figures(table, models, rules, histories, metadata.get("training", {}))
    blocks = _blocks(table, summary, drawn, chosen, best, metadata)
    data = {
        "figures": {name: json.loads(str(figure.to_json())) for name, (figure, _) in drawn.items()},
        "candidates": chosen,
        "gallery": best,
        "elements": {
            z: {"symbol": e.symbol, "name": e.name, "color": e.color, "radius": e.radius, "metal": e.metal}
            for z, e in ELEMENTS.items()
        },
    }
    page(
        path,
        title=str(metadata.get("title", "Evaluation of generated crystals")),
        lede=text_lede(summary),
        blocks=blocks,
        footer="All figures come from one table, crystals.parquet. Intervals are 95 %.",
        data=data,
    )


def page(
    path: Path,
    *,
    title: str,
    lede: str,
    blocks: Sequence[tuple[str, str, str]],
    footer: str,
    data: Mapping[str, Any],
) -> None:
    """Write the page to `path`, atomically. title and footer are text; lede and the blocks (id, heading, body) HTML;
    data: what page.js draws from, with `figures`, `candidates`, `gallery` and `elements`."""
    from plotly.offline import get_plotlyjs

    here = files("crystalforge.evaluation.report")
    text = Template((here / "page.html").read_text()).substitute(
        title=escape(title),
        lede=lede,
        navigation="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in blocks),
        sections="\n".join(
            f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{escape(heading)}</h2>'
            f"{body}</section>"
            for name, heading, body in blocks
        ),
        footer=escape(footer),
        css=(here / "page.css").read_text(),
        data=script_json(data),
        plotly=get_plotlyjs(),
        viewer=(here / "viewer.js").read_text(),
        script=(here / "page.js").read_text(),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can close the element or open a comment."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _figures(
    table: pa.Table,
    models: Mapping[str, pa.Table],
    rules: Mapping[str, Any],
    histories: Mapping[str, History],
    training: Mapping[str, Mapping[Any, float]],
) -> dict[str, tuple[Figure, str]]:
    """Figures by the id of their place in the page, with a description for those who cannot see them."""
    found: dict[str, tuple[Figure, str]] = {}
    if "e_above_hull" in table.column_names:
        found["figure-energy"] = (
            figures.energy_histogram(table, rules.get("stable_at")),
            "Histogram of the energy above hull of every model's crystals",
        )
    for name, figure, caption in (
        ("figure-agreement", judges.agreement(table, rules.get("stable_at")), "Energy above hull by two judges"),
        ("figure-pareto", judges.pareto(table), "Band gap against dielectric constant"),
    ):
        if figure is not None:
            found[name] = (figure, caption)
    if "relaxed_e_above_hull" in table.column_names:
        found["figure-relaxed"] = (
            figures.energy_histogram(
                table.filter(pc.field("relaxed_asked")), rules.get("stable_at"), column="relaxed_e_above_hull"
            ),
            "Histogram of the energy above hull after relaxing",
        )
    finetune = {name: rows for name, rows in histories.items() if name.startswith("finetune") and rows}
    pretrain = {name: rows for name, rows in histories.items() if name.startswith("pretrain") and rows}
    if finetune:
        found["figure-finetune"] = (figures.finetuning(finetune), "Reward, divergence and shares against step")
    path = leash.reward_against_kl(table, finetune)
    if path is not None:
        found["figure-leash"] = (path, "Mean reward against divergence from the base, and lines of equal objective")
    if pretrain:
        found["figure-pretrain"] = (figures.pretraining(pretrain), "Negative log-likelihood against step")
    elements = {label: figures.element_shares(rows) for label, rows in models.items()}
    if training.get("elements"):
        known = {int(z): float(share) for z, share in training["elements"].items()}
        elements = {figures.TRAINING: known} | elements
    for number, (label, shares) in enumerate(elements.items()):
        found[f"figure-elements-{number}"] = (
            figures.periodic_table(shares, label),
            f"Elements in the crystals of {label}",
        )
    if len(models) > 1:
        first, last = next(iter(models)), list(models)[-1]
        found[f"figure-elements-{len(elements)}"] = (
            figures.element_change(elements[first], elements[last], f"{last} − {first}"),
            f"Change of each element's share from {first} to {last}",
        )
    groups = {label: figures.spacegroup_shares(rows.column("spacegroup").to_numpy()) for label, rows in models.items()}
    if training.get("spacegroups"):
        known = {int(g): float(share) for g, share in training["spacegroups"].items()}
        groups = {figures.TRAINING: known} | groups
    if any(groups.values()):
        found["figure-systems"] = (figures.crystal_systems(groups), "Share of each crystal system")
        found["figure-spacegroups"] = (figures.spacegroups(groups), "Share of the commonest space groups")
    return found


def _blocks(
    table: pa.Table,
    summary: Mapping[str, Any],
    drawn: Mapping[str, tuple[Figure, str]],
    chosen: Sequence[Mapping[str, Any]],
    best: Sequence[str],
    metadata: Mapping[str, Any],
) -> list[tuple[str, str, str]]:
    """The page's sections: id, heading, HTML."""

    def place(*names: str) -> str:
        return "".join(
            f'<div class="figure" id="{name}" role="img" aria-label="{escape(drawn[name][1])}" '
            f'style="min-height:{drawn[name][0].layout.height}px"></div>'
            for name in names
            if name in drawn
        )

    blocks = [
        ("headline", "Headline", headline_table(summary) + objective_table(summary) + _rules(summary["protocol"]))
    ]
    by_id = {c["id"]: c for c in chosen}
    if all(by_id[name]["sun"] for name in best):
        intro = "Stable, unique and novel crystals, the most credible first, with what speaks against each."
    else:
        intro = "Novel crystals, S.U.N. ones first. Not all of those shown are stable: see the energy above hull."
    blocks.append(
        (
            "crystals",
            "Best new crystals",
            (
                f"<p>{intro} Drag to rotate, or focus a view and use the arrow keys.</p>"
                if best
                else '<p class="note">No novel crystal was found among the samples.</p>'
            )
            + '<ul class="gallery" id="gallery"></ul>',
        )
    )
    if "figure-energy" in drawn:
        blocks.append(
            (
                "energy",
                "Energy above hull",
                "<p>As a share of all samples, also those without an energy. The outermost bins hold everything "
                "beyond them.</p>"
                + place("figure-energy")
                + (f"<h3>After relaxing</h3><p>{_relaxed(table)}</p>" if "figure-relaxed" in drawn else "")
                + place("figure-relaxed"),
            )
        )
    if "figure-agreement" in drawn:
        opinions = sections.opinions(table)
        blocks.append(("opinion", "A second opinion", opinions + place("figure-agreement")))
    if "figure-pareto" in drawn:
        intro = "<p>Lines join each model's Pareto front; along dotted lines the product of both is the same.</p>"
        blocks.append(("properties", "Band gap and dielectric constant", intro + place("figure-pareto")))
    if "figure-leash" in drawn:
        intro = (
            "<p>Along a dotted line the objective, reward less tau times KL, is the same; no law lies above the dashed "
            "one. Hollow: only crystals that pass the guards. The best of N of the base asks the reward N times for a "
            "crystal; its KL is an upper bound.</p>"
        )
        blocks.append(("leash", "Reward against KL", intro + place("figure-leash")))
    if "figure-finetune" in drawn or "figure-pretrain" in drawn:
        parts = ""
        if "figure-finetune" in drawn:
            parts += "<h3>Reinforcement</h3>" + place("figure-finetune")
        if "figure-pretrain" in drawn:
            parts += "<h3>Pre-training</h3>" + place("figure-pretrain")
        blocks.append(("training", "Training", parts))
    watched = sections.monitor(metadata.get("monitor", {}))
    if watched:
        blocks.append(("monitor", "Monitor", watched))
    tables = [name for name in drawn if name.startswith("figure-elements-")]
    blocks.append(
        (
            "chemistry",
            "Chemistry",
            "<p>Share of crystals that contain each element.</p>" + f'<div class="pair">{place(*tables)}</div>',
        )
    )
    if "figure-spacegroups" in drawn:
        shares = sections.spacegroups(table)
        blocks.append(("symmetry", "Symmetry", place("figure-systems") + shares + place("figure-spacegroups")))
    sets = sections.coverage(summary.get("coverage", {}))
    if sets:
        blocks.append(("coverage", "Beside real crystals", sets))
    blocks.append(("candidates-list", "Candidates", CANDIDATE_LIST))
    blocks.append(("scoring", "What the reward did", status_table(summary)))
    details = {key: value for key, value in metadata.items() if key not in ("title", "training", "monitor")}
    blocks.append(("experiment", "Experiment", key_values(details)))
    return blocks


def _relaxed(table: pa.Table) -> str:
    asked = table.filter(pc.field("relaxed_asked"))
    done = int(pc.sum(asked.column("relaxed_converged")).as_py() or 0)  # type: ignore[attr-defined]
    return (
        f"{len(asked):,} of {len(table):,} samples, drawn at random, were relaxed; {done:,} of them came to rest. "
        "Shares are of those that were to be relaxed."
    )


def _rules(rules: Mapping[str, Any]) -> str:
    matcher = rules["matcher"]
    limit = ""
    if rules["stable_at"] is not None:
        word = "at most" if rules["stable_inclusive"] else "below"
        limit = f" Stable: E<sub>hull</sub> {word} {rules['stable_at']:g} eV/atom of the {rules['energy']} crystal."
    return (
        f"<p>Protocol <b>{escape(rules['name'])}</b>, version {rules['version']}.{limit} Unique: the first of its kind "
        "among the model's samples. Novel: matches no crystal of the training set. Both by StructureMatcher with "
        f"tolerances {matcher['ltol']:g}, {matcher['stol']:g} and {matcher['angle_tol']:g}°. Percentages are of all "
        "samples, also those from which no crystal could be built.</p>"
    )


CANDIDATE_LIST = """
<p>One row per different crystal, best first: without a red flag before with one, then by how many judges agree, then by
the largest of their energies; nothing is gained by lying far below the hull. Search for elements (<code>Li O</code>), a
formula, a space group or an identifier. Nearest known: the distance of a match is the rms displacement in units of
(volume per atom)<sup>1/3</sup>; that of another formula is the mean number of steps its atoms have to move on
Pettifor's chemical scale.</p>
<form class="filters" id="filters" role="search">
  <input type="search" name="search" placeholder="Search" aria-label="Search candidates">
  <label>Model <select name="model"><option value="">all</option></select></label>
  <label class="sorter">Sort <select name="sort"><option value="">best first</option></select></label>
  <label><span>E<sub>hull</sub> at most</span> <input type="number" name="most" step="0.01"></label>
  <label><input type="checkbox" name="sun"> S.U.N.</label>
  <label><input type="checkbox" name="stable"> stable</label>
  <label><input type="checkbox" name="novel"> novel</label>
  <label><input type="checkbox" name="valid"> valid</label>
  <label><input type="checkbox" name="unflagged"> no red flag</label>
</form>
<div class="scroll"><table class="candidates stack" id="candidates">
<thead><tr></tr></thead><tbody></tbody></table></div>
<div class="pager"><span id="count" role="status"></span><span class="spring"></span>
<button type="button" id="previous">Previous</button><span id="page"></span>
<button type="button" id="next">Next</button>
<button type="button" id="all-csv">CSV</button><button type="button" id="all-cif">All CIFs</button></div>
"""
