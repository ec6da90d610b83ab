"""Models that ship with this package, by name, and what any base model says of its training set.

data/models/<name>/stage.json     as `pretrain` left it: the name serves wherever an output of `pretrain` does
data/models/<name>/metrics.jsonl  the course of its training
data/models/<name>/model/         weights, configuration, model card, fingerprints of its training set
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt64

from crystalforge.common.errors import InputError, one_of

CONFIG, FINGERPRINTS = "config.json", "fingerprints.npy"


def shipped() -> dict[str, Path]:
    """Directories of the models in this installation, by name."""
    place = resources.files("crystalforge") / "data" / "models"
    assert isinstance(place, Path), "crystalforge is installed as files, not inside an archive"
    return {path.name: path for path in sorted(place.glob("*")) if (path / "model" / CONFIG).is_file()}


def find_base(path: Path) -> Path:
    """The output of `pretrain` that `path` means: a directory, or the name of a shipped model.

    Raises InputError when it is neither, naming the shipped ones.
    """
    if path.is_dir() or str(path) not in shipped():
        return _there(path)
    return shipped()[str(path)]


def find_model(path: Path) -> Path:
    """The directory of weights that `path` means: one as `pretrain` leaves it, the stage's around it, or the name of a
    shipped model.

    Raises InputError when it is neither, naming the shipped ones.
    """
    if str(path) in shipped() and not (path / CONFIG).is_file():
        return shipped()[str(path)] / "model"
    inner = path / "model"
    return inner if (inner / CONFIG).is_file() else _there(path)


def asked_shares(model: Path, weights: Float64[np.ndarray, " 230"]) -> Float64[np.ndarray, " 230"]:
    """In which shares the model in `model` asks for space groups where its base asks for them by `weights`."""
    from crystalforge.model.sampling.shares import tilt_of, tilted_shares

    return tilted_shares(weights, tilt_of(json.loads((model / CONFIG).read_text()).get("info", {})))


def spacegroup_weights(model: Path, data: Path) -> Float64[np.ndarray, " 230"]:
    """How often each space group occurred where the base model in directory `model` learned.

    A model that does not say so (imported parameters) gets the shares of the training split in `data`, an output of
    `ingest`.
    """
    info = json.loads((model / CONFIG).read_text()).get("info", {})
    if info.get("spacegroup_weights") is not None:
        return np.asarray(info["spacegroup_weights"], dtype=np.float64)
    from crystalforge.data.store import TokenStore

    return TokenStore.open(data / "store").spacegroup_weights("train")


def training_fingerprints(model: Path, at_hand: str | None) -> UInt64[np.ndarray, " N"] | None:
    """Fingerprints (formula, space group, occupied orbits) of what the model in directory `model` was trained on.

    None where they are not needed, because `at_hand` is the hash of that very store, or where the model has none.
    """
    file = model / FINGERPRINTS
    if not file.is_file():
        return None
    trained_on = json.loads((model / CONFIG).read_text())["info"].get("data_hash")
    return None if trained_on == at_hand else np.load(file, allow_pickle=False)


def _there(path: Path) -> Path:
    if not path.exists():
        raise InputError(
            "there is no such directory, and no model of this name ships",
            source=path,
            remedy=one_of("give the path of a model, or one of", shipped(), nothing="give the path of a model"),
        )
    return path
