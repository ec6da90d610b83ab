"""Stage 2: maximum likelihood on the store's training split -> the base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.stages.base import Stage, write_history

if TYPE_CHECKING:
    from crystalforge.config import Config


def pretrain(config: Config, data: Path, out: Path) -> dict[str, Any]:
    """Train on `data/store` and leave the model in `out/model`; resumes where an interrupted call stopped.

    Under torchrun every process calls it, on the same (shared) directories; the first one records. Returns the
    stage's record; `content` is the hash of the weights.
    """
    with Stage("pretrain", config, out, sections=("seed", "model", "pretrain"), inputs={"data": data}) as stage:
        if stage.finished is None:
            from crystalforge.data.store import TokenStore
            from crystalforge.model.checkpoint import load_model, weights_hash
            from crystalforge.stages.engines import engine_maker
            from crystalforge.stages.models import find_model
            from crystalforge.training.pretrain import pretrain as run
            from crystalforge.training.ranks import open_ranks

            engine, start = config.pretrain.engine, config.pretrain.start
            with open_ranks(engine.device) as ranks:
                result = run(
                    config.model,
                    config.pretrain,
                    TokenStore.open(data / "store"),
                    out,
                    seed=config.seed,
                    on_metrics=stage.on_metrics,
                    ranks=ranks,
                    make_engine=engine_maker(engine),
                    start=None if start is None else find_model(Path(start)),
                )
                content = ranks.by_first(lambda: weights_hash(load_model(result.model_dir).model))
            if stage.records:
                write_history(out)
                stage.artifact(out / "history.csv")
            stage.finish(content, result.metrics)
    return stage.outcome
