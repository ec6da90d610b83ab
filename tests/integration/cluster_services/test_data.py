"""Data as a cluster has them: in an S3-compatible store, by DVC and as a source."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crystalforge.data.config import DataConfig
from crystalforge.data.ingest import ingest
from crystalforge.data.sources.tables import embedded
from crystalforge.integrations.dvc import data_version

ROOT = Path(__file__).resolve().parents[3]


def test_data_go_to_the_store_by_dvc_and_come_from_it_as_a_source(
    store: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote as it is in git: its address and keys from the environment alone."""
    pytest.importorskip("s3fs", reason="DVC's driver for object stores: pip install 'dvc[s3]'")
    url, keys = store
    for name, value in (keys | {"AWS_ENDPOINT_URL": url, "DVC_NO_ANALYTICS": "1"}).items():
        monkeypatch.setenv(name, value)
    table = pq.read_table(embedded().file).slice(0, 40).drop_columns(["split"])
    pq.write_table(table, tmp_path / "crystals.parquet")

    def dvc(place: Path, *arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
        dvc(place, "init", "--no-scm", "--quiet")
        with (place / ".dvc" / "config").open("a") as settings:
            settings.write((ROOT / ".dvc" / "config").read_text().replace("[core]", ""))
    shutil.copy(tmp_path / "crystals.parquet", here)
    dvc(here, "add", "--quiet", "crystals.parquet")
    dvc(here, "push", "--quiet")
    shutil.copy(here / "crystals.parquet.dvc", there)
    dvc(there, "pull", "--quiet")
    assert (there / "crystals.parquet").read_bytes() == (tmp_path / "crystals.parquet").read_bytes()

    version = data_version(str(there / "crystals.parquet"))
    address = f"s3://crystalforge/dvc/files/md5/{version[:2]}/{version[2:]}"
    contents = {}
    for name, path in {"file": str(there / "crystals.parquet"), "address": address}.items():
        config = DataConfig.model_validate({"source": {"kind": "parquet", "path": path}})
        contents[name] = ingest(config, tmp_path / name, processes=1, progress=False)["data_hash"]
    assert contents["file"] == contents["address"]
