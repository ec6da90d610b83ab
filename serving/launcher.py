"""Starts a real Triton server on this machine, knows whether it is well, and ends it leaving nothing behind.

    with TritonServer(reward_config, instances=2) as server:
        reward = RemoteReward(server.grpc_url, server.model)

The server listens on the loopback interface only, has no HTTP endpoint, cannot be given models, and its
administrative protocols are locked with a random key. It is meant for one machine and for CI; a cluster uses
the current official image with the same repository.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel

from crystalforge.common.errors import InputError
from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.integrations.triton.connection import ClientConfig
from crystalforge.rewards.protocol import RewardUnavailable
from serving import guard, installation
from serving.counts import Statistics, scored_by
from serving.health import Health
from serving.installation import available
from serving.machine import children, command_of, free_port, listens
from serving.repository import ModelSettings, write_model
from serving.security import ServerSecurity
from serving.service import Limits
from serving.watch import HANG_S, watch

__all__ = ["ServerSecurity", "Statistics", "TritonServer", "available"]

POLL_S = 0.2
PROGRESS_S = 5.0
PLAIN = re.compile(r"[\w./+@%,=-]*", re.ASCII)  # a path that no shell takes for anything else
BIND_ATTEMPTS = 3  # a port found free may be taken before the server binds it


class TritonServer:
    """A Triton server on this machine that serves one reward, or several by name.

    Entering the context starts it and returns when every model has proved its golden values and answered a
    probe; leaving it ends every process and removes what they left. When the owner dies, so does the server.
    """

    def __init__(
        self,
        reward: BaseModel | Mapping[str, BaseModel],
        *,
        instances: int = 1,
        run_dir: Path | None = None,
        limits: Limits | None = None,
        security: ServerSecurity | None = None,
        client: ClientConfig | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        address: str = "127.0.0.1",
        settings: ModelSettings | None = None,
        startup_s: float = 300.0,
        watched: bool = True,
        ended: threading.Event | None = None,
        quiet: bool = False,
    ) -> None:
        """Nothing is started yet.

        reward: the configuration that `crystalforge.rewards.build` takes; several go by name. run_dir: where the
        repository and the log are written (a temporary folder otherwise). client: how this launcher itself connects,
        needed with TLS or a token. ended: when set, no start or restart is begun or finished. watched: inside the
        context a thread looks after the server and starts it again when a worker dies. settings: all options at once
        (instances and limits override it).
        """
        if instances < 1:
            raise InputError(f"instances = {instances}: a server needs at least one", remedy="give 1 or more")
        if ":" in address:
            raise InputError("is no IPv4 address", source=f"address {address}", remedy="give 127.0.0.1 or 0.0.0.0")
        for port in (grpc_port, metrics_port):
            if port is not None and not 0 < port < 65536:
                raise InputError(f"port {port} does not exist", remedy="give one from 1 to 65535")
        self.rewards = dict(reward) if isinstance(reward, Mapping) else {model_name(reward): reward}
        base = settings or ModelSettings()
        self.settings = ModelSettings(
            instances,
            base.kind,
            limits or base.limits,
            base.max_requests,
            base.queue_delay_us,
            base.expected_digest,
        )
        self.security = security or ServerSecurity()
        self.client = client or ClientConfig()
        self._own_folder = None if run_dir is not None else tempfile.TemporaryDirectory(prefix="crystalforge-triton-")
        self.run_dir = Path(self._own_folder.name) if self._own_folder is not None else Path(run_dir or ".").resolve()
        self.address, self._grpc_port, self._metrics_port = address, grpc_port, metrics_port
        self.startup_s, self.quiet = startup_s, quiet
        self._watch = threading.Thread(target=self._keep_well, name="watch-triton", daemon=True) if watched else None
        self._closing = ended or threading.Event()
        self._guard: subprocess.Popen[bytes] | None = None
        self._alias: tempfile.TemporaryDirectory[str] | None = None
        self._log_begins = 0
        self.health = Health(self.lost, hung_s=HANG_S + 2 * startup_s)

    def __enter__(self) -> TritonServer:
        self.start()
        if self._watch is not None:
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._watch is not None and self._watch.ident is not None:
            self._watch.join()
        self.stop()
        for folder in (self._own_folder, self._alias):
            if folder is not None:
                folder.cleanup()

    @property
    def model(self) -> str:
        """Name of the (first) model served."""
        return next(iter(self.rewards))

    @property
    def models(self) -> list[str]:
        """Names of all models served."""
        return list(self.rewards)

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.address}:{self._grpc_port}"

    @property
    def local_url(self) -> str:
        """The gRPC endpoint as seen from this machine, also when the server listens on every interface."""
        return f"{'127.0.0.1' if self.address == '0.0.0.0' else self.address}:{self._grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds the metrics."""
        return f"http://{self.local_url.rsplit(':', 1)[0]}:{self._metrics_port}/metrics"

    @property
    def log_path(self) -> Path:
        """The server's log: its own lines and those of the models."""
        return self.run_dir / "triton.log"

    @property
    def server_pid(self) -> int | None:
        """Process id of tritonserver itself, or None when it does not run."""
        running = self._guard
        return next(iter(children(running.pid)), None) if running is not None else None

    @property
    def guard_pid(self) -> int | None:
        """Process id of what ends the server when this process is gone, or None."""
        return self._guard.pid if self._guard is not None else None

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the living workers (Python stubs)."""
        server = self.server_pid
        return [pid for pid in children(server) if "python_backend" in command_of(pid)] if server else []

    def start(self) -> None:
        """Start and wait until the server answers; InputError with the log's last errors when it does not."""
        assert self._guard is None, "already started"
        found = installation.find()
        guard.sweep_shared_memory()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        for name, reward in self.rewards.items():
            write_model(self.run_dir / "model_repository", name, reward, self.settings)
        found.make_backend_folder(self.run_dir / "backends")
        place = self._plain_place()
        repository, backends = place / "model_repository", place / "backends"
        fixed_ports = self._grpc_port is not None and self._metrics_port is not None
        for attempt in range(BIND_ATTEMPTS):
            self._grpc_port = self._grpc_port or free_port(self.address)
            self._metrics_port = self._metrics_port or free_port(self.address)
            self._launch(found, repository, backends)
            try:
                self._wait_until_ready()
                return
            except InputError:
                self.stop()
                bound_elsewhere = "Address already in use" in self.log_tail(200)
                if fixed_ports or not bound_elsewhere or attempt == BIND_ATTEMPTS - 1:
                    raise
                self._grpc_port = self._metrics_port = None
            except BaseException:
                self.stop()
                raise

    def _plain_place(self) -> Path:
        """The run directory, or a link to it where its name would not survive Triton's shell.

        Triton starts its Python workers by a command line that it does not quote, and takes paths for ASCII.
        """
        if PLAIN.fullmatch(str(self.run_dir)):
            return self.run_dir
        if self._alias is None:
            temporary = tempfile.gettempdir()
            self._alias = tempfile.TemporaryDirectory(
                prefix="crystalforge-", dir=temporary if PLAIN.fullmatch(temporary) else "/tmp"
            )
            (Path(self._alias.name) / "run").symlink_to(self.run_dir, target_is_directory=True)
        return Path(self._alias.name) / "run"

    def stop(self) -> None:
        """End the server and all that belongs to it. Does nothing when it is not running."""
        if self._guard is None:
            return
        self._guard.terminate()
        try:
            self._guard.wait(3 * guard.GRACE_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()  # the death signal takes the server along
            self._guard.wait()
        self._guard = None

    def restart(self) -> None:
        """Stop and start again on the same ports, so that clients find it."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill the server at once, as a crash would; `restart` brings it back."""
        server = self.server_pid
        if server is not None:
            os.killpg(server, signal.SIGKILL)
        if self._guard is not None:
            self._guard.wait()

    def problem(self, *, deadline_s: float = 10.0) -> str | None:
        """What is wrong with the server, or None when every worker lives and a probe gets the right value.

        Triton itself stays "ready" when a worker has died, so readiness is not asked for: the processes are
        counted and one known crystal is scored.
        """
        trouble = self.lost()
        if trouble is not None:
            return trouble
        for name in self.rewards:
            try:
                with self.connect(name, deadline_s=deadline_s, patience_s=0.0) as reward:
                    reward.probe()
            except RewardUnavailable as error:
                return str(error)
        self.health.proved()
        return None

    def lost(self) -> str | None:
        """Which processes are gone, or None; the part of `problem` that costs nothing."""
        running = self._guard  # asked by other threads too, while a restart takes it away
        if running is None or running.poll() is not None or self.server_pid is None:
            return "the server is not running"
        expected = self.settings.instances * len(self.rewards)
        alive = len(self.worker_pids)
        return f"{expected - alive} of {expected} workers died" if alive < expected else None

    def healthy(self, *, deadline_s: float = 10.0) -> bool:
        """Whether `problem` finds none."""
        return self.problem(deadline_s=deadline_s) is None

    def connect(self, name: str | None = None, **changes: Any) -> RemoteReward:
        """A client for this server; `changes` override fields of the client configuration."""
        return RemoteReward(self.local_url, name or self.model, config=self.client.model_copy(update=changes))

    def statistics(self, name: str | None = None) -> Statistics:
        """Triton's counts for a model (the first one unless named)."""
        name = name or self.model
        with self.connect(name) as reward:
            counts = reward.statistics()
        return Statistics(**counts, structures=self.scored(name))

    def scored(self, name: str) -> dict[str, int]:
        """Crystals scored by a model since its start, by status, from the metrics endpoint."""
        return scored_by(self.metrics_url, name)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self._log().splitlines()[-lines:])

    def _keep_well(self) -> None:
        try:
            watch(self, lambda: "closed" if self._closing.is_set() else None)
        except Exception as error:  # whatever it is: a server that nobody looks after must not pass for a well one
            if not self._closing.is_set():
                self.health.gave_up(f"giving up: {str(error).splitlines()[0]}")
                print(f"serve         giving up: {error}", file=sys.stderr, flush=True)

    def _launch(self, found: installation.Installation, repository: Path, backends: Path) -> None:
        command = [
            str(found.server),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--backend-config=python,shm-region-prefix-name=@SHM@",
            "--model-control-mode=none",
            "--disable-auto-complete-config",  # otherwise each worker is started once more, only to be asked
            "--strict-readiness=true",
            "--exit-timeout-secs=0",  # workers hold nothing that is worth waiting for
            "--allow-http=false",
            f"--grpc-address={self.address}",
            f"--grpc-port={self._grpc_port}",
            "--allow-gpu-metrics=false",
            f"--metrics-address={self.address}",
            f"--metrics-port={self._metrics_port}",
            *self.security.arguments(),
        ]
        program = [sys.executable, "-S", "-E", str(Path(guard.__file__)), str(os.getpid()), *command]
        self.health.starts()
        with self.log_path.open("ab") as log:
            self._log_begins = log.tell()
            self._guard = subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=found.environment()
            )

    def _wait_until_ready(self) -> None:
        assert self._guard is not None
        began = said = time.monotonic()
        names = ", ".join(self.rewards)
        while True:
            if self._guard.poll() is not None:
                raise InputError(
                    f"the reward server ended while it started: {self._reasons()}",
                    source=self.log_path,
                    remedy="mend what it names; the log has the whole story",
                )
            if listens(self.address, self._grpc_port):
                break
            if self._closing.is_set():
                raise InputError("the reward server was closed while it started", source=self.log_path)
            now = time.monotonic()
            if now - began > self.startup_s:
                raise InputError(
                    f"the reward server was not ready after {self.startup_s:.0f} s",
                    source=self.log_path,
                    remedy="look into the log, or allow it more time",
                )
            if now - said > PROGRESS_S and not self.quiet:
                said = now
                print(
                    f"serve         starting Triton with {names}  {now - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(POLL_S)
        trouble = self.problem(deadline_s=60.0)
        if trouble is not None:
            raise InputError(f"the reward server started but is not well: {trouble}", source=self.log_path)
        if not self.quiet:
            print(
                f"serve         Triton answers at {self.grpc_url} with {names}, "
                f"{self.settings.instances} worker(s), after {time.monotonic() - began:.0f} s",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def _log(self) -> str:
        """The log since the last start."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_begins)
            return log.read().decode(errors="replace")

    def _reasons(self) -> str:
        """What the log says went wrong, most specific first."""
        text = self._log()
        found = re.findall(r"(?:\w*Error|refusing to serve): [^\n]+", text)
        errors = re.findall(r"^E\d{4} [^\]]+\] \"?([^\n\"]+)", text, flags=re.MULTILINE)
        unique = list(dict.fromkeys((found or errors)[-3:]))
        return "; ".join(unique) or f"exit code {self._guard.returncode if self._guard else '?'}"


def model_name(reward: BaseModel) -> str:
    """The name under which a reward is served when none is given: its own, else its kind."""
    name = getattr(reward, "name", "") or getattr(reward, "kind", "reward")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(name))[:64]


if __name__ == "__main__":
    import runpy

    runpy.run_module("serving", run_name="__main__")  # the command's earlier name, which must not do nothing
