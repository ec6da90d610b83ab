"""From the registry to the server: the version that was registered is the one that answers, with its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalforge.common.errors import InputError
from crystalforge.integrations.triton.wire import canary
from crystalforge.rewards import build, parse
from serving.__main__ import rewards_of
from serving.launcher import TritonServer, available
from serving.materialize import materialize, publish
from serving.repository import ModelSettings

USABLE, REASON = available()


def density(**fields: Any) -> Any:
    return parse({"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}, **fields})


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.triton
@pytest.mark.skipif(not USABLE, reason=REASON)
def test_the_registered_reward_is_served_without_the_files_it_was_made_from(tmp_path: Path, registry: str) -> None:
    hull = tmp_path / "entries.parquet"
    pq.write_table(pa.table({"formula": ["Na", "Cl", "NaCl"], "energy_per_atom": [-1.3, -1.8, -3.5]}), hull)
    reward = parse({"kind": "ehull", "hull": str(hull)})
    expected = build(reward).score([canary()])
    assert publish(reward, "stability", uri=registry, root=tmp_path) == "1"
    hull.unlink()

    out = tmp_path / "models"
    assert materialize(out, ["stability"], uri=registry) == {"stability": "1"}
    settings = json.loads((out / "stability" / "1" / "settings.json").read_text())
    assert Path(settings["reward"]["hull"]).is_file()
    assert str(out) not in (out / "stability" / "config.pbtxt").read_text()
    served = ModelSettings(expected_digest=settings["expected_digest"])
    with (
        TritonServer({"stability": parse(settings["reward"])}, settings=served, watched=False) as server,
        server.connect() as remote,
    ):
        assert np.array_equal(remote.score([canary()]).values, expected.values)
        assert remote.version.digest == settings["expected_digest"]


@pytest.mark.triton
@pytest.mark.skipif(not USABLE, reason=REASON)
def test_a_worker_refuses_a_reward_that_is_not_the_registered_one(tmp_path: Path) -> None:
    settings = ModelSettings(expected_digest="e" * 64)
    with pytest.raises(InputError, match=r"refusing to serve.*eeee"):
        TritonServer(density(), settings=settings, run_dir=tmp_path, watched=False).start()


def test_the_alias_decides_which_version_is_built(tmp_path: Path, registry: str) -> None:
    publish(density(), "heavy", uri=registry, root=tmp_path)
    publish(density(goal={"kind": "maximise", "scale": 2.0}), "heavy", uri=registry, root=tmp_path, alias="trial")
    for alias, version, scale in (("production", "1", 1.0), ("trial", "2", 2.0)):
        out = tmp_path / alias
        assert materialize(out, ["heavy"], uri=registry, alias=alias) == {"heavy": version}
        settings = json.loads((out / "heavy" / "1" / "settings.json").read_text())
        assert settings["reward"]["goal"]["scale"] == scale
    with pytest.raises(InputError, match=r"'heavy' with the alias 'absent'"):
        materialize(tmp_path / "none", ["heavy"], uri=registry, alias="absent")
    assert not (tmp_path / "none" / "heavy").exists()
    shutil.rmtree(tmp_path / "production" / "heavy")
    assert materialize(tmp_path / "production", ["heavy"], uri=registry) == {"heavy": "1"}  # files are kept, used again


def test_a_file_may_hold_one_reward_a_section_or_several() -> None:
    settings = {"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}}
    assert list(rewards_of(settings)) == ["property"]
    assert list(rewards_of({"seed": 1, "reward": {**settings, "name": "how heavy?"}})) == ["how_heavy_"]
    assert list(rewards_of({"rewards": {"a": settings, "b": {"kind": "ehull"}}})) == ["a", "b"]
