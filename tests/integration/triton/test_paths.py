"""A run's folder may have any name: Triton starts its workers by a command line that it does not quote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.testing import example_crystals
from serving.launcher import TritonServer
from serving.testing import size_reward


def test_a_folder_with_spaces_quotes_and_letters_beyond_ascii_serves(tmp_path: Path) -> None:
    place = tmp_path / "my run's ünïcode $(touch x) & more"
    with TritonServer(size_reward(), run_dir=place, watched=False) as server, server.connect() as reward:
        scores = reward.score(example_crystals()[:3])
        assert np.isfinite(scores.values).all()
        alias = server._plain_place()
        assert alias.resolve() == place.resolve()
    assert not alias.exists(), "nothing is left behind"
    assert (place / "triton.log").stat().st_size > 0
    assert (place / "model_repository").is_dir()


def test_a_plain_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    server = TritonServer(size_reward(), run_dir=tmp_path)
    assert server._plain_place() == tmp_path


@pytest.mark.parametrize(
    ("options", "said"),
    [({"address": "::1"}, "is no IPv4 address"), ({"grpc_port": 0}, "port 0"), ({"metrics_port": 65536}, "port 65536")],
)
def test_addresses_and_ports_that_there_are_not(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        TritonServer(size_reward(), **options)


@pytest.mark.parametrize("command", ["serving", "serving.launcher"])
def test_the_command_says_so_by_either_name(command: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("reward: {kind: property, source: {kind: descriptor, quantity: density}}")
    words = ["--config", str(tmp_path / "p.yaml"), "--address", "::1", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", command, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is no IPv4 address" in done.stderr
    assert "Traceback" not in done.stderr
