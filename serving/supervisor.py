"""A reward server that outlives the process which asked for it, found again by others through a file.

The steps of a pipeline run in processes of their own, one after the other. `ensure_server` gives each of them the
address of one server per run directory: the first call starts it in the background, later calls find it, and a dead
one is started again on the same port, where waiting clients pick it up.

The background process (this module as a program) keeps the server well. It ends with its owner, when nobody asked for
anything during the idle time, or when told to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import crystalforge
from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_file, write_json
from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.rewards import RewardUnavailable, parse
from serving.launcher import TritonServer, model_name
from serving.machine import port_is_free
from serving.repository import ModelSettings, fingerprint, python_path
from serving.service import Limits
from serving.watch import watch

STATE, SPECIFICATION, LOG, LOCK = "server.json", "specification.json", "supervisor.log", "lock"
PROGRESS_S = 5.0
PORTS_S = 10.0  # a killed server's guard needs a moment to end it and free its ports


@dataclass(frozen=True)
class State:
    """What the background process says of itself once it serves.

    supervisor: its process, as `identity` gives it. fingerprint: of everything that decides what is served.
    digests: of the rewards, by model name.
    """

    url: str
    metrics_url: str
    supervisor: str
    fingerprint: str
    digests: dict[str, str]

    @property
    def alive(self) -> bool:
        """Whether that process still exists."""
        return identity(int(self.supervisor.split(":")[0])) == self.supervisor


def ensure_server(
    run_dir: Path,
    reward: BaseModel | Mapping[str, BaseModel],
    *,
    instances: int = 1,
    settings: ModelSettings | None = None,
    owner_pid: int | None = None,
    idle_s: float = 1800.0,
    startup_s: float = 300.0,
) -> str:
    """The address (host:port) of the server of this run directory that serves `reward`; started when need be.

    owner_pid: the server ends when this process does (for instance the one that runs the pipeline). Raises
    InputError with the reason when the server cannot be started.
    """
    rewards = dict(reward) if isinstance(reward, Mapping) else {model_name(reward): reward}
    base = settings or ModelSettings()
    settings = ModelSettings(
        instances, base.kind, base.limits, base.max_requests, base.queue_delay_us, base.expected_digest
    )
    wanted = fingerprint(rewards, settings, _code())
    folder = run_dir.resolve() / "reward-server"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        state = read_state(run_dir)
        if state is not None and state.alive:
            if state.fingerprint == wanted and _answers(state, next(iter(rewards))):
                return state.url
            _stop(folder, state)
        specification = {
            "rewards": {name: config.model_dump(mode="json") for name, config in rewards.items()},
            "settings": asdict(settings),
            "fingerprint": wanted,
            "owner": identity(owner_pid) if owner_pid is not None else None,
            "idle_s": idle_s,
            "startup_s": startup_s,
            "ports": _ports(state),
        }
        (folder / STATE).unlink(missing_ok=True)
        write_json(folder / SPECIFICATION, specification)
        return _spawn(folder, startup_s).url


def read_state(run_dir: Path) -> State | None:
    """What is known of the run directory's server, alive or not; None when there never was one."""
    path = run_dir / "reward-server" / STATE
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    return None if "error" in content else State(**content)


def stop_server(run_dir: Path) -> bool:
    """End the run directory's server; returns whether one was running."""
    folder = run_dir.resolve() / "reward-server"
    if not folder.exists():
        return False
    with _locked(folder):
        state = read_state(run_dir)
        if state is None or not state.alive:
            return False
        _stop(folder, state)
        return True


def identity(pid: int) -> str | None:
    """Process id and start time, which together never come back; None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{pid}:{fields[19]}"


def _answers(state: State, model: str) -> bool:
    with RemoteReward(state.url, model, expected_version=state.digests[model]) as reward:
        try:
            reward.probe()
        except RewardUnavailable:
            return False
    return True


def _spawn(folder: Path, startup_s: float) -> State:
    paths = [*python_path(), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.supervisor", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # an interrupt at the terminal is for the foreground
        )
    began = said = time.monotonic()
    while True:
        ended = process.poll() is not None  # asked before the file is looked for: it may be written last
        if (folder / STATE).exists():
            content = json.loads((folder / STATE).read_text())
            if "error" in content:
                raise InputError(content["error"], source="reward server")
            return State(**content)
        now = time.monotonic()
        if ended or now - began > startup_s + 30:
            process.kill()
            raise InputError(
                f"the reward server did not start (exit code {process.returncode})",
                source=folder / LOG,
                remedy="look into that log",
            )
        if now - said > PROGRESS_S:
            said = now
            print(f"serve         starting the reward server  {now - began:.0f} s", file=sys.stderr, flush=True)
        time.sleep(0.1)


def _stop(folder: Path, state: State) -> None:
    pid = int(state.supervisor.split(":")[0])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while state.alive and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # when it is our own child
        time.sleep(0.05)
    if state.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the guard notices and ends the server


def _ports(state: State | None) -> list[int] | None:
    """The ports of the server before, when they can be had: clients may be waiting there."""
    if state is None:
        return None
    ports = [int(state.url.rsplit(":", 1)[1]), int(state.metrics_url.rsplit(":", 1)[1].split("/")[0])]
    deadline = time.monotonic() + PORTS_S
    while not all(port_is_free("127.0.0.1", port) for port in ports):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    return ports


def _code() -> str:
    """A hash over the code that scores and serves: a server of older code must not be taken for a current one."""
    package = Path(crystalforge.__file__ or "").parent
    folders = [package / name for name in ("crystal", "potentials", "thermo", "rewards", "integrations")]
    files = [path for folder in [*folders, Path(__file__).parent] for path in sorted(folder.rglob("*.py"))]
    return "".join(sha256_file(path)[:8] for path in files)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _main(folder: Path) -> int:
    specification: dict[str, Any] = json.loads((folder / SPECIFICATION).read_text())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    values = specification["settings"]
    settings = ModelSettings(**{**values, "limits": Limits(**values["limits"])})
    grpc_port, metrics_port = specification["ports"] or (None, None)
    try:
        rewards = {name: parse(config) for name, config in specification["rewards"].items()}
        with TritonServer(
            rewards,
            instances=settings.instances,
            settings=settings,
            run_dir=folder,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            startup_s=specification["startup_s"],
            watched=False,  # this process does it
        ) as server:
            digests = {}
            for name in rewards:
                with server.connect(name) as client:
                    digests[name] = client.version.digest
            own = identity(os.getpid())
            assert own is not None
            state = State(server.grpc_url, server.metrics_url, own, specification["fingerprint"], digests)
            write_json(folder / STATE, asdict(state))
            owner = specification["owner"]

            def ended() -> str | None:
                gone = owner is not None and identity(int(owner.split(":")[0])) != owner
                return "its owner ended" if gone else None

            reason = watch(server, ended, idle_s=specification["idle_s"])
            print(f"serve         ending: {reason}", file=sys.stderr, flush=True)
    except (InputError, RewardUnavailable) as error:
        write_json(folder / STATE, {"error": str(error)})
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(Path(sys.argv[1])))
