"""What DVC tracks: versions as it records them, and imports that fetch what their addresses hold."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from crystalforge.common.errors import InputError
from crystalforge.data.config import SPLITS, Alex20Source, MP20Source
from crystalforge.integrations.dvc import data_version

ROOT = Path(__file__).resolve().parents[3]
IMPORTS = sorted((ROOT / "data").glob("*.dvc"))


def dvc(place: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=place, capture_output=True, text=True,
        env=os.environ | {"DVC_NO_ANALYTICS": "1", "no_proxy": "127.0.0.1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def note(file: Path, **outs: str) -> None:
    file.write_text(yaml.safe_dump({"outs": [{"path": path, "md5": recorded} for path, recorded in outs.items()]}))


def test_a_file_has_the_hash_beside_it(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    assert data_version(str(tmp_path / "x.csv")) == ""
    (tmp_path / "x.csv.dvc").write_text(yaml.safe_dump({"outs": [{"path": "x.csv", "md5": "ab" * 16}]}))
    (tmp_path / "y.csv.dvc").write_text(yaml.safe_dump({"outs": [{"path": "y.csv", "md5": "cd" * 16}]}))
    assert data_version(str(tmp_path / "x.csv")) == "ab" * 16
    assert data_version(None) == ""
    assert data_version("https://example.com/x.csv") == ""


def test_a_directory_has_the_hashes_of_what_is_tracked_in_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    note(tmp_path / "set-train.dvc", **{"set/train.csv": "ab" * 16})
    one = data_version(str(tmp_path / "set"))
    note(tmp_path / "set" / "val.csv.dvc", **{"val.csv": "cd" * 16})
    both = data_version(str(tmp_path / "set"))
    note(tmp_path / "set" / "val.csv.dvc", **{"val.csv": "ef" * 16})
    other = data_version(str(tmp_path / "set"))
    assert len({"", one, both, other}) == 4
    note(tmp_path / "settings.dvc", **{"settings": "12" * 16})
    assert data_version(str(tmp_path / "set")) == other, "a name that begins alike is another"


def test_an_import_that_was_never_downloaded_has_no_version(tmp_path: Path) -> None:
    (tmp_path / "x.csv.dvc").write_text(yaml.safe_dump({"outs": [{"path": "x.csv", "hash": "md5"}]}))
    assert data_version(str(tmp_path / "x.csv")) == ""


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv.dvc").write_text("outs: 3\n")
    with pytest.raises(InputError, match=r"x\.csv\.dvc"):
        data_version(str(tmp_path / "x.csv"))


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server in place of the publishers', and the folder that it serves."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


def test_the_imports_fetch_and_record_what_is_at_their_addresses(published: tuple[str, Path], tmp_path: Path) -> None:
    """The files as they are, but for the host, which cannot be reached from everywhere."""
    url, folder = published
    place = tmp_path / "checkout"
    (place / "data").mkdir(parents=True)
    dvc(place, "init", "--no-scm", "--quiet")
    expected = {}
    for file in IMPORTS:
        content = yaml.safe_load(file.read_text())
        (dependency,), (out,) = content["deps"], content["outs"]
        path = urlsplit(dependency["path"]).path
        (folder / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (folder / path[1:]).write_text(f"cif\n{file.name}\n")
        expected[out["path"]] = hashlib.md5(f"cif\n{file.name}\n".encode()).hexdigest()
        dependency["path"] = url + path
        (place / "data" / file.name).write_text(yaml.safe_dump(content))
    assert data_version(str(place / "data" / "mp20")) == ""
    dvc(place, "update", "--quiet", *(str(Path("data") / file.name) for file in IMPORTS))
    for path, recorded in expected.items():
        assert hashlib.md5((place / "data" / path).read_bytes()).hexdigest() == recorded
        assert data_version(str(place / "data" / path)) == recorded
    assert data_version(str(place / "data" / "mp20")) != data_version(str(place / "data" / "alex20")) != ""


def test_the_imports_are_the_files_that_the_sources_read() -> None:
    found = {yaml.safe_load(file.read_text())["outs"][0]["path"] for file in IMPORTS}
    assert found == {f"{name}/{split}.csv" for name in ("alex20", "mp20") for split in SPLITS}
    ignored = (ROOT / "data" / ".gitignore").read_text().split()
    assert {f"/{Path(path).parent}" for path in found} == set(ignored), "data are not kept in git"
    for file in IMPORTS:
        content = yaml.safe_load(file.read_text())
        assert content["frozen"] is True, "not fetched anew by every 'dvc repro'"
        if file.name.startswith("alex20"):
            assert content["deps"][0]["path"].rsplit("/", 1)[0] in " ".join((Alex20Source.__doc__ or "").split())
    assert MP20Source.__doc__


def test_the_remote_is_an_object_store_without_keys_in_git() -> None:
    parser = ConfigParser()
    parser.read_string("\n".join(line.strip() for line in (ROOT / ".dvc" / "config").read_text().splitlines()))
    remote = parser[f"'remote \"{parser['core']['remote']}\"'"]
    assert remote["url"].startswith("s3://")
    assert set(remote) == {"url"}, "address and keys come from the environment"
