"""One server per run directory, whoever asks: found again, exchanged when the reward changes, ended with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crystalforge.common.errors import InputError
from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.integrations.triton.wire import canary
from crystalforge.rewards import parse
from serving import installation
from serving.launcher import available
from serving.supervisor import ensure_server, identity, read_state, stop_server

USABLE, REASON = available()
needs_triton = pytest.mark.skipif(not USABLE, reason=REASON)
pytestmark = [pytest.mark.triton]


def config(**fields: Any) -> Any:
    return parse({"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}, **fields})


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stop_server(tmp_path)


@needs_triton
def test_one_server_is_found_again_exchanged_and_stopped(run_dir: Path) -> None:
    url = ensure_server(run_dir, config(), owner_pid=os.getpid())
    state = read_state(run_dir)
    assert state is not None
    assert state.alive
    assert state.url == url
    began = time.monotonic()
    assert ensure_server(run_dir, config()) == url
    assert time.monotonic() - began < 3
    assert read_state(run_dir) == state

    with RemoteReward(url, "property", expected_version=state.digests["property"]) as reward:
        first = reward.score([canary()]).values
        # Killed so that it could not clean up: the next call starts it on the same port, and clients go on.
        os.kill(int(state.supervisor.split(":")[0]), signal.SIGKILL)
        assert ensure_server(run_dir, config()) == url
        assert reward.score([canary()]).values == first

    ensure_server(run_dir, config(goal={"kind": "maximise", "scale": 2.0}))
    other = read_state(run_dir)
    assert other is not None
    assert other.digests != state.digests
    with RemoteReward(other.url, "property") as reward:
        assert reward.score([canary()]).values == 2 * first

    assert stop_server(run_dir)
    assert not other.alive
    assert not stop_server(run_dir)


@needs_triton
def test_it_ends_with_its_owner(run_dir: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ensure_server(run_dir, config(), owner_pid=owner.pid)
    state = read_state(run_dir)
    assert state is not None
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 30
    while state.alive and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not state.alive


@needs_triton
def test_a_reward_that_cannot_be_served_is_refused_with_the_reason(run_dir: Path) -> None:
    with pytest.raises(InputError, match=r"golden values.*99"):
        ensure_server(run_dir, config(golden={"NaCl": 99.0}))
    assert read_state(run_dir) is None


def test_without_an_installation_the_reason_and_the_remedy_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(installation.ENVIRONMENT_VARIABLE, str(tmp_path))
    usable, reason = available()
    assert not usable
    assert "make install" in reason


def test_a_process_is_known_by_more_than_its_number() -> None:
    own = identity(os.getpid())
    assert own is not None
    assert own.startswith(f"{os.getpid()}:")
    assert identity(2**22 + 1) is None
