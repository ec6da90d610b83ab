"""One process is the plain case of many; what many do together is tests/parity/test_engines.py's."""

from __future__ import annotations

import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.rl.rollout import share_of
from crystalforge.training.ranks import ALONE, Ranks, open_ranks


def test_alone_everything_comes_back_as_it_was() -> None:
    values = torch.arange(3.0)
    assert ALONE.sum(values) is values
    assert (ALONE.first(2.5), ALONE.share("x"), ALONE.gather("x"), ALONE.leads) == (2.5, "x", ["x"], True)
    assert (ALONE.by_first(lambda: 7), ALONE.by_all(lambda: 7)) == (7, [7])
    with pytest.raises(ZeroDivisionError):
        ALONE.by_all(lambda: 1 // 0)


def test_a_launcher_that_says_too_little_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"RANK, MASTER_ADDR, MASTER_PORT is not set.*\n.*torchrun"), open_ranks("cpu"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="no GPU"), open_ranks("cuda"):
        pass
    with open_ranks("auto") as ranks:
        assert ranks == Ranks(0, 1, "cpu")


@pytest.mark.parametrize(("world", "count", "unit"), [(1, 7, 1), (2, 7, 1), (3, 30, 10), (4, 6, 1)])
def test_every_crystal_has_one_rank(world: int, count: int, unit: int) -> None:
    shares = [share_of(Ranks(rank, world), count, unit) for rank in range(world)]
    assert [number for share in shares for number in share] == list(range(count))
    assert all(len(share) % unit == 0 for share in shares)
