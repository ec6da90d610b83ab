"""The promises of the canary, asked over the launcher's HTTP endpoint as a kubelet asks: a killed worker, a killed
launcher, a hung worker; what one question costs; and that no dead process stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serving import launcher as launcher_module
from serving import watch as watch_module
from serving.health import ENDPOINT, LIVE, READY, Health, HealthEndpoint, Report, ask
from serving.launcher import TritonServer
from serving.machine import command_of
from serving.testing import processes, size_reward, wait_until

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Of one process, its threads included."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS


def report(url: str) -> Report:
    """The answer, or that there was none."""
    try:
        return ask(url, deadline_s=2.0)
    except OSError:
        return Report(False, None, "no answer")


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The launcher as a container runs it, and the address of its health endpoint."""
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump({"reward": size_reward().model_dump(mode="json")}))
    command = [sys.executable, "-m", "serving.launcher", "--config", str(tmp_path / "reward.yaml")]
    process = subprocess.Popen([*command, "--run-dir", str(tmp_path)])
    try:
        assert wait_until(lambda: address(tmp_path) is not None, 60)
        url = str(address(tmp_path))
        assert "starting" in str(report(url + READY).problem)
        assert wait_until(lambda: report(url + READY).healthy, 60)
        yield process, url
        process.terminate()
        assert process.wait(60) in (0, -signal.SIGKILL)
    finally:
        process.kill()


def address(folder: Path) -> str | None:
    """Of the health endpoint of the launcher in this folder, once it has written it down."""
    endpoint = folder / ENDPOINT
    return json.loads(endpoint.read_text())["health"] if endpoint.exists() else None


def workers(folder: Path) -> list[int]:
    """The server's workers, found by the launcher's folder in their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and str(folder) in (command := command_of(int(entry.name))):
            found += [int(entry.name)] if "python_backend_stub" in command.split()[0] else []
    return found


def test_a_killed_worker_shows_at_once_and_is_mended_and_a_question_costs_milliseconds(
    launched: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, url = launched
    before, questions = cpu_seconds(process.pid), 300
    for _ in range(questions):
        assert ask(url + READY).healthy
    cost = (cpu_seconds(process.pid) - before) / questions
    assert cost < 0.020, f"{1000 * cost:.1f} ms of CPU a call"
    assert ask(url + LIVE).healthy

    # What a container's own health check costs, its interpreter's start included.
    probe = [sys.executable, "-m", "serving.probe", "--run-dir", str(tmp_path)]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout[:30]) == (0, "the canary crystal got its gol"), done.stderr

    (worker,) = workers(tmp_path)
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    assert wait_until(lambda: not report(url + READY).healthy, 10)
    noticed = time.monotonic() - killed
    assert report(url + LIVE).healthy, "the launcher mends it; a restart of the container would only take longer"
    assert subprocess.run(probe, capture_output=True, timeout=60).returncode == 1 or report(url + READY).healthy
    assert wait_until(lambda: report(url + READY).healthy, 60)
    mended = time.monotonic() - killed
    print(f"call {1000 * cost:.2f} ms of CPU; killed worker seen after {noticed:.2f} s, mended after {mended:.1f} s")


def test_a_killed_launcher_answers_no_more_and_takes_its_server_along(
    launched: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, url = launched
    process.kill()
    process.wait()
    killed = time.monotonic()
    assert report(url + READY) == report(url + LIVE) == Report(False, None, "no answer")
    assert wait_until(lambda: not processes(str(tmp_path)), 20)
    print(f"killed launcher: no answer at once, its server gone after {time.monotonic() - killed:.2f} s")


def test_a_hung_worker_is_not_ready_and_in_the_end_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The launcher's patience in a fiftieth of its length: a canary a second, replaced after six."""
    monkeypatch.setattr(watch_module, "PROBE_S", 1.0)
    monkeypatch.setattr(watch_module, "LOOK_S", 0.2)
    monkeypatch.setattr(watch_module, "HANG_S", 6.0)
    monkeypatch.setattr(launcher_module, "Health", lambda lost, hung_s: Health(lost, stale_s=3.5, hung_s=hung_s))
    with TritonServer(size_reward(), run_dir=tmp_path, quiet=True) as server, HealthEndpoint(server.health) as endpoint:
        assert wait_until(lambda: report(endpoint.url + READY).healthy, 10)
        (worker,) = server.worker_pids
        os.kill(worker, signal.SIGSTOP)
        stopped = time.monotonic()
        assert wait_until(lambda: not report(endpoint.url + READY).healthy, 10)
        assert 2.0 < time.monotonic() - stopped < 6.0, "busy and hung look alike at first"
        assert "golden value" in str(report(endpoint.url + READY).problem)
        assert wait_until(lambda: report(endpoint.url + READY).healthy, 60)
        assert server.worker_pids != [worker]


def test_a_launcher_that_gives_up_is_not_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with TritonServer(size_reward(), run_dir=tmp_path, quiet=True) as server:
        assert server.health.live().healthy
        monkeypatch.setattr(server, "start", lambda: 1 / 0)  # whatever may go wrong while it starts again
        server.kill()
        assert wait_until(lambda: not server.health.live().healthy, 10)
        assert "giving up" in str(server.health.ready().problem)


def zombies() -> list[str]:
    """Processes that ended and that nobody has waited for, as lines of their state."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (state := (entry / "stat").read_text()).rpartition(")")[2].split()[0] == "Z":
                found.append(state)
    return found


AS_PROCESS_ONE = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.integration.triton.test_health import address, report, workers, zombies
from serving.__main__ import main
from serving.health import READY
from serving.machine import children

def work():
    folder = Path(sys.argv[2])
    try:
        for killed in ("worker", "server", "guard"):
            while not (address(folder) and report(address(folder) + READY).healthy):
                time.sleep(0.1)
            guard = children(1)[0]
            victim = {"worker": workers(folder)[0], "server": children(guard)[0], "guard": guard}[killed]
            os.kill(victim, signal.SIGKILL)
            while report(address(folder) + READY).healthy:
                time.sleep(0.05)
            while not report(address(folder) + READY).healthy:
                time.sleep(0.1)
            time.sleep(1.5)
            print(killed, len(zombies()), flush=True)
    finally:
        os.kill(1, signal.SIGTERM)

assert os.getpid() == 1
threading.Thread(target=work, daemon=True).start()
sys.exit(main(["--config", sys.argv[1], "--run-dir", sys.argv[2]]))
"""


def as_process_one() -> list[str] | None:
    """The command before a program that makes it process 1 of a namespace; None where the system does not allow it."""
    for more in ([], ["--map-root-user"]):
        command = ["unshare", *more, "--fork", "--pid", "--mount-proc", "--kill-child"]
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None


@pytest.mark.skipif(as_process_one() is None, reason="no process namespace can be made here (unshare --pid)")
def test_as_process_one_it_leaves_no_dead_process_unburied(tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump({"reward": size_reward().model_dump(mode="json")}))
    arguments = [tmp_path / "reward.yaml", tmp_path, Path(__file__).resolve().parents[3]]
    done = subprocess.run(
        [
            "unshare",
            "--fork",
            "--pid",
            "--mount-proc",
            "--kill-child",
            sys.executable,
            "-c",
            AS_PROCESS_ONE,
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:3] == ["worker 0", "server 0", "guard 0"], done.stdout
