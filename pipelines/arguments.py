"""A configuration as pipeline parameters, and back."""

from __future__ import annotations

from typing import Any

from crystalforge.config import Config


def arguments(config: Config, workspace: str) -> dict[str, Any]:
    """The parameters of `discovery` for this configuration."""
    sections = config.model_dump(mode="json", by_alias=True)
    seed = sections.pop("seed")
    return {"workspace": workspace, "seed": seed} | {f"{name}_config": value for name, value in sections.items()}
