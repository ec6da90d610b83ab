"""Does the reward service work? Exit code 0 when a known crystal gets its known value, 1 with the reason otherwise.

    python -m serving.probe                            # the server that this machine's launcher started
    python -m serving.probe rewards:8001 ehull         # any other

Triton says that it is ready even when its worker processes are dead; this asks it to work. Several probes go at once,
so that with several workers the dead one is met too: it fails at once and so takes more than its share.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crystalforge.integrations.triton.client import ClientConfig, RemoteReward
from crystalforge.rewards import RewardUnavailable
from serving.__main__ import ENDPOINT, RUN_DIR


def probe(url: str, model: str, *, config: ClientConfig, instances: int = 1) -> None:
    """Raise RewardUnavailable unless every one of `2 x instances` simultaneous probes is answered rightly."""

    def once(_: int) -> None:
        with RemoteReward(url, model, config=config) as reward:
            reward.probe()

    with ThreadPoolExecutor(2 * instances) as pool:
        list(pool.map(once, range(2 * instances)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe one server and say what is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m serving.probe", description=__doc__)
    parser.add_argument("url", nargs="?", help="host:port of the gRPC endpoint")
    parser.add_argument("model", nargs="?", help="the model's name")
    parser.add_argument("--deadline-s", type=float, default=8.0)
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, help="of the launcher on this machine")
    options = parser.parse_args(arguments)
    client: dict[str, object] = {}
    instances = 1
    if options.url is None:
        path = options.run_dir / ENDPOINT
        if not path.exists():
            print(f"no server yet: {path} does not exist", file=sys.stderr)
            return 1
        endpoint = json.loads(path.read_text())
        url, models, client, instances = (endpoint[key] for key in ("url", "models", "client", "instances"))
    else:
        url, models = options.url, [options.model or "ehull"]
    config = ClientConfig.model_validate({**client, "deadline_s": options.deadline_s, "patience_s": 0.0})
    try:
        for model in models:
            probe(url, model, config=config, instances=instances)
    except RewardUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
