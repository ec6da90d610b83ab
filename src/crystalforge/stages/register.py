"""Stage 5: the better of the two models -> the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.files import write_json
from crystalforge.stages.base import Stage, read_record
from crystalforge.stages.card import model_card

if TYPE_CHECKING:
    from crystalforge.config import Config


def better(summary: dict[str, Any]) -> tuple[str, str]:
    """Which model to register, and why: the tuned one when its mean reward is higher with 95 % confidence and it
    repeats itself less than 10 percentage points more often; the base otherwise.

    >>> figure = {"low": 0.1, "high": 0.2, "value": 0.15}
    >>> better({"comparison": {"tuned": {"mean_reward": figure, "unique_rate": {"value": -0.02}}}})[0]
    'tuned'
    """
    found = summary["comparison"]["tuned"]
    gain, unique = found["mean_reward"], found["unique_rate"]["value"]
    if gain["low"] is None or gain["low"] <= 0:
        return (
            "base",
            f"the tuned model's mean reward is not higher with 95 % confidence (difference {_interval(gain)})",
        )
    if unique is not None and unique < -LARGEST_LOSS_OF_UNIQUE:
        return "base", f"the tuned model's share of unique crystals is {-100 * unique:.1f} points lower"
    return "tuned", f"mean reward higher by {_interval(gain)}; unique crystals {100 * (unique or 0):+.1f} points"


LARGEST_LOSS_OF_UNIQUE = 0.10


def register(config: Config, base: Path, tuned: Path, evaluation: Path, out: Path) -> dict[str, Any]:
    """Register the better model under `config.register.name` with its lineage; returns the stage's record.

    Without tracking there is no registry: the choice is still made and recorded.
    """
    inputs = {"base": base, "tuned": tuned, "evaluation": evaluation}
    with Stage("register", config, out, sections=("register",), inputs=inputs, registers=True) as stage:
        if stage.finished is None:
            summary = json.loads((evaluation / "summary.json").read_text())
            choice, reason = better(summary)
            directory = {"base": base, "tuned": tuned}[choice]
            record = read_record(directory, choice)
            outcome: dict[str, Any] = {"model": choice, "reason": reason, "weights": str(directory / "model")}
            if stage.run is not None:
                from crystalforge.integrations.mlflow.registry import register_generator

                judged = read_record(evaluation, "evaluation")
                began = read_record(base, "base")
                origin = began.get("lineage", {})
                tags = judged.get("lineage", {}) | {
                    "model": choice,
                    "reason": reason,
                    "model_hash": record["content"],
                    "base_hash": began["content"],
                    # A base from the registry was trained elsewhere; it brought its lineage with it.
                    "data_hash": origin.get("data_hash") or began["inputs"].get("data", ""),
                    "data_version": origin.get("data_version", ""),
                    "base_model": str(began["metrics"].get("uri", "")),
                    "reward_digest": str(read_record(tuned, "tuned")["metrics"].get("reward_digest", "")),
                    "evaluation_hash": judged["content"],
                    "evaluation_run_id": str(judged["mlflow_run_id"]),
                    "training_run_id": str(record["mlflow_run_id"]),
                }
                version, uri = register_generator(
                    stage.run,
                    directory / "model",
                    name=config.register_.name,
                    alias=config.register_.alias,
                    tags=tags,
                    description=model_card(config.register_.name, summary, choice, reason, tags),
                )
                outcome |= {"name": config.register_.name, "version": version, "uri": uri}
            write_json(out / "registered.json", outcome)
            stage.finish(record["content"], outcome)
    return stage.outcome


def _interval(figure: dict[str, Any]) -> str:
    return f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"
