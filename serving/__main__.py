"""Serve a reward in the foreground, for as long as this process lives.

    python -m serving --config params.yaml
    python -m serving --config reward.yaml --address 0.0.0.0 --grpc-port 8001 --metrics-port 8002

The file holds a section `reward` (as params.yaml does), a section `rewards` with several by name, or one reward alone.
The server is watched and started again when a worker dies; SIGTERM ends it. Whether it is well is told over HTTP
(`serving.health`, --health-port) and by `python -m serving.probe`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import write_json
from crystalforge.common.settings import override, read_yaml
from crystalforge.common.system import told
from crystalforge.integrations.triton.connection import ClientConfig
from crystalforge.rewards import parse
from serving.guard import reap
from serving.health import ENDPOINT, RUN_DIR, HealthEndpoint
from serving.launcher import ServerSecurity, TritonServer, model_name
from serving.repository import ModelSettings


def rewards_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The rewards in a configuration, by the names under which they are served."""
    if "rewards" in values:
        return {name: parse(settings) for name, settings in values["rewards"].items()}
    config = parse(values.get("reward", values if "kind" in values else {"kind": "ehull"}))
    return {model_name(config): config}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; exit code 2 and one message on a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        rewards = rewards_of(override(read_yaml(options.config), options.set))
        security = ServerSecurity(options.certificate, options.key, options.client_ca, _token(options.token_file))
        client = ClientConfig(
            root_certificate=options.root_certificate or options.certificate,
            certificate=options.client_certificate,
            key=options.client_key,
            token_file=options.token_file,
        )
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        server = TritonServer(
            rewards,
            instances=options.instances,
            settings=ModelSettings(kind=options.kind, queue_delay_us=options.queue_delay_us),
            run_dir=options.run_dir,
            security=security,
            client=client,
            address=options.address,
            grpc_port=options.grpc_port,
            metrics_port=options.metrics_port,
            startup_s=options.startup_s,
            ended=ended,
        )
        options.run_dir.mkdir(parents=True, exist_ok=True)
        with _health(server, options.address, options.health_port) as health:
            write_json(options.run_dir / ENDPOINT, {"health": health.url})
            with server:
                endpoint = {"url": server.local_url, "models": server.models, "instances": options.instances}
                endpoint |= {"health": health.url, "client": json.loads(client.model_dump_json())}
                write_json(options.run_dir / ENDPOINT, endpoint)
                while not ended.wait(1.0):
                    if os.getpid() == 1:  # in a container, what a killed guard leaves behind comes to us
                        reap(spare=server.guard_pid)
    except Exception as error:
        return told(error)
    return 0


def _health(server: TritonServer, address: str, port: int) -> HealthEndpoint:
    try:
        return HealthEndpoint(server.health, address, port)
    except OSError as error:
        raise InputError(
            f"{error.strerror}: {address}:{port}", source="--health-port", remedy="give a free port, or none"
        ) from None


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path, remedy="correct --token-file") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file with the reward")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the file")
    add("--instances", type=int, default=1, help="workers for each reward: one core each, or places on the GPUs")
    add("--kind", choices=("KIND_CPU", "KIND_GPU"), default="KIND_CPU", help="where the workers compute")
    add("--queue-delay-us", type=int, default=0, help="how long small requests wait for others to share a pass")
    add("--run-dir", type=Path, default=RUN_DIR, help="where the repository and the log are written")
    add("--address", default="127.0.0.1", help="interface to listen on")
    add("--grpc-port", type=int, help="default: a free one")
    add("--metrics-port", type=int, help="default: a free one")
    add("--health-port", type=int, default=0, help="HTTP, answers /ready and /live; default: a free one")
    add("--startup-s", type=float, default=300.0, help="seconds that the start may take")
    add("--certificate", type=Path, help="PEM; switches TLS on")
    add("--key", type=Path, help="PEM with the certificate's key")
    add("--client-ca", type=Path, help="PEM of the authority that signs clients (mutual TLS)")
    add("--token-file", type=Path, help="file with a secret that clients must send")
    add("--root-certificate", type=Path, help="PEM of the authority that signed --certificate, for our own probes")
    add("--client-certificate", type=Path, help="PEM that our own probes show (mutual TLS)")
    add("--client-key", type=Path, help="PEM with its key")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
