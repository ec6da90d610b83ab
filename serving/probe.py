"""Does the reward service work? Exit code 0 when a known crystal gets its known value, 1 with the reason otherwise.

    python -m serving.probe                            # what this machine's launcher knows: costs next to nothing
    python -m serving.probe --now                      # the same server, asked to score the crystal now
    python -m serving.probe rewards:8001 ehull         # any other

Triton says that it is ready even when its worker processes are dead; this asks it to work. With --now, or an address,
several probes go at once, so that with several workers the dead one is met too: it fails at once and so takes more
than its share.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.health import ENDPOINT, READY, RUN_DIR, ask

if TYPE_CHECKING:
    from crystalforge.integrations.triton.connection import ClientConfig


def probe(url: str, model: str, *, config: ClientConfig, instances: int = 1) -> None:
    """Raise RewardUnavailable unless every one of `2 x instances` simultaneous probes is answered rightly."""
    from concurrent.futures import ThreadPoolExecutor

    from crystalforge.integrations.triton.client import RemoteReward

    def once(_: int) -> None:
        with RemoteReward(url, model, config=config) as reward:
            reward.probe()

    with ThreadPoolExecutor(2 * instances) as pool:
        list(pool.map(once, range(2 * instances)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe one server and say what is wrong with it."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="?", help="host:port of the gRPC endpoint")
    parser.add_argument("model", nargs="?", help="the model's name")
    parser.add_argument("--deadline-s", type=float, default=8.0)
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, help="of the launcher on this machine")
    parser.add_argument("--now", action="store_true", help="have the crystal scored, instead of asking the launcher")
    options = parser.parse_args(arguments)
    if options.url is not None:
        return _score(options.url, [options.model or "ehull"], {}, 1, options.deadline_s)
    path = options.run_dir / ENDPOINT
    if not path.exists():
        print(f"no server yet: {path} does not exist", file=sys.stderr)
        return 1
    endpoint = json.loads(path.read_text())
    if options.now and "url" in endpoint:
        client, instances = endpoint["client"], endpoint["instances"]
        return _score(endpoint["url"], endpoint["models"], client, instances, options.deadline_s)
    try:
        report = ask(endpoint["health"] + READY, deadline_s=options.deadline_s)
    except (OSError, ValueError) as error:
        print(f"error: the launcher does not answer at {endpoint['health']} ({error})", file=sys.stderr)
        return 1
    if report.healthy:
        print(f"the canary crystal got its golden value {report.golden_age_s:.0f} s ago")
        return 0
    print(f"error: {report.problem}", file=sys.stderr)
    return 1


def _score(url: str, models: Sequence[str], client: dict[str, Any], instances: int, deadline_s: float) -> int:
    from crystalforge.integrations.triton.connection import ClientConfig
    from crystalforge.rewards import RewardUnavailable

    config = ClientConfig.model_validate({**client, "deadline_s": deadline_s, "patience_s": 0.0})
    try:
        for model in models:
            probe(url, model, config=config, instances=instances)
    except RewardUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
