"""A configuration as pipeline parameters."""

from __future__ import annotations

import json
from typing import Any

from crystalforge.config import Config
from crystalforge.integrations.dvc import data_version


def arguments(config: Config, workspace: str) -> dict[str, Any]:
    """The parameters of `discovery` for this configuration: each section as JSON text, with a stable key order."""
    sections = config.model_dump(mode="json", by_alias=True)
    seed = sections.pop("seed")
    version = data_version(getattr(config.data.source, "path", None))
    texts = {f"{name}_config": json.dumps(value, sort_keys=True) for name, value in sections.items()}
    return {"workspace": workspace, "seed": seed, "data_version": version} | texts
