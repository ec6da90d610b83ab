"""Ingestion as parallel steps of a pipeline: the same store as in one piece, and no shard done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalforge.config import Config, from_sections
from crystalforge.data.ingest import SHARDS_VARIABLE
from crystalforge.data.sources.tables import embedded
from crystalforge.platform.run import execute
from crystalforge.stages.ingest import ingest
from crystalforge.stages.ingest_part import ingest_part
from crystalforge.stages.ingest_plan import ingest_plan
from pipelines.arguments import arguments
from pipelines.catalog import PIPELINES
from pipelines.cluster import ClusterConfig

ROWS, SHARD = 40, 8


def write(file: Path, *, changed: int | None = None) -> None:
    """Forty of the embedded crystals; the cell of row `changed` is a little larger."""
    records = [record for record in embedded().records() if record.split != "reference"][::130][:ROWS]
    crystals = [record.crystal() for record in records]
    scale = [1.01 if row == changed else 1.0 for row in range(ROWS)]
    table = {
        "id": [record.id for record in records],
        "lattice": [(c.lattice * s).ravel().tolist() for c, s in zip(crystals, scale, strict=True)],
        "atomic_numbers": [crystal.numbers.tolist() for crystal in crystals],
        "frac_coords": [crystal.frac.ravel().tolist() for crystal in crystals],
    }
    pq.write_table(pa.table(table), file)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write(tmp_path / "crystals.parquet")
    source = {"kind": "parquet", "path": str(tmp_path / "crystals.parquet")}
    return from_sections(data={"source": source, "shard_size": SHARD}, tracking={"enabled": False})


def record(place: Path) -> dict[str, Any]:
    return json.loads((place / "ingest" / "stage.json").read_text())


def test_parallel_steps_make_the_store_that_one_process_makes(tmp_path: Path, config: Config) -> None:
    alone = ingest(config, tmp_path / "alone")
    place = tmp_path / "run"
    place.mkdir()
    pipeline = PIPELINES["ingest"](ClusterConfig(ingest_parts=3, workspace_path=str(tmp_path / "volume")))
    execute(pipeline, arguments(pipeline, config, str(place)), place)
    assert record(place)["content"] == alone["content"]
    assert record(place)["lineage"]["data_hash"] == alone["content"]
    told = (place / "pipeline.log").read_text()
    for share in ("tokenise 1/3", "tokenise 2/3", "tokenise 3/3"):
        assert share in told
    shards = list((tmp_path / "volume" / "shards").glob("*.npz"))
    assert len(shards) == ROWS // SHARD, "where every run finds them"
    (handed_over,) = (place / "pipeline").glob("**/dataset")
    found = {path.name for path in handed_over.iterdir()}
    assert found == {"store", "manifest.json", "rejects.jsonl", "stage.json", ".key"}, "not what they were made from"


def test_only_the_shard_that_changed_is_done_again(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARDS_VARIABLE, str(tmp_path / "shards"))
    text = json.dumps(config.model_dump(mode="json")["data"])

    def everything(workspace: Path) -> dict[str, Any]:
        shares = ingest_plan(str(workspace), text, 3)
        assert shares == ["0/3", "1/3", "2/3"]
        assert [ingest_part(str(workspace), text, share) for share in shares] == [
            "0/3: 2 shards", "1/3: 2 shards", "2/3: 1 shards",
        ]  # fmt: skip
        return ingest(config, workspace / "ingest", data_version=workspace.name)

    first = everything(tmp_path / "v1")
    before = {shard: shard.stat().st_mtime_ns for shard in (tmp_path / "shards").iterdir()}
    assert len(before) == ROWS // SHARD
    write(tmp_path / "crystals.parquet", changed=2 * SHARD + 1)
    second = everything(tmp_path / "v2")
    after = {shard: shard.stat().st_mtime_ns for shard in (tmp_path / "shards").iterdir()}
    assert before.items() <= after.items(), "no shard was made anew"
    assert len(after) == len(before) + 1
    assert second["content"] != first["content"]
    assert (first["lineage"]["data_version"], second["lineage"]["data_version"]) == ("v1", "v2")


def test_there_are_no_more_shares_than_shards(tmp_path: Path, config: Config) -> None:
    text = json.dumps(config.model_dump(mode="json")["data"] | {"limit": SHARD + 1})
    assert ingest_plan(str(tmp_path), text, 100) == ["0/2", "1/2"]


def test_a_source_that_is_not_there_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps({"source": {"kind": "parquet", "path": str(tmp_path / "absent.parquet")}})
    with pytest.raises(SystemExit) as caught:
        ingest_plan(str(tmp_path / "w"), text, 2)
    assert caught.value.code == 2
    assert "absent.parquet" in capsys.readouterr().err
