"""Compares the network and the reference law with arrays of the published implementation.

A fixture is an .npz with the published model's configuration, parameters, tokens, raw outputs `h` (B, 5n + 1, O)
and log-probabilities. Arrays ending in `_f64` were computed in float64 (rotary table in float32, as published),
those in `_f64_rope64` with that table in float64 too.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crystalforge.common.errors import InputError
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.batch import TokenBatch
from crystalforge.model.config import ModelConfig
from crystalforge.model.distributions import element_log_probs, next_wyckoff_log_probs
from crystalforge.model.likelihood import log_prob_from_heads
from crystalforge.model.network import CrystalFormer, Heads
from crystalforge.model.published.haiku import from_haiku

# (suffix of the arrays, type of the network, type of its rotary table, tolerance). Tolerances are absolute, per
# sample. float32: rounding of two implementations over 16 layers and up to 105 tokens. float64 with the float32
# table: the last bit of that table depends on the maths library. All in float64: rounding only.
VARIANTS = (
    ("", torch.float32, torch.float32, 2e-4),
    ("_f64", torch.float64, torch.float32, 1e-5),
    ("_f64_rope64", torch.float64, torch.float64, 1e-9),
)
FORBIDDEN = -1e9  # the published code writes log 0 as about -1e10
CONFIG_NAMES = {
    "layers": "num_layers",
    "heads": "num_heads",
    "head_size": "key_size",
    "width": "model_size",
    "embedding": "embed_size",
    "first_wyckoff_hidden": "h0_size",
    "coord_frequencies": "Nf",
    "coord_components": "Kx",
    "lattice_components": "Kl",
    "max_sites": "n_max",
}
FACTORS = {"logp_w": "wyckoff", "logp_a": "element", "logp_xyz": "coords", "logp_l": "lattice"}
BATCH = 64


def check(path: Path) -> tuple[dict[str, Any], bool]:
    """Compare with every array of the fixture at `path`; gives a JSON-able report and whether all agree.

    The report maps each array to its largest absolute difference, the tolerance and the number of values.
    Raises InputError when the file is missing or has another layout.
    """
    fixture = load_fixture(path)
    config = fixture_config(fixture)
    state = from_haiku(haiku_parameters(fixture), config)
    arrays: dict[str, dict[str, float]] = {}
    for suffix, dtype, rotary, tolerance in VARIANTS:
        if f"logp_w{suffix}" not in fixture:
            continue
        model = CrystalFormer(config, rotary_dtype=rotary).to(dtype).eval()
        model.load_state_dict(state)
        for name, ours in evaluate(model, fixture_tokens(fixture), dtype).items():
            if name + suffix in fixture:
                arrays[name + suffix] = {
                    "max_abs_diff": difference(ours, fixture[name + suffix]),
                    "tolerance": tolerance,
                    "values": fixture[name + suffix].size,
                }
    ok = bool(arrays) and all(entry["max_abs_diff"] <= entry["tolerance"] for entry in arrays.values())
    parameters = sum(value.numel() for value in state.values())
    return {"file": str(path), "parameters": parameters, "arrays": arrays, "ok": ok}, ok


def evaluate(model: CrystalFormer, tokens: Tokens, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """`h` and the four log-probabilities of the reference law for `tokens`, under the published names."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("h", *FACTORS)}
    with torch.no_grad():
        for first in range(0, len(tokens), BATCH):
            batch = TokenBatch.from_tokens(tokens[first : first + BATCH], dtype=dtype)
            heads = model.read(batch, model.backbone(model.embed(batch)))
            scores = log_prob_from_heads(heads, batch, law="reference", max_sites=model.config.max_sites)
            parts["h"].append(published_output(heads, batch, model.config).numpy())
            for name, factor in FACTORS.items():
                parts[name].append(getattr(scores, factor).numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def published_output(heads: Heads, batch: TokenBatch, config: ModelConfig) -> Float[Tensor, "B rows O"]:
    """Heads in the published layout: row 0 the first letter, then five rows per site (see `network`).

    Logits are masked and normalised, concentrations and widths transformed, unused columns zero. The last row, the
    letter after the last slot, is never used by anyone and left at zero here.
    """
    slots, columns = batch.slots, config.output_size
    groups = batch.spacegroup[:, None].expand(-1, slots)
    first = next_wyckoff_log_probs(heads.wyckoff[:, 0], batch.spacegroup, None)
    later = next_wyckoff_log_probs(heads.wyckoff[:, 1:], groups[:, 1:], batch.wyckoff[:, :-1])
    lattice = heads.lattice
    at_wyckoff = torch.cat(
        [
            element_log_probs(heads.element, batch.wyckoff),
            lattice.logits.log_softmax(dim=-1),
            lattice.loc.flatten(-2),
            lattice.scale.flatten(-2),
        ],
        dim=-1,
    )
    coords = torch.cat([heads.coords.logits.log_softmax(dim=-1), heads.coords.loc, heads.coords.kappa], dim=-1)

    def wide(values: Tensor) -> Tensor:
        return F.pad(values, (0, columns - values.shape[-1]))

    rows = torch.stack(
        [wide(at_wyckoff), *wide(coords).unbind(dim=2), F.pad(wide(later), (0, 0, 0, 1))], dim=2
    ).flatten(1, 2)
    return torch.cat([wide(first)[:, None], rows], dim=1)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference; infinite where one says impossible and the other does not.

    The never-used last row of `h` is left out.
    """
    if ours.ndim == 3:
        ours, theirs = ours[:, :-1], theirs[:, :-1]
    forbidden = theirs < FORBIDDEN
    if not np.array_equal(ours < FORBIDDEN, forbidden):
        return float("inf")
    return float(np.abs(ours - theirs, where=~forbidden, out=np.zeros_like(theirs)).max(initial=0.0))


def load_fixture(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a fixture; InputError when it cannot be read or lacks something."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            fixture = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"cannot be read as an .npz of arrays ({error})", source=path) from None
    missing = [name for name in ("config", "G", "W", "A", "XYZ", "L", "logp_w") if name not in fixture]
    if missing or not any(name.startswith("params/") for name in fixture):
        raise InputError(
            f"lacks {', '.join(missing) or 'params/...'}", source=path, remedy="give a file in the fixtures' layout"
        )
    return fixture


def fixture_config(fixture: Mapping[str, np.ndarray]) -> ModelConfig:
    """The published names of the hyper-parameters, as ours."""
    raw = json.loads(str(fixture["config"]))
    return ModelConfig.model_validate({ours: raw[theirs] for ours, theirs in CONFIG_NAMES.items()})


def fixture_tokens(fixture: Mapping[str, np.ndarray]) -> Tokens:
    """The crystals of a fixture."""
    return Tokens(
        fixture["G"].astype(np.int32), fixture["W"].astype(np.int32), fixture["A"].astype(np.int32),
        fixture["XYZ"].astype(np.float64), fixture["L"].astype(np.float64),
    )  # fmt: skip


def haiku_parameters(fixture: Mapping[str, np.ndarray], group: str = "params") -> dict[str, np.ndarray]:
    """Parameters (or gradients) by flat Haiku name."""
    return {name.removeprefix(f"{group}/"): value for name, value in fixture.items() if name.startswith(f"{group}/")}
