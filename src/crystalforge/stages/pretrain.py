"""Stage 2: maximum likelihood on the store's training split -> the base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.stages.base import Stage, write_history

if TYPE_CHECKING:
    from crystalforge.config import Config


def pretrain(config: Config, data: Path, out: Path) -> dict[str, Any]:
    """Train on `data/store` and leave the model in `out/model`; resumes where an interrupted call stopped.

    Returns the stage's record; `content` is the hash of the weights.
    """
    with Stage("pretrain", config, out, sections=("seed", "model", "pretrain"), inputs={"data": data}) as stage:
        if stage.finished is None:
            from crystalforge.data.store import TokenStore
            from crystalforge.model.checkpoint import load_model, weights_hash
            from crystalforge.training.pretrain import pretrain as run

            store = TokenStore.open(data / "store")
            result = run(config.model, config.pretrain, store, out, seed=config.seed, on_metrics=stage.on_metrics)
            write_history(out)
            stage.artifact(out / "history.csv")
            stage.finish(weights_hash(load_model(result.model_dir).model), result.metrics)
    return stage.outcome
