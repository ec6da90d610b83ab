"""The reward that a stage scores with: a server that runs already, one started here, or the same code in process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crystalforge.common.errors import InputError
from crystalforge.rewards import Reward

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.integrations.triton import RemoteReward
    from serving.launcher import TritonServer

URL_VARIABLE = "CRYSTALFORGE_REWARD_URL"


@contextmanager
def open_reward(config: Config, workspace: Path) -> Iterator[Reward]:
    """Yield the reward of `config.reward`, served as `config.service` says.

    The address in CRYSTALFORGE_REWARD_URL wins: a pipeline starts one server for all its stages. A server started
    here is stopped at the end. Raises InputError when a server is demanded that cannot run here, RewardUnavailable
    when one that should be there is not, or judges by another version.
    """
    url = os.environ.get(URL_VARIABLE) or config.service.url
    if url:
        with _remote(config, url) as reward:
            yield reward
        return
    if config.service.mode != "in-process":
        from serving.launcher import available

        possible, reason = available()
        if possible:
            with local_server(config, workspace / "service") as server, _remote(config, server.grpc_url) as reward:
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


def _remote(config: Config, url: str) -> RemoteReward:
    from crystalforge.integrations.triton import ClientConfig, RemoteReward
    from serving.launcher import model_name

    shared = ClientConfig.model_fields.keys() & type(config.service).model_fields.keys()
    client = ClientConfig.model_validate({name: getattr(config.service, name) for name in shared})
    return RemoteReward(url, config.service.model or model_name(config.reward), config=client)
