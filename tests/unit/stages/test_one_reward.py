"""All ranks of a tuning job score against one server."""

from __future__ import annotations

from pathlib import Path

import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import from_sections
from crystalforge.integrations.triton.service import URL_VARIABLE
from crystalforge.rewards import build
from crystalforge.stages.finetune import one_reward
from crystalforge.training.ranks import ALONE, Ranks

REWARD = {"kind": "custom", "name": "flat", "function": "builtins:len"}
TWO = Ranks(0, 2)  # which never speak in these tests: there is nothing to agree on


def test_processes_on_several_nodes_need_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    config = from_sections(reward=REWARD, service={"mode": "auto"})
    with (
        pytest.raises(InputError, match="processes on several nodes need a reward server"),
        one_reward(config, tmp_path, TWO),
    ):
        pass


@pytest.mark.parametrize("ranks", [ALONE, TWO])
def test_in_process_each_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    config = from_sections(reward=REWARD, service={"mode": "in-process"})
    with one_reward(config, tmp_path, ranks) as reward:
        assert reward.version == build(config.reward).version
