"""Stage 4: base and tuned model, judged by the same protocol -> one table, one summary, one report."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.files import sha256_file, write_json
from crystalforge.common.seeds import derived
from crystalforge.stages.base import Stage, read_record

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.data.store import TokenStore
    from crystalforge.rewards import RewardVersion

TABLE, SUMMARY, REPORT = "crystals.parquet", "summary.json", "report.html"


def evaluate(config: Config, data: Path, base: Path, tuned: Path, out: Path) -> dict[str, Any]:
    """Draw from both models, score, match against the training split; leaves the per-crystal table, `summary.json`
    and `report.html` in `out`.

    Both models get the same space groups and the same random streams. Resumes where an interrupted call stopped.
    Returns the stage's record. Raises RewardUnavailable when the reward service is away for too long.
    """
    inputs = {"data": data, "base": base, "tuned": tuned}
    with Stage("evaluate", config, out, sections=("seed", "reward", "evaluate"), inputs=inputs) as stage:
        if stage.finished is None:
            from crystalforge.data.store import TokenStore
            from crystalforge.evaluation.generate import ModelSource
            from crystalforge.evaluation.metrics import evaluate_samples
            from crystalforge.evaluation.reference import Reference
            from crystalforge.evaluation.report.write import write_report
            from crystalforge.evaluation.summary import summarise
            from crystalforge.stages.service import open_reward

            store = TokenStore.open(data / "store")
            settings = config.evaluate
            models = {"base": base / "model", "tuned": tuned / "model"}
            sources = [
                ModelSource(
                    label=label,
                    model=model,
                    base=models["base"],
                    spacegroup_weights=store.spacegroup_weights("train"),
                    samples=settings.samples,
                    seed=derived(config.seed, "evaluate"),  # not the streams that fine-tuning saw
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                )
                for label, model in models.items()
            ]
            lineage = {
                label: {
                    "run_id": (stage.run.run_id if stage.run is not None else "") or "",
                    "model_hash": read_record(directory, label)["content"],
                    "data_hash": read_record(data, "data")["content"],
                }
                for label, directory in (("base", base), ("tuned", tuned))
            }
            with open_reward(config, out) as reward:
                table = evaluate_samples(
                    sources, reward, Reference.from_store(store), settings, out=out, lineage=lineage
                )
                judge = reward.version
            summary = summarise(table)
            write_json(out / SUMMARY, summary)
            histories = {"pretrain": _history(base), "finetune": _history(tuned)}
            write_report(
                out / REPORT,
                table,
                summary,
                histories,
                _metadata(config, store, judge, lineage),
                gallery=settings.gallery,
                rows=settings.candidates,
            )
            for name in (SUMMARY, REPORT, TABLE):
                stage.artifact(out / name)
            stage.finish(sha256_file(out / TABLE), _headline(summary))
    return stage.outcome


def _history(directory: Path) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _headline(summary: dict[str, Any]) -> dict[str, float]:
    """Each model's figures and the differences, flat: what the registry and the pipeline show."""
    flat = {}
    for label, model in summary["models"].items():
        flat |= {f"{label}.{name}": found["value"] for name, found in model["metrics"].items()}
    for label, found in summary["comparison"].items():
        flat |= {f"{label}-{summary['baseline']}.{name}": value["value"] for name, value in found.items()}
    return {name: value for name, value in flat.items() if value is not None}


def _metadata(
    config: Config, store: TokenStore, judge: RewardVersion, lineage: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """What the report says about where its figures come from."""
    import numpy as np

    from crystalforge.evaluation.report.figures import spacegroup_shares

    tokens = store.tokens(store.split("train"))
    # A crystal counts once for each element in it, however often it occurs.
    elements = np.bincount(np.concatenate([np.unique(row[row > 0]) for row in tokens.element]), minlength=119)
    return {
        "title": "Crystals before and after fine-tuning",
        "training": {
            "spacegroups": spacegroup_shares(tokens.spacegroup),
            "elements": {int(z): 100 * float(n) / len(tokens) for z, n in enumerate(elements) if n},
        },
        "run": {"seed": config.seed, "config hash": config.digest, **lineage["tuned"]},
        "models": {label: values["model_hash"] for label, values in lineage.items()},
        "data": {"source": config.data.source.kind, "hash": lineage["tuned"]["data_hash"], **store.manifest["counts"]},
        "reward": {"name": judge.name, "digest": judge.digest, **{f"golden {k}": v for k, v in judge.golden.items()}},
        "config": config.sections(("model", "pretrain", "finetune", "evaluate")),
        "versions": {name: version(name) for name in ("crystalforge", "torch", "numpy", "pymatgen", "spglib")},
    }
