"""Several fine-tunings of one base model as one comparison: a table, a summary, a report.

What was judged is not judged again: figures come from each variant's own evaluation. Variants that differ in the seed
alone are one row, whose interval comes from their spread (`evaluation.summary.across_seeds`); a single seed keeps the
interval of its own samples. The base model, judged once per seed, is pooled likewise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, sha256_json, write_json
from crystalforge.stages.base import Stage, read_record

if TYPE_CHECKING:
    from crystalforge.config import Config

SHOWN = ("mean_reward", "mean_e_above_hull", "sun_rate", "unique_rate", "novel_rate", "kl_to_base")

Summary = Mapping[str, Any]
Order = tuple[str, float]  # algorithm, tau


def compare(config: Config, tuned: Sequence[Path], evaluations: Sequence[Path], out: Path) -> dict[str, Any]:
    """Gather the outputs of `finetune` and `evaluate` of all variants; leaves `summary.json`, `variants.csv` and
    `report.html` in `out`.

    The two lists may be in any order: an evaluation names the model that it judged. Returns the stage's record; its
    metrics are each variant's figures. Raises InputError when an evaluation belongs to none of the models, or when
    protocols differ.
    """
    inputs = {f"tuned.{k}": path for k, path in enumerate(tuned)}
    inputs |= {f"evaluations.{k}": path for k, path in enumerate(evaluations)}
    with Stage("compare", config, out, sections=(), inputs=inputs) as stage:
        if stage.finished is None:
            found = _matched(tuned, evaluations)
            named = len({record["config"]["finetune"]["algorithm"] for record, _, _ in found}) > 1
            found.sort(key=lambda item: (labels(item[0])[1], item[0]["config"]["seed"]))
            summary = combine([(labels(record, named=named), summary) for record, summary, _ in found])
            write_json(out / "summary.json", summary)
            with atomic_file(out / "variants.csv") as path:
                path.write_text(_csv(found))
            several = len({record["config"]["seed"] for record, _, _ in found}) > 1
            histories = {
                f"finetune {labels(record, named=named)[0]}"
                + (f" seed {record['config']['seed']}" if several else ""): rows
                for record, _, rows in found
                if rows
            }
            write_comparison(out / "report.html", summary, histories)
            for name in ("summary.json", "variants.csv", "report.html"):
                stage.artifact(out / name)
            metrics = {
                f"{label}.{name}": figure["value"]
                for label, model in summary["models"].items()
                for name, figure in model["metrics"].items()
                if figure["value"] is not None
            }
            stage.finish(sha256_json(summary), metrics)
    return stage.outcome


def combine(variants: Sequence[tuple[tuple[str, Order], Summary]]) -> dict[str, Any]:
    """One summary with the base and every variant from the variants' own; `(label, order)` names each.

    Has the form of `evaluation.summary.summarise`, and `experiments`: how many seeds are behind each label.
    """
    from crystalforge.evaluation.metrics.summary import across_seeds

    protocols = [summary["protocol"] for _, summary in variants]
    if any(protocol != protocols[0] for protocol in protocols):
        raise InputError("the variants were judged by different protocols", remedy="evaluate them by one")
    groups: dict[str, list[Summary]] = {}
    for (label, _), summary in sorted(variants, key=lambda item: item[0][1]):
        groups.setdefault(label, []).append(summary)
    baseline = variants[0][1]["baseline"]
    models, comparison = {}, {}
    for label, summaries in groups.items():
        pooled: Summary = summaries[0] if len(summaries) == 1 else across_seeds(summaries)
        if baseline not in models or len(summaries) > models[baseline]["experiments"]:
            models[baseline] = _model(baseline, summaries, pooled)
        models[label] = _model("tuned", summaries, pooled)
        comparison[label] = pooled["comparison"]["tuned"]
    return {"protocol": protocols[0], "models": models, "baseline": baseline, "comparison": comparison}


def labels(record: Mapping[str, Any], *, named: bool = False) -> tuple[str, Order]:
    """How a fine-tuning is called in the comparison (`named`: with its algorithm), and what it is ordered by."""
    settings = record["config"]["finetune"]
    algorithm = str(settings["algorithm"])
    return (f"{algorithm} " if named else "") + f"tau={settings['tau']:g}", (algorithm, float(settings["tau"]))


def write_comparison(path: Path, summary: Summary, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One HTML page with everything in it: the table, each figure against the variant, the courses of fine-tuning."""
    from plotly.offline import get_plotlyjs

    from crystalforge.evaluation.report import figures
    from crystalforge.evaluation.report.text import headline_table, key_values
    from crystalforge.evaluation.report.write import script_json

    drawn = [("Figures of every variant", _against_variant(summary))]
    names = list(histories)
    for first in range(0, len(names), len(figures.COLORS)):  # no more courses in a figure than it has colours
        part = names[first : first + len(figures.COLORS)]
        drawn.append(("In fine-tuning", figures.finetuning({name: histories[name] for name in part})))
    places = "".join(
        f'<section><h2>{escape(h)}</h2><div id="figure-{k}"></div></section>' for k, (h, _) in enumerate(drawn)
    )
    data = script_json([json.loads(str(figure.to_json())) for _, figure in drawn])
    css = (files("crystalforge.evaluation.report") / "page.css").read_text()
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    count = sum(model["experiments"] for label, model in summary["models"].items() if label != summary["baseline"])
    with atomic_file(path) as temporary:
        temporary.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>Fine-tuning compared</title><style>{css}</style></head><body><header>"
            f'<p class="eyebrow">crystalforge · comparison</p><h1>Fine-tuning compared</h1><p class="lede">{count} '
            f"fine-tunings of one base model. Where a variant has several seeds, its interval is their spread.</p>"
            f'</header><main id="main"><section><h2>Figures</h2>{headline_table(summary)}</section>{places}'
            f"<section><h2>How they were judged</h2>{key_values({'protocol': summary['protocol']})}</section></main>"
            f"<footer><p>Intervals are 95 %.</p></footer><script>{get_plotlyjs()}</script><script>"
            f"const drawn = {data}; drawn.forEach((figure, k) => Plotly.newPlot('figure-' + k, figure.data, "
            f"figure.layout, {{responsive: true, displaylogo: false}}));</script></body></html>",
            encoding="utf-8",
        )


def _against_variant(summary: Summary) -> Any:
    """Small multiples: each figure with its interval against the variant, the base as a dashed line."""
    from plotly.subplots import make_subplots

    from crystalforge.evaluation.metrics.measures import METRICS
    from crystalforge.evaluation.report.figures import COLORS, plotly

    go = plotly()
    models = {label: model["metrics"] for label, model in summary["models"].items()}
    base = models.pop(summary["baseline"])
    names = [name for name in SHOWN if all(_known(metrics.get(name)) for metrics in models.values())]
    titles = [" ".join(part for part in METRICS[name][:2] if part) for name in names]
    rows = max(1, -(-len(names) // 2))
    figure = make_subplots(rows=rows, cols=2, subplot_titles=titles)
    for k, name in enumerate(names):
        scale = 100.0 if METRICS[name][1] == "%" else 1.0
        found = [metrics[name] for metrics in models.values()]
        up = [scale * (f["high"] - f["value"]) if f["high"] is not None else 0.0 for f in found]
        down = [scale * (f["value"] - f["low"]) if f["low"] is not None else 0.0 for f in found]
        figure.add_trace(
            go.Scatter(
                x=list(models),
                y=[scale * f["value"] for f in found],
                error_y={"array": up, "arrayminus": down},
                mode="markers",
                marker={"color": COLORS[1], "size": 9},
                showlegend=False,
            ),
            row=k // 2 + 1,
            col=k % 2 + 1,
        )
        if _known(base.get(name)):
            level: Any = {"row": k // 2 + 1, "col": k % 2 + 1}  # plotly's annotations allow text alone
            figure.add_hline(y=scale * base[name]["value"], line_dash="dash", line_color=COLORS[0], **level)
    figure.update_xaxes(type="category")
    figure.update_layout(template="plotly_white", height=280 * rows, margin={"l": 50, "r": 20, "t": 40, "b": 40})
    return figure


def _known(figure: Mapping[str, Any] | None) -> bool:
    return figure is not None and figure["value"] is not None


def _model(label: str, summaries: Sequence[Summary], pooled: Summary) -> dict[str, Any]:
    """One model of the combined summary; n counts the crystals of all seeds."""
    status: dict[str, int] = {}
    for summary in summaries:
        for kind, count in summary["models"][label]["status"].items():
            status[kind] = status.get(kind, 0) + count
    return {
        "n": sum(summary["models"][label]["n"] for summary in summaries),
        "experiments": len(summaries),
        "metrics": pooled["models"][label]["metrics"],
        "status": status,
    }


def _matched(
    tuned: Sequence[Path], evaluations: Sequence[Path]
) -> list[tuple[dict[str, Any], Summary, list[dict[str, Any]]]]:
    """(record of the fine-tuning, summary of its evaluation, its history) for every variant."""
    models: dict[str, list[Path]] = {}
    for path in tuned:
        models.setdefault(read_record(path, "tuned")["content"], []).append(path)
    found = []
    for path in evaluations:
        judged = read_record(path, "evaluation")["inputs"]["tuned"]
        if not models.get(judged):
            raise InputError(f"judged the model {judged[:12]}, which is none of those given", source=path)
        model = models[judged].pop(0)
        history = model / "metrics.jsonl"
        rows = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
        found.append((read_record(model, "tuned"), json.loads((path / "summary.json").read_text()), rows))
    return found


def _csv(found: Sequence[tuple[Mapping[str, Any], Summary, Any]]) -> str:
    """One line per variant and seed, for those who draw their own figures."""
    names = list(found[0][1]["models"]["tuned"]["metrics"])
    lines = [",".join(["algorithm", "tau", "seed", "model_hash", *names])]
    for record, summary, _ in found:
        metrics = summary["models"]["tuned"]["metrics"]
        values = ["" if metrics[name]["value"] is None else f"{metrics[name]['value']:.6g}" for name in names]
        tuning, seed = record["config"]["finetune"], record["config"]["seed"]
        lines.append(",".join([tuning["algorithm"], f"{tuning['tau']:g}", str(seed), record["content"], *values]))
    return "\n".join(lines) + "\n"
