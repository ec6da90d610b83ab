"""Parameters of the published CrystalFormer (JAX, Haiku) and ours: names and layout, both ways.

Haiku's linear maps are y = x @ w + b with w of shape (in, out); ours hold the transpose. Haiku's query, key and
value maps are three modules; ours is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_file
from crystalforge.model.checkpoint import save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.published.restricted_pickle import read_haiku_pickle

Flat = Mapping[str, np.ndarray]  # "module/name" -> array


def _suffix(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index}"


def _modules(config: ModelConfig) -> Iterator[tuple[str, str, str]]:
    """(our module, Haiku module, kind) for all but query, key and value."""
    for ours, theirs in (("spacegroup", "g"), ("wyckoff", "w"), ("element", "a")):
        yield f"{ours}_embedding", f"~/{theirs}_embeddings", "embedding"
    if config.first_wyckoff_hidden:
        yield "first_wyckoff.0", "linear", "linear"
        yield "first_wyckoff.2", "linear_1", "linear"
        next_linear = 2
    else:
        yield "first_wyckoff", "~/w_params", "embedding"
        next_linear = 0
    inputs = ["wyckoff_in", "element_in", "coord_in.0", "coord_in.1", "coord_in.2"]
    for offset, ours in enumerate(inputs):
        yield ours, _suffix("linear", next_linear + offset), "linear"
    next_linear += len(inputs)
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        yield f"{block}.attention_norm", _suffix("layer_norm", 2 * layer), "norm"
        yield f"{block}.out", f"{_suffix('multi_head_attention', layer)}/linear", "linear"
        yield f"{block}.mlp_norm", _suffix("layer_norm", 2 * layer + 1), "norm"
        yield f"{block}.up", _suffix("linear", next_linear + 2 * layer), "linear"
        yield f"{block}.down", _suffix("linear", next_linear + 2 * layer + 1), "linear"
    yield "norm", _suffix("layer_norm", 2 * config.layers), "norm"
    yield "head", _suffix("linear", next_linear + 2 * config.layers), "linear"


def from_haiku(parameters: Flat, config: ModelConfig) -> dict[str, Tensor]:
    """A state dict for `CrystalFormer(config)` from Haiku parameters by flat name.

    Raises InputError when a parameter is missing, superfluous or of another shape.
    """
    _check_published(config)
    left = dict(parameters)

    def take(name: str) -> Tensor:
        if name not in left:
            raise InputError(
                f"parameter {name!r} is missing",
                remedy="check that the configuration is that of the checkpoint (layers, first_wyckoff_hidden)",
            )
        return torch.from_numpy(np.array(left.pop(name)))

    state: dict[str, Tensor] = {}
    for ours, theirs, kind in _modules(config):
        if kind == "embedding":
            state[f"{ours}.weight"] = take(theirs)
        elif kind == "norm":
            state[f"{ours}.weight"], state[f"{ours}.bias"] = take(f"{theirs}/scale"), take(f"{theirs}/offset")
        else:
            state[f"{ours}.weight"], state[f"{ours}.bias"] = (
                take(f"{theirs}/w").T.contiguous(),
                take(f"{theirs}/b"),
            )
    for layer in range(config.layers):
        attention = _suffix("multi_head_attention", layer)
        parts = ("query", "key", "value")
        state[f"blocks.{layer}.qkv.weight"] = torch.cat([take(f"{attention}/{part}/w").T for part in parts])
        state[f"blocks.{layer}.qkv.bias"] = torch.cat([take(f"{attention}/{part}/b") for part in parts])
    if left:
        raise InputError(
            f"{len(left)} parameters have no place in this configuration, such as {next(iter(left))!r}",
            remedy="check that the configuration is that of the checkpoint (layers, first_wyckoff_hidden)",
        )
    expected = {name: tuple(value.shape) for name, value in CrystalFormer(config).state_dict().items()}
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise InputError(
                f"parameter {name} has shape {tuple(state[name].shape)}; the configuration asks for {shape}"
            )
    return state


def to_haiku(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_haiku`; also right for gradients. InputError for an architecture that is not published."""
    _check_published(config)
    flat: dict[str, np.ndarray] = {}

    def put(name: str, value: Tensor) -> None:
        flat[name] = value.detach().cpu().numpy()

    for ours, theirs, kind in _modules(config):
        if kind == "embedding":
            put(theirs, state[f"{ours}.weight"])
            continue
        weight, bias = ("scale", "offset") if kind == "norm" else ("w", "b")
        put(f"{theirs}/{weight}", state[f"{ours}.weight"] if kind == "norm" else state[f"{ours}.weight"].T)
        put(f"{theirs}/{bias}", state[f"{ours}.bias"])
    for layer in range(config.layers):
        attention = _suffix("multi_head_attention", layer)
        weights = state[f"blocks.{layer}.qkv.weight"].chunk(3)
        biases = state[f"blocks.{layer}.qkv.bias"].chunk(3)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            put(f"{attention}/{part}/w", weight.T)
            put(f"{attention}/{part}/b", bias)
    return flat


def _check_published(config: ModelConfig) -> None:
    """The published program knows no other layout, norm, MLP or coordinate head."""
    published = ModelConfig.model_validate({})
    names = ("layout", "norm", "gated", "coord_head")
    other = [f"{name} {getattr(config, name)}" for name in names if getattr(config, name) != getattr(published, name)]
    if other:
        raise InputError(
            f"the published architecture has no such parameters: {', '.join(other)}",
            remedy="only models with the default layout, norm, MLP and coordinate head can be exchanged",
        )


def infer_config(parameters: Flat, *, base: ModelConfig | None = None) -> ModelConfig:
    """The network's shape as far as the parameters tell it; the number of heads and of mixture components,
    which they do not, and dropout come from `base` (default: the published model).
    """
    base = base or ModelConfig.model_validate({})
    try:
        hidden = parameters["linear/w"].shape[1] if "~/w_params" not in parameters else 0
        width, inner = parameters["multi_head_attention/query/w"].shape
        first_up = _suffix("linear", (2 if hidden else 0) + 5)
        found = {
            "layers": sum(name.startswith("multi_head_attention") and name.endswith("/query/w") for name in parameters),
            "width": width,
            "embedding": parameters["~/g_embeddings"].shape[1],
            "first_wyckoff_hidden": hidden,
            "widening": parameters[f"{first_up}/w"].shape[1] // width,
            "head_size": inner // base.heads,
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"these are not CrystalFormer's parameters ({error} is missing or has another form)",
            remedy="give a checkpoint of CrystalFormer 0.4 or later",
        ) from None
    return ModelConfig.model_validate(base.model_dump() | found)


def import_checkpoint(pickle: Path, directory: Path, *, config: ModelConfig | None = None) -> ModelConfig:
    """Turn a published checkpoint (Haiku pickle) into a model directory; gives the model's configuration.

    `config`: give it when heads or mixture components differ from the published model's. Raises InputError for a
    file that is no checkpoint, is unsafe, or does not fit the configuration; nothing is written then.
    """
    parameters = read_haiku_pickle(pickle)
    try:
        config = config or infer_config(parameters)
        model = CrystalFormer(config)
        model.load_state_dict(from_haiku(parameters, config))
    except InputError as error:
        raise InputError(error.problem, source=pickle, remedy=error.remedy) from None
    save_model(directory, model, info={"stage": "import", "source": pickle.name, "source_sha256": sha256_file(pickle)})
    return config
