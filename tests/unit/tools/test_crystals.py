"""Tokens, likelihoods and samples of files, on a small model with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Lattice, Structure

from crystalforge.common.errors import InputError
from crystalforge.common.files import only_writer
from crystalforge.crystal import Crystal
from crystalforge.crystal.geometry import Geometry
from crystalforge.evaluation.validity import structure_valid
from crystalforge.model.checkpoint import save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.config import SamplingConfig
from crystalforge.tools.crystals import PART, sample, score, tokenize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=16)
    place = tmp_path_factory.mktemp("model")
    weights = np.zeros(230)
    weights[[61, 224]] = 1
    save_model(place, CrystalFormer(config), info={"spacegroup_weights": weights.tolist()})
    return place


@pytest.fixture
def cifs(tmp_path: Path) -> Path:
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name, a, species in (("salt", 5.69, ["Na", "Cl"]), ("magnesia", 4.26, ["Mg", "O"])):
        structure = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), species, [[0, 0, 0], [0.5, 0.5, 0.5]])
        structure.to(str(folder / f"{name}.cif"))
    (folder / "torn.cif").write_text((folder / "salt.cif").read_text()[:200])
    return folder


def test_tokenize_writes_tokens_and_lists_what_it_could_not_use(cifs: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens.parquet"
    assert tokenize([cifs], out, processes=1) == {"crystals": 2, "rejected": 1}
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    assert rows["salt"]["spacegroup"] == 225
    assert sorted(rows["salt"]["element"]) == [11, 17]
    assert rows["salt"]["lattice"][0] == pytest.approx(5.69 / 2)  # a / N^(1/3) with 8 atoms
    (reject,) = [json.loads(line) for line in out.with_suffix(".rejects.jsonl").read_text().splitlines()]
    assert reject["id"] == "torn"
    assert reject["reason"]


def test_score_ranks_by_surprise_and_adds_up(cifs: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    found = score(model, [cifs / "salt.cif", cifs / "magnesia.cif"], out, processes=1)
    rows = pq.read_table(out).to_pylist()
    assert found["crystals"] == len(rows) == 2
    assert rows[0]["log_prob"] <= rows[1]["log_prob"]
    for row in rows:
        parts = [row[f"log_prob_{name}"] for name in ("wyckoff", "element", "coords", "lattice")]
        assert row["log_prob"] == pytest.approx(sum(parts))
        assert row["log_prob_per_site"] == pytest.approx(row["log_prob"] / 2)


@pytest.mark.parametrize("missing", ["nothing.cif", "empty"])
def test_nothing_to_read_is_said_with_the_path(tmp_path: Path, model: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=missing):
        score(model, [tmp_path / missing], tmp_path / "out.parquet", processes=1)
    assert not (tmp_path / "out.parquet").exists()


def test_samples_resume_extend_and_keep_their_request(model: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    n = PART + 20
    sample(model, whole, n, seed=3)
    sample(model, parts, 10, seed=3)
    (parts / "part-00000000.parquet").unlink()  # as after a kill before the first part was whole
    done = sample(model, parts, n, seed=3, cif=False)
    assert done["crystals"] == n
    for name in ("part-00000000.parquet", f"part-{PART:08d}.parquet"):
        assert pq.read_table(whole / name).equals(pq.read_table(parts / name))
    groups = set(pq.read_table(whole / "part-00000000.parquet").column("spacegroup").to_pylist())
    assert groups == {62, 225}, "as often as in the training set"
    with pytest.raises(InputError, match="another request: seed was 3, now 4"):
        sample(model, parts, n, seed=4)


def test_what_is_sampled_can_be_read_again_and_obeys_the_wish(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "salts"
    sample(
        model,
        out,
        6,
        seed=0,
        spacegroups=[225, 221],
        law=SamplingConfig(constraints=Constraints(composition="NaCl")),
        cif=True,
    )
    rows = pq.read_table(out / "part-00000000.parquet").to_pylist()
    assert [row["spacegroup"] for row in rows] == [225, 221] * 3
    for row in rows:
        assert row["built"]
        assert row["atomic_numbers"].count(11) == row["atomic_numbers"].count(17) > 0
    written = sorted((out / "cif").glob("*.cif"))
    assert len(written) == 6
    row = rows[0]
    mine = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"]).to_structure()
    assert Structure.from_file(str(written[0])).volume == pytest.approx(mine.volume, rel=1e-4)


def test_valid_crystals_come_with_the_number_drawn_and_the_share_that_passes(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "valid"
    loose = Geometry(min_distance=0.2, min_bond=0.1, volume_per_atom=(0.1, 1e4), min_height=0.2)
    law = SamplingConfig(constraints=Constraints(max_sites=2), valid=loose)
    done = sample(model, out, 40, seed=0, law=law)
    table = pq.read_table(out / "part-00000000.parquet")
    draws = table.column("draws").to_numpy()
    assert done["drawn"] == draws.sum() > 40
    assert done["share_valid"] == (draws == 1).mean()
    assert 0 < done["interval"][0] < done["share_valid"] < done["interval"][1] < 1
    for row in table.to_pylist():
        crystal = Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"])
        assert structure_valid(crystal)[1] >= 0.2
    assert sample(model, out, 40, seed=0, law=law) == done, "what is found again counts as it did"
    with pytest.raises(InputError, match="another request: valid was"):
        sample(model, out, 40, seed=0, law=SamplingConfig(constraints=law.constraints))


def test_a_request_that_cannot_be_met_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        sample(model, tmp_path / "none", 5, seed=0, spacegroups=[231])
    assert not (tmp_path / "none" / "request.json").exists()


def test_a_model_without_its_groups_asks_for_them(model: Path, tmp_path: Path) -> None:
    from crystalforge.model.checkpoint import load_model

    bare = tmp_path / "bare"
    save_model(bare, load_model(model).model, info={})
    with pytest.raises(InputError, match="--spacegroup"):
        sample(bare, tmp_path / "out", 5, seed=0)


def test_fewer_crystals_than_there_are_leave_the_others_whole(model: Path, tmp_path: Path, capsys) -> None:
    sample(model, tmp_path, 12, seed=3)
    before = (tmp_path / "part-00000000.parquet").read_bytes()
    assert sample(model, tmp_path, 5, seed=3)["crystals"] == 5
    assert (tmp_path / "part-00000000.parquet").read_bytes() == before
    assert "holds 12 crystals" in capsys.readouterr().err


def test_cifs_that_are_missing_are_written_and_others_left(model: Path, tmp_path: Path) -> None:
    salts = SamplingConfig(constraints=Constraints(composition="NaCl"))
    sample(model, tmp_path / "a", 4, seed=0, spacegroups=[225], law=salts)
    sample(model, tmp_path / "a", 4, seed=0, spacegroups=[225], law=salts, cif=True)
    sample(model, tmp_path / "b", 4, seed=0, spacegroups=[225], law=salts, cif=True)
    one, other = ({path.name: path.read_text() for path in (tmp_path / k / "cif").iterdir()} for k in "ab")
    assert one == other
    assert len(one) == 4


def test_a_damaged_part_is_drawn_again(model: Path, tmp_path: Path) -> None:
    sample(model, tmp_path, 6, seed=3)
    part = tmp_path / "part-00000000.parquet"
    whole = pq.read_table(part)
    part.write_bytes(part.read_bytes()[:700])
    sample(model, tmp_path, 6, seed=3)
    assert pq.read_table(part).equals(whole)


def test_a_folder_that_is_somebody_elses_is_refused(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-00000000.parquet")
    with pytest.raises(InputError, match=r"no request\.json"):
        sample(model, tmp_path, 6, seed=3)
    (tmp_path / "part-00000000.parquet").unlink()
    with only_writer(tmp_path), pytest.raises(InputError, match="another process is writing here"):
        sample(model, tmp_path, 6, seed=3)
    with pytest.raises(InputError), only_writer(tmp_path / "new"):
        raise InputError("a wish that cannot be met")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("verb", "folder"), [("tokenize", True), ("score", True), ("ingest", False), ("sample", False)]
)
def test_a_folder_where_a_file_is_meant_is_refused_at_once_and_the_reverse(
    cifs: Path, model: Path, tmp_path: Path, verb: str, folder: bool
) -> None:
    from typer.testing import CliRunner

    from crystalforge.cli import app

    out = tmp_path / "out"
    out.mkdir() if folder else out.write_text("x")
    given = {
        "tokenize": [str(cifs)],
        "score": ["-m", str(model), str(cifs)],
        "ingest": [],
        "sample": ["-m", str(model)],
    }
    found = CliRunner().invoke(app, [verb, *given[verb], "-o", str(out)])
    assert isinstance(found.exception, InputError), "one message, and exit code 2"
    assert f"{out}: is a {'folder' if folder else 'file'}" in str(found.exception)
