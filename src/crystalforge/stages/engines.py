"""The engine that a configuration asks for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crystalforge.training.config import EngineConfig
    from crystalforge.training.engine import MakeEngine


def engine_maker(config: EngineConfig) -> MakeEngine:
    """What makes the engine of a loop. Raises InputError when DeepSpeed is asked for and not installed."""
    if config.name == "deepspeed":
        from crystalforge.integrations.deepspeed import DeepSpeedEngine

        return partial(DeepSpeedEngine, zero_stage=config.zero_stage)
    from crystalforge.training.engine import TorchEngine

    return TorchEngine
