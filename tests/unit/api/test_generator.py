"""Load, sample, stream, score and tune from Python; the verbs do the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import crystalforge
from crystalforge.api.generator import Generator
from crystalforge.crystal.geometry import Geometry
from crystalforge.model.checkpoint import save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.network import CrystalFormer
from crystalforge.rl.testing import ElementReward
from crystalforge.tools.crystals import sample


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=16)
    weights = np.zeros(230)
    weights[[61, 224]] = 1
    path = tmp_path_factory.mktemp("stage") / "model"
    save_model(path, CrystalFormer(config), info={"spacegroup_weights": weights.tolist()})
    return path


@pytest.fixture(scope="module")
def generator(place: Path) -> Generator:
    return crystalforge.load(place)


def test_a_name_a_directory_and_the_directory_around_it(place: Path) -> None:
    assert crystalforge.load(place.parent).hash == crystalforge.load(place).hash
    assert "1," in repr(crystalforge.load("mp20"))
    with pytest.raises(crystalforge.InputError, match=r"one of: .*mp20"):
        crystalforge.load("no-such-model")


def test_python_and_the_command_line_draw_the_same(generator: Generator, place: Path, tmp_path: Path) -> None:
    crystals = generator.sample(12, seed=3)
    sample(place, tmp_path / "out", 12, seed=3)
    table = pq.read_table(tmp_path / "out" / "part-00000000.parquet")
    assert crystals["spacegroup"].tolist() == table.column("spacegroup").to_pylist()
    np.testing.assert_allclose(crystals["log_prob"], table.column("log_prob").to_numpy(), atol=1e-3)
    later = generator.sample(4, seed=3, first=8)
    assert later["index"].tolist() == [8, 9, 10, 11]
    assert later.formulas == crystals[8:].formulas
    streamed = list(generator.stream(12, seed=3, batch_size=5))
    assert [len(part) for part in streamed] == [5, 5, 2]
    assert [name for part in streamed for name in part.formulas] == crystals.formulas


def test_a_wish_is_met(generator: Generator) -> None:
    crystals = generator.sample(6, formula="NaCl", spacegroup=[225, 221], seed=0)
    assert crystals["spacegroup"].tolist() == [225, 221] * 3
    assert set(crystals.formulas) == {"NaCl"}
    only = generator.sample(5, elements="Li O", spacegroup=225)
    assert {int(z) for c in only if c is not None for z in c.numbers} <= {3, 8}
    loose = Geometry(min_distance=0.2, min_bond=0.1, volume_per_atom=(0.1, 1e4), min_height=0.2)
    law = crystalforge.SamplingConfig(valid=loose, constraints=Constraints(max_sites=2))
    assert generator.sample(8, law=law)["draws"].max() > 1
    with pytest.raises(crystalforge.InputError, match="given twice"):
        generator.sample(2, formula="NaCl", law=law)
    with pytest.raises(crystalforge.InputError, match="Xx"):
        generator.sample(2, formula="Xx")
    with pytest.raises(crystalforge.InputError, match="231"):
        generator.sample(2, spacegroup=231)


def test_log_prob_is_what_the_sampler_recorded_and_says_why_there_is_none(generator: Generator) -> None:
    drawn = generator.sample(40, spacegroup=225, seed=5)
    crystals = crystalforge.read([*drawn, None])
    frame = generator.log_prob(crystals)
    known = frame["problem"] == ""
    assert len(frame) == 41
    assert known.sum() > 0
    assert np.isnan(frame["log_prob"].iloc[-1])
    parts = frame[[f"log_prob_{name}" for name in ("wyckoff", "element", "coords", "lattice")]].sum(axis=1)
    np.testing.assert_allclose(frame["log_prob"][known], parts[known])
    same = known[:40].to_numpy() & (frame["spacegroup"][:40] == 225).to_numpy()
    close = np.isclose(frame["log_prob"][:40][same], drawn["log_prob"][same], atol=0.1)
    assert close.any(), "a crystal whose sites are written in the order of the tokeniser has the very same probability"


def test_tuning_gives_another_generator_and_leaves_this_one(generator: Generator, tmp_path: Path) -> None:
    before = generator.hash
    reward = ElementReward({z: z / 100 for z in range(1, 119)})
    tuned = generator.finetune(reward, steps=1, batch_size=4, out=tmp_path / "run", seed=1)
    assert generator.hash == before != tuned.hash
    assert (tmp_path / "run" / "model").is_dir()
    assert len(tuned.sample(2)) == 2, "it remembers its space groups"
    with pytest.raises(crystalforge.InputError, match="did you mean 'batch_size'"):
        generator.finetune(reward, batch_sise=3)


def test_a_model_without_its_groups_asks_for_them(generator: Generator) -> None:
    bare = Generator(generator.model, {}, name="bare")
    with pytest.raises(crystalforge.InputError, match="does not say"):
        bare.sample(1)
    assert len(bare.sample(1, spacegroup=1)) == 1
