"""Structures with known properties -> a property predictor, its errors, its parity plot, a registered version."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, sha256_file, sha256_json, write_json
from crystalforge.stages.base import Stage

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.integrations.mlflow.tracking import StageRun

COLUMNS = 3  # of the parity plot's grid
DIAGONAL = ("eps_xx", "eps_yy", "eps_zz")  # targets whose mean is the dielectric constant


def train_predictor(config: Config, out: Path, data_version: str | None = None) -> dict[str, Any]:
    """Train what `config.predictor` describes; leaves `predictor/model`, `predictor/parity.csv` and `parity.html`.

    Returns the stage's record: its metrics are the errors per split and target, and the registered version where runs
    are tracked. data_version: as for `ingest`, of the table. Raises InputError when there is no predictor section, or
    its table is unusable.
    """
    if config.predictor is None:
        raise InputError("there is no predictor section", source="params", remedy="give --set predictor.data=TABLE")
    settings = config.predictor
    for table in (settings.data, *settings.extra):
        if not table.is_file():
            raise InputError("no such file", source=table, remedy="give a parquet or CSV with predictor.data")
    if not data_version:
        from crystalforge.integrations import dvc

        recorded = dvc.version_of(str(settings.data), [settings.data])
        data_version = recorded if recorded == dvc.data_version(str(settings.data)) else ""
    options: dict[str, Any] = {"data": sha256_file(settings.data)}
    lineage = {"data_hash": options["data"]} | ({"data_version": data_version} if data_version else {})
    if settings.extra:
        options["extra"] = [sha256_file(table) for table in settings.extra]
    if settings.initial is not None:
        options["initial"] = {path.name: sha256_file(path) for path in _files(settings.initial)}
    sections = ("seed", "predictor")
    with Stage("train_predictor", config, out, sections=sections, options=options, registers=True) as stage:
        if stage.finished is None:
            known = stage.before  # trained already, and registered elsewhere or nowhere
            metrics = _trained(config, stage, out) if known is None else _figures(known["metrics"])
            model = out / "predictor" / "model"
            content = sha256_json({str(path.relative_to(model)): sha256_file(path) for path in _files(model)})
            outcome: dict[str, Any] = dict(metrics)
            if stage.run is not None:
                outcome |= _registered(config, stage.run, model, metrics, lineage | {"model_hash": content})
            write_json(out / "registered.json", outcome)
            stage.finish(content, outcome, lineage)
    return stage.outcome


def _trained(config: Config, stage: Stage, out: Path) -> dict[str, float]:
    """Train, draw the parity plot, record both; the errors by split and target, with intervals."""
    from crystalforge.potentials.predictor.predictor import train_predictor as run

    assert config.predictor is not None, "looked at by the caller"
    settings = config.predictor
    result = run(settings, out / "predictor", seed=config.seed, on_metrics=stage.on_metrics)
    metrics = result.metrics | split_errors(result.parity, settings.targets)
    write_parity_plot(out / "parity.html", result.parity, settings.targets, metrics)
    stage.artifact(out / "parity.html")
    stage.artifact(result.parity)
    return metrics


def _registered(
    config: Config, run: StageRun, model: Path, metrics: dict[str, float], lineage: dict[str, str]
) -> dict[str, str]:
    """Name, version and address in the registry; nothing, and a warning, where that is away: hours of training are
    done all the same, and the same command registers them later."""
    from crystalforge.integrations.mlflow.registry import register_files

    assert config.predictor is not None, "looked at by the caller"
    name, tags = config.register_.predictor, lineage | {"training_run_id": run.run_id}
    card = predictor_card(config.predictor.targets, metrics, tags)
    try:
        version, uri = register_files(
            run,
            model,
            name=name,
            alias=config.register_.alias,
            tags=tags,
            description=card,
            kind="predictor",
            metrics={key: value for key, value in metrics.items() if key.startswith(("mae", "baseline", "gain"))},
        )
    except InputError as error:
        print(f"warning: the predictor is trained, but not registered: {error}", file=sys.stderr)
        print("  The same command registers it without training it again.", file=sys.stderr)
        return {}
    return {"name": name, "version": version, "uri": uri}


def _figures(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in ("name", "version", "uri")}


def split_errors(table: Path, targets: tuple[str, ...]) -> dict[str, float]:
    """Intervals of the errors in a parity table's test split, the unit of observation being the crystal.

    mae_test_low, mae_test_high: of the mean absolute error over the targets; gain_test, gain_test_low, gain_test_high:
    how much less it is than that of predicting the training median (paired). For dielectric tensors the same of the
    constant (mean eigenvalue), as mae_test_constant, baseline_mae_test_constant and so on. 95 %, Student's t.
    """
    from crystalforge.evaluation.metrics.statistics import mean

    parts = read_parity(table, targets)
    pairs = {"": (parts["test"], np.median(parts["train"][0], axis=0))}
    if set(DIAGONAL) <= set(targets):
        columns = [targets.index(name) for name in DIAGONAL]
        constants = {
            part: (true[:, columns].mean(axis=1, keepdims=True), predicted[:, columns].mean(axis=1, keepdims=True))
            for part, (true, predicted) in parts.items()
        }
        pairs["_constant"] = (constants["test"], np.median(constants["train"][0], axis=0))
    found = {}
    for suffix, ((true, predicted), median) in pairs.items():
        error, baseline = (np.abs(true - guess).mean(axis=1) for guess in (predicted, median))
        own, gain = mean(error), mean(baseline - error)
        found |= {
            f"mae_test{suffix}": own.value,
            f"mae_test{suffix}_low": own.low,
            f"mae_test{suffix}_high": own.high,
            f"baseline_mae_test{suffix}": float(baseline.mean()),
            f"gain_test{suffix}": gain.value,
            f"gain_test{suffix}_low": gain.low,
            f"gain_test{suffix}_high": gain.high,
        }
    return found


def read_parity(table: Path, targets: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """True and predicted values, [n, K] each, by split."""
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    return {
        part: (
            np.array([[float(row[name]) for name in targets] for row in rows if row["split"] == part]),
            np.array([[float(row[f"{name}_predicted"]) for name in targets] for row in rows if row["split"] == part]),
        )
        for part in ("train", "val", "test")
    }


def write_parity_plot(path: Path, table: Path, targets: tuple[str, ...], metrics: dict[str, float]) -> None:
    """Predicted against true, one panel per target, one colour per split: one HTML file that needs no network."""
    from plotly.subplots import make_subplots

    from crystalforge.evaluation.report.figures import COLORS, plotly

    go = plotly()
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    columns = min(COLUMNS, len(targets))
    titles = [f"{name}: test error {metrics[f'mae_test_{name}']:.3g}" for name in targets]
    figure = make_subplots(rows=-(-len(targets) // columns), cols=columns, subplot_titles=titles)
    for k, name in enumerate(targets):
        row, col = k // columns + 1, k % columns + 1
        for color, split in zip(COLORS, ("train", "val", "test"), strict=False):
            part = [r for r in rows if r["split"] == split]
            figure.add_trace(
                go.Scattergl(
                    x=[float(r[name]) for r in part],
                    y=[float(r[f"{name}_predicted"]) for r in part],
                    text=[f"row {r['index']}" for r in part],
                    mode="markers",
                    marker={"color": color, "size": 5 if split == "train" else 7},
                    name=split,
                    legendgroup=split,
                    showlegend=k == 0,
                ),
                row=row,
                col=col,
            )
        both = np.array([[float(r[name]), float(r[f"{name}_predicted"])] for r in rows])
        ends = [float(both.min()), float(both.max())]
        figure.add_trace(
            go.Scatter(x=ends, y=ends, mode="lines", line={"color": COLORS[0], "dash": "dash"}, showlegend=False),
            row=row,
            col=col,
        )
    figure.update_xaxes(title_text="true")
    figure.update_yaxes(title_text="predicted")
    figure.update_layout(
        template="plotly_white",
        title=f"Mean absolute error on the test split {metrics['mae_test']:.4g}; "
        f"of predicting the median {metrics['baseline_mae_test']:.4g}",
        height=120 + 320 * -(-len(targets) // columns),
    )
    with atomic_file(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True, full_html=True)


def predictor_card(targets: tuple[str, ...], metrics: dict[str, float], tags: dict[str, str]) -> str:
    """The registered version's description: what it predicts, how well, from what. Markdown."""
    lines = [
        f"M3GNet predictor of {', '.join(targets)}; {metrics['n_train']:.0f} crystals to train, "
        f"{metrics['n_val']:.0f} to choose the epoch, {metrics['n_test']:.0f} to test.",
        "",
        "| target | test MAE |",
        "|---|---|",
        *(f"| {name} | {metrics[f'mae_test_{name}']:.4g} |" for name in targets),
        f"| all | {metrics['mae_test']:.4g} [{metrics['mae_test_low']:.4g}, {metrics['mae_test_high']:.4g}] |",
        f"| predicting the training median | {metrics['baseline_mae_test']:.4g} |",
        "",
        *(f"- {key}: `{value}`" for key, value in tags.items()),
    ]
    return "\n".join(lines)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
