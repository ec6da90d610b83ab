"""Models on disk: `model.safetensors` and `config.json`, whole or absent, and checked when read.

No pickle: a model directory from elsewhere cannot run code. `config.json` holds the network's shape, free-form
information (what it was trained on, by which configuration) and the hash of the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_directory, recover_directory, write_json
from crystalforge.model.build import build_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer

FORMAT = 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_REMEDY = "copy the directory again from where it was made, or train the model again"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, and the information saved with it."""

    model: CrystalFormer
    info: dict[str, Any]


def weights_hash(model: torch.nn.Module) -> str:
    """Hexadecimal SHA-256 of a model's parameters: names, types, shapes and values, on whatever device they lie."""
    return _hash(model.state_dict())


def save_model(directory: Path, model: CrystalFormer, *, info: dict[str, Any]) -> str:
    """Write `model` and JSON-able `info` to `directory`, atomically; give the hash of the weights."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    digest = _hash(state)
    with atomic_directory(directory) as temporary:
        safetensors.torch.save_file(state, temporary / WEIGHTS_FILE)
        write_json(
            temporary / CONFIG_FILE,
            {"format": FORMAT, "weights_sha256": digest, "model": model.config.model_dump(), "info": info},
        )
    return digest


def load_model(
    directory: str | Path, *, device: str | torch.device = "cpu", expected: ModelConfig | None = None
) -> LoadedModel:
    """Read the model in `directory`, ready for evaluation.

    Raises InputError that names the file when it is missing, truncated or altered, when weights and configuration
    disagree, or when the configuration is not the `expected` one.
    """
    directory = Path(directory)
    recover_directory(directory)
    record = _read_config(directory / CONFIG_FILE)
    config = _model_config(record, directory / CONFIG_FILE)
    if expected is not None and config != expected:
        have, want = config.model_dump(), expected.model_dump()
        different = ", ".join(f"{key} is {have[key]}, asked for {want[key]}" for key in have if have[key] != want[key])
        raise InputError(
            f"the model has another configuration: {different}",
            source=directory / CONFIG_FILE,
            remedy="use the configuration of the checkpoint, or another checkpoint",
        )
    state = _read_weights(directory / WEIGHTS_FILE)
    if _hash(state) != record.get("weights_sha256"):
        raise InputError(
            "the weights are not those that config.json describes (hashes differ)",
            source=directory / WEIGHTS_FILE,
            remedy=_REMEDY,
        )
    model = build_model(config)
    wrong = _differences(model.state_dict(), state)
    if wrong:
        raise InputError(
            f"weights and configuration disagree: {wrong}", source=directory / WEIGHTS_FILE, remedy=_REMEDY
        )
    model.load_state_dict(state)
    return LoadedModel(model.to(device).eval(), dict(record.get("info", {})))


def _read_config(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(
            "there is no model here", source=file.parent, remedy="give a directory that `crystalforge pretrain` wrote"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot be read ({error})", source=file, remedy=_REMEDY) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        seen = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise InputError(f"has format {seen!r}, this version reads {FORMAT}", source=file, remedy=_REMEDY)
    return record


def _model_config(record: Mapping[str, Any], file: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(record.get("model"))
    except ValidationError as error:
        raise InputError(
            f"the model's configuration is not valid: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}",
            source=file,
            remedy=_REMEDY,
        ) from None


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise InputError("the weights are missing", source=file, remedy=_REMEDY) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"the weights cannot be read ({error})", source=file, remedy=_REMEDY) from None


def _differences(wanted: Mapping[str, Tensor], have: Mapping[str, Tensor]) -> str:
    """The first few disagreements in names and shapes; empty when there are none."""
    found = [f"{name} is missing" for name in wanted if name not in have]
    found += [f"{name} is not of this configuration" for name in have if name not in wanted]
    found += [
        f"{name} has shape {tuple(have[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in have and have[name].shape != value.shape
    ]
    return "; ".join(found[:3])


def _hash(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
