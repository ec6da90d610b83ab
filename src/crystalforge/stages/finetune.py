"""Stage 3: reinforcement of the base model against the reward -> the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.stages.base import Stage, write_history

if TYPE_CHECKING:
    from crystalforge.config import Config


def finetune(config: Config, data: Path, base: Path, out: Path) -> dict[str, Any]:
    """Tune `base/model` on its own samples, space groups drawn as in `data`'s training split; leaves `out/model`.

    Resumes where an interrupted call stopped. Returns the stage's record. Raises RewardUnavailable when the reward
    service is away for longer than it is waited for; what was computed is kept.
    """
    inputs = {"data": data, "base": base}
    with Stage("finetune", config, out, sections=("seed", "reward", "finetune"), inputs=inputs) as stage:
        if stage.finished is None:
            from crystalforge.data.store import TokenStore
            from crystalforge.model.checkpoint import load_model, weights_hash
            from crystalforge.rl.finetune import finetune as run
            from crystalforge.stages.service import open_reward

            weights = TokenStore.open(data / "store").spacegroup_weights("train")
            with open_reward(config, out) as reward:
                result = run(
                    config.finetune,
                    base / "model",
                    reward,
                    weights,
                    out,
                    seed=config.seed,
                    on_metrics=stage.on_metrics,
                )
                version = reward.version
            write_history(out)
            stage.artifact(out / "history.csv")
            metrics = result.metrics | {"reward": version.name, "reward_digest": version.digest}
            stage.finish(weights_hash(load_model(result.model_dir).model), metrics)
    return stage.outcome
