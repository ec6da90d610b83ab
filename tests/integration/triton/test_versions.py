"""A run is pinned to one version of its reward: another one is refused, naming both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import Config
from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.integrations.triton.service import PIN, open_reward
from crystalforge.rewards import Reward, RewardUnavailable
from serving.launcher import TritonServer
from serving.repository import ModelSettings
from serving.testing import crystals, lengths, size_reward


def test_a_server_of_another_version_is_refused(server: TritonServer) -> None:
    url, model = server.grpc_url, server.model
    with RemoteReward(url, model) as reward:
        digest = reward.version.digest
    with RemoteReward(url, model, expected_version=digest) as reward:
        assert np.allclose(reward.score(crystals(3)).values, lengths(3))
    with (
        RemoteReward(url, model, expected_version="f" * 64) as reward,
        pytest.raises(RewardUnavailable, match=f"{digest[:12]}.*pinned to ffffffffffff"),
    ):
        reward.score(crystals(3))
    with RemoteReward(url, "nobody") as reward, pytest.raises(RewardUnavailable, match="does not serve this model"):
        reward.score(crystals(1))


def config_for(server: TritonServer, **service: str) -> Config:
    return Config.model_validate(
        {"reward": size_reward(pause=0.05), "service": {"url": server.grpc_url, "patience_s": 0, **service}}
    )


def test_a_stage_stays_with_the_version_that_it_began_with(server: TritonServer, tmp_path: Path) -> None:
    config = config_for(server)
    with open_reward(config, tmp_path) as reward:
        assert isinstance(reward, Reward)
        assert np.allclose(reward.score(crystals(3)).values, lengths(3))
        digest = reward.version.digest
    assert json.loads((tmp_path / PIN).read_text()) == {"name": "custom", "digest": digest}
    with open_reward(config, tmp_path) as reward:  # resumed: the same server is welcome
        assert reward.version.digest == digest
    # The server was exchanged meanwhile, as far as the stage can tell.
    (tmp_path / PIN).write_text(json.dumps({"name": "custom", "digest": "a" * 64}))
    with (
        pytest.raises(RewardUnavailable, match=f"custom with digest {digest[:12]}.*pinned to aaaaaaaaaaaa") as caught,
        open_reward(config, tmp_path),
    ):
        pass
    assert "Remedy" in str(caught.value)


def test_a_run_can_ask_for_a_version(server: TritonServer, tmp_path: Path) -> None:
    with server.connect() as reward:
        digest = reward.version.digest
    with open_reward(config_for(server, expected_version=digest), tmp_path / "right") as reward:
        assert reward.version.digest == digest
    asking = config_for(server, expected_version="b" * 64)
    with (
        pytest.raises(RewardUnavailable, match=f"{digest[:12]}.*pinned to bbbbbbbbbbbb"),
        open_reward(asking, tmp_path / "wrong"),
    ):
        pass
    assert not (tmp_path / "wrong" / PIN).exists()
    with pytest.raises(InputError, match=f"bbbbbbbbbbbb.*{digest[:12]}"), open_reward(asking, tmp_path / "right"):
        pass


def test_in_process_the_same_pin_holds(server: TritonServer, tmp_path: Path) -> None:
    def config(scale: float) -> Config:
        return Config.model_validate({"reward": size_reward(scale=scale), "service": {"mode": "in-process"}})

    with open_reward(config(1.0), tmp_path) as reward:
        first = reward.version.digest
    with (
        pytest.raises(RewardUnavailable, match=f"pinned to {first[:12]}"),
        open_reward(config(2.0), tmp_path),
    ):
        pass


def test_a_server_told_what_to_serve_serves_nothing_else(tmp_path: Path) -> None:
    settings = ModelSettings(expected_digest="c" * 64)
    with pytest.raises(InputError, match=r"refusing to serve: the reward is custom@[0-9a-f]{12}, but digest cccc"):
        TritonServer(size_reward(), settings=settings, run_dir=tmp_path, quiet=True).start()
