"""Model directories: what was saved comes back; what was damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from crystalforge.common.errors import InputError
from crystalforge.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_model, save_model, weights_hash
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer

SMALL = ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[CrystalFormer, Path]:
    torch.manual_seed(3)
    model = CrystalFormer(SMALL)
    save_model(tmp_path / "model", model, info={"stage": "test", "numbers": [1, 2.5]})
    return model, tmp_path / "model"


def test_a_model_comes_back_whole(saved: tuple[CrystalFormer, Path]) -> None:
    model, directory = saved
    loaded = load_model(directory)
    assert loaded.info == {"stage": "test", "numbers": [1, 2.5]}
    assert loaded.model.config == SMALL
    assert not loaded.model.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert weights_hash(loaded.model) == weights_hash(model)


def test_the_hash_sees_every_bit(saved: tuple[CrystalFormer, Path]) -> None:
    model, _ = saved
    before = weights_hash(model)
    with torch.no_grad():
        model.blocks[0].up.bias[3] += 1e-7
    assert weights_hash(model) != before


def test_saving_again_replaces_the_model(saved: tuple[CrystalFormer, Path]) -> None:
    model, directory = saved
    with torch.no_grad():
        model.head.bias += 1.0
    save_model(directory, model, info={})
    assert weights_hash(load_model(directory).model) == weights_hash(model)
    assert sorted(path.name for path in directory.parent.iterdir()) == ["model"]


def truncate(directory: Path) -> None:
    file = directory / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(directory: Path) -> None:
    file = directory / WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    content[-50] ^= 4
    file.write_bytes(bytes(content))


def edit(directory: Path, key: str, value: object) -> None:
    record = json.loads((directory / CONFIG_FILE).read_text())
    record[key] = value
    (directory / CONFIG_FILE).write_text(json.dumps(record))


def other_weights(directory: Path) -> None:
    wide = CrystalFormer(SMALL.model_copy(update={"width": 16}))
    safetensors.torch.save_file(dict(wide.state_dict()), directory / WEIGHTS_FILE)
    edit(directory, "weights_sha256", weights_hash(wide))


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (truncate, WEIGHTS_FILE, "cannot be read"),
        (flip_a_bit, WEIGHTS_FILE, "hashes differ"),
        (other_weights, WEIGHTS_FILE, "weights and configuration disagree: .*shape"),
        (lambda d: (d / WEIGHTS_FILE).unlink(), WEIGHTS_FILE, "missing"),
        (lambda d: (d / CONFIG_FILE).unlink(), "model", "no model here"),
        (lambda d: (d / CONFIG_FILE).write_text("{"), CONFIG_FILE, "cannot be read"),
        (lambda d: (d / CONFIG_FILE).write_text("[]"), CONFIG_FILE, "format"),
        (lambda d: edit(d, "format", 99), CONFIG_FILE, "format 99"),
        (lambda d: edit(d, "model", {"layers": -1}), CONFIG_FILE, "not valid.*layers"),
    ],
)
def test_damage_is_named_with_its_file(saved: tuple[CrystalFormer, Path], damage, file: str, message: str) -> None:
    _, directory = saved
    damage(directory)
    with pytest.raises(InputError, match=message) as caught:
        load_model(directory)
    assert Path(str(caught.value.source)).name == file
    assert caught.value.remedy


def test_another_configuration_than_expected_is_refused(saved: tuple[CrystalFormer, Path]) -> None:
    _, directory = saved
    load_model(directory, expected=SMALL)
    with pytest.raises(InputError, match="layers is 1, asked for 2"):
        load_model(directory, expected=SMALL.model_copy(update={"layers": 2}))


def test_an_absent_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model here"):
        load_model(tmp_path / "nowhere")
