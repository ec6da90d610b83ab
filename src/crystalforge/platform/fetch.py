"""From the registry, or from a directory: a base model for a pipeline that does not train one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_directory, sha256_file
from crystalforge.stages.base import Stage
from crystalforge.stages.models import find_base

if TYPE_CHECKING:
    from crystalforge.config import Config

REGISTERED = "models:/"
WEIGHTS = "model.safetensors"
LINEAGE = ("data_version", "data_hash", "model_hash")  # tags that a registered version brings along


def fetch(config: Config, model: str, out: Path) -> dict[str, Any]:
    """Leave the generator `model` in `out/model`, checked; returns the stage's record, `content` its weights' hash.

    model: models:/name@alias, models:/name/version, the name of a shipped model, or a directory as `pretrain` leaves
    it (its `model`, or the directory around it). Raises InputError when there is no such model, or it is damaged.
    """
    address = pinned(config, model)
    options = {"model": address, "weights": _weights(config, address)}
    with Stage("fetch", config, out, sections=(), options=options) as stage:
        if stage.finished is None:
            from crystalforge.model.checkpoint import load_model, weights_hash

            lineage: dict[str, str] = {}
            with atomic_directory(out / "model") as place, tempfile.TemporaryDirectory() as temporary:
                if address.startswith(REGISTERED):
                    from crystalforge.integrations.mlflow.registry import download_generator, version_of

                    api = _client(config)
                    version = version_of(api, address)
                    source = download_generator(api, version, Path(temporary))
                    lineage = {key: value for key, value in version.tags.items() if key in LINEAGE}
                else:
                    source = Path(address)
                shutil.copytree(source, place, dirs_exist_ok=True)
            found = weights_hash(load_model(out / "model").model)
            if lineage.get("model_hash", found) != found:
                raise InputError(
                    f"the weights' hash is {found[:12]}, the registry says {lineage['model_hash'][:12]}",
                    source=address,
                    remedy="register the model again",
                )
            stage.finish(found, {"uri": address, **lineage}, {"base_model": address} | _data(lineage))
    return stage.outcome


def _data(lineage: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in lineage.items() if name.startswith("data_")}


def pinned(config: Config, model: str) -> str:
    """An alias as the version that it means now, a directory as its absolute path: what a cache may rely on."""
    if not model.startswith(REGISTERED):
        return str(_directory(find_base(Path(model))).resolve())
    from crystalforge.integrations.mlflow.registry import version_of

    version = version_of(_client(config), model)
    return f"{REGISTERED}{version.name}/{version.version}"


def _client(config: Config) -> Any:
    from crystalforge.integrations.mlflow import tracking

    return tracking.client(tracking.tracking_uri(config.tracking.uri, Path(config.tracking.directory)))


def _directory(path: Path) -> Path:
    for place in (path, path / "model"):
        if (place / WEIGHTS).exists():
            return place
    raise InputError(f"holds no {WEIGHTS}", source=path, remedy="give the directory of a model, or models:/name@alias")


def _weights(config: Config, address: str) -> str:
    """What tells two states of one address apart: a directory's weights; a version never changes, but another registry
    has another one of the same number."""
    if not address.startswith(REGISTERED):
        return sha256_file(Path(address) / WEIGHTS)
    from crystalforge.integrations.mlflow.registry import version_of

    version = version_of(_client(config), address)
    return f"{version.run_id} {version.creation_timestamp}"
