"""What kills a service, done to the real server: crashes, hangs, lost workers, lost owners, wrong weights."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.rewards import RewardUnavailable
from serving.launcher import TritonServer
from serving.testing import SLEEP, crystal, crystals, lengths, processes, size_reward, wait_until


def test_a_server_killed_in_the_middle_loses_nothing(server: TritonServer) -> None:
    with server.connect(chunk_structures=8, patience_s=60) as reward:
        reward.probe()
        result: dict[str, Any] = {}
        worker = threading.Thread(target=lambda: result.update(scores=reward.score(crystals(400))))
        worker.start()
        assert wait_until(lambda: reward.counters.requests >= 4, 20)
        server.kill()
        before = reward.counters.requests
        assert before < 50, "killed too late to be in the middle"
        server.restart()
        worker.join(60)
        assert np.allclose(result["scores"].values, lengths(400))
        assert reward.counters.structures == 400  # each crystal counted once, the unanswered chunks sent again
        assert reward.counters.requests == 50
        assert reward.counters.retries >= 1
        # The new server did what was left, not everything once more.
        assert sum(server.scored(server.model).values()) == 400 - 8 * before


def test_a_dead_worker_is_noticed_though_triton_says_it_is_ready(server: TritonServer) -> None:
    import tritonclient.grpc as triton

    assert server.healthy()
    os.kill(server.worker_pids[0], signal.SIGKILL)
    assert wait_until(lambda: server.problem() is not None, 10)
    assert "1 of 2 workers died" in str(server.problem())
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        assert client.is_server_ready()  # which is why nobody asks it
    # 1,280 crystals in requests of four: the living one may be quick enough to take sixteen requests by itself.
    with (
        server.connect(chunk_structures=4, patience_s=0) as reward,
        pytest.raises(RewardUnavailable, match=r"worker process.*\n.*Remedy"),
    ):
        reward.score(crystals(64) * 20)
    server.restart()
    assert server.healthy()


def test_the_canary_alone_notices_killed_workers_within_ten_seconds(server: TritonServer) -> None:
    endpoint = [server.grpc_url, server.model]
    command = [sys.executable, "-m", "serving.probe", *endpoint]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    for pid in server.worker_pids:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    with server.connect(deadline_s=8, patience_s=0) as reward, pytest.raises(RewardUnavailable, match="worker process"):
        reward.probe()
    assert time.monotonic() - killed < 10
    # The same canary as the cluster's probe asks it, from a process that knows nothing of the workers.
    probe = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert probe.returncode == 1
    assert "worker process" in probe.stderr
    server.restart()
    assert server.healthy()


def test_deadline(server: TritonServer) -> None:
    with server.connect(deadline_s=0.5) as reward:
        reward.probe()
        with pytest.raises(RewardUnavailable, match=r"deadline of 0\.5 s"):
            reward.score([crystal(3.0, SLEEP)])
    # The model goes on with what nobody waits for; the server stays well.
    assert server.healthy()


def test_a_watched_server_recovers_under_a_waiting_client(tmp_path: Path) -> None:
    with (
        TritonServer(size_reward(pause=0.02), instances=2, run_dir=tmp_path) as server,
        server.connect(chunk_structures=4) as reward,
    ):
        reward.probe()
        os.kill(server.worker_pids[0], signal.SIGKILL)
        assert np.allclose(reward.score(crystals(200)).values, lengths(200))
        assert wait_until(server.healthy, 30)
        assert reward.counters.structures == 200


def test_golden_values_that_do_not_match_keep_the_server_down(tmp_path: Path) -> None:
    wrong = size_reward().model_copy(update={"golden": {"NaCl": 1234.5}})
    with pytest.raises(InputError, match=r"golden values.*1234\.5") as caught:
        TritonServer(wrong, run_dir=tmp_path).start()
    assert "triton.log" in str(caught.value)
    assert not processes(str(tmp_path))


def test_nothing_is_left_behind_when_the_owner_is_killed(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from serving.launcher import TritonServer
from serving.testing import size_reward
with TritonServer(size_reward(), run_dir=Path({str(tmp_path)!r}), quiet=True) as server:
    print("up", server._guard.pid, flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    word, guard = owner.stdout.readline().split()
    assert word == "up"
    regions = list(Path("/dev/shm").glob(f"crystalforge-{guard}-*"))
    assert regions
    assert len(processes(str(tmp_path))) >= 3  # guard, server, worker
    owner.kill()
    owner.wait()
    # The name of the test's folder is in every command line of ours, the owner's included.
    assert wait_until(lambda: not processes(str(tmp_path)), 20)
    assert not [region for region in regions if region.exists()]
