"""The reward that a stage scores with: a server that runs already, one started here, or the same code in process.

A stage is pinned to one version of the reward, the first that it is scored by (or `service.expected_version`): a run
that goes on tomorrow, perhaps against a server that was renewed overnight, does not mix the values of two.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crystalforge.common.errors import InputError
from crystalforge.common.files import write_json
from crystalforge.rewards import Reward, RewardUnavailable

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.integrations.triton.client import RemoteReward
    from serving.launcher import TritonServer

URL_VARIABLE = "CRYSTALFORGE_REWARD_URL"


PIN = "reward-version.json"
"""In a stage's directory: name and digest of the reward that its work is scored by."""


@contextmanager
def open_reward(config: Config, workspace: Path) -> Iterator[Reward]:
    """Yield the reward of `config.reward`, served as `config.service` says, and pin the workspace to its version.

    The address in CRYSTALFORGE_REWARD_URL wins: a pipeline starts one server for all its stages. A server started
    here is stopped at the end. Raises InputError when a server is demanded that cannot run here, RewardUnavailable
    when one that should be there is not, or judges by another version than the one pinned (naming both).
    """
    pinned = pinned_version(config, workspace)
    with _open(config, workspace, pinned) as reward:
        version = reward.version  # asks the server, which is refused here already when it is another one
        if pinned is not None and version.digest != pinned:
            raise RewardUnavailable(
                f"the reward here is {version.name} with digest {version.digest[:12]}, but this run is pinned to "
                f"{pinned[:12]}: values of two rewards must not be mixed.\n"
                f"  Remedy: restore the weights, the hull and the code of then, or start a new run."
            )
        workspace.mkdir(parents=True, exist_ok=True)
        write_json(workspace / PIN, {"name": version.name, "digest": version.digest})
        yield reward


def pinned_version(config: Config, workspace: Path) -> str | None:
    """The digest that the workspace's work was scored by so far, else the one that the configuration asks for.

    Raises InputError when the two differ.
    """
    path, asked = workspace / PIN, config.service.expected_version
    if not path.exists():
        return asked
    recorded: str = json.loads(path.read_text())["digest"]
    if asked is not None and asked != recorded:
        raise InputError(
            f"the configuration asks for the reward {asked[:12]}, but the work in {workspace} was scored by "
            f"{recorded[:12]}",
            source="service.expected_version",
            remedy="ask for that one, or start a new run",
        )
    return recorded


@contextmanager
def _open(config: Config, workspace: Path, pinned: str | None) -> Iterator[Reward]:
    url = os.environ.get(URL_VARIABLE) or config.service.url
    if url:
        with _remote(config, url, pinned) as reward:
            yield reward
        return
    if config.service.mode != "in-process":
        from serving.launcher import available

        possible, reason = available()
        if possible:
            with (
                local_server(config, workspace / "service") as server,
                _remote(config, server.grpc_url, pinned) as reward,
            ):
                yield reward
            return
        if config.service.mode == "triton":
            raise InputError(
                f"no Triton server can be started here: {reason}",
                source="service.mode",
                remedy="set service.mode to auto or in-process, or give service.url",
            )
        print(f"reward: in process, because no Triton server can be started here ({reason})", file=sys.stderr)
    from crystalforge.rewards import build

    yield build(config.reward)


def local_server(config: Config, directory: Path) -> TritonServer:
    """A server for `config.reward` on this machine, not started yet; its log goes to `directory`."""
    from serving.launcher import TritonServer

    return TritonServer(config.reward, instances=config.service.instances, run_dir=directory)


def _remote(config: Config, url: str, pinned: str | None) -> RemoteReward:
    from crystalforge.integrations.triton.client import RemoteReward
    from crystalforge.integrations.triton.connection import ClientConfig
    from serving.launcher import model_name

    shared = ClientConfig.model_fields.keys() & type(config.service).model_fields.keys()
    client = ClientConfig.model_validate({name: getattr(config.service, name) for name in shared})
    model = config.service.model or model_name(config.reward)
    return RemoteReward(url, model, expected_version=pinned, config=client)
