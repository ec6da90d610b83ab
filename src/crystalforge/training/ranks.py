"""The processes that train one model together, and what they say to each other.

One process alone is the plain case: nothing is sent, and everything comes back as it was given. Under torchrun (or
whatever else sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) the processes meet over gloo on CPUs and over NCCL on
GPUs. Only the first rank reads checkpoints, writes files and speaks; what it read goes to the others by message, so
ranks on several nodes need no common view of a file that was written a moment ago.

Every method is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from crystalforge.common.errors import InputError

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]

# How long a rank waits for the others: one may be scoring crystals, or writing a checkpoint. A rank that died is
# noticed at once, by its closed connection or by torchrun.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    >>> Ranks().gather("me")
    ['me']
    """

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over all ranks, in place; the same bits on every rank."""
        if self.world_size > 1:
            there = values.to(self.device)  # NCCL takes tensors on the GPU only
            dist.all_reduce(there)
            if there is not values:
                values.copy_(there)
        return values

    def first(self, value: float) -> float:
        """The first rank's number: what clocks say must be one thing everywhere."""
        return float(self.sum(torch.tensor([value if self.leads else 0.0], dtype=torch.float64)))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: they end together, or some would wait for the others."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], dtype=torch.float64)) > 0)

    def share(self, value: T) -> T:
        """The first rank's value (anything that can be pickled); what other ranks give is not looked at."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value if self.leads else None]
        dist.broadcast_object_list(box, src=0, device=torch.device(self.device))
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def by_first(self, do: Callable[[], T]) -> T:
        """What the first rank's `do` gives, or the error that it raises, on every rank."""
        if self.world_size == 1:
            return do()
        value, error = self.share(_outcome(do) if self.leads else (None, None))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def by_all(self, do: Callable[[], T]) -> list[T]:
        """What every rank's `do` gives, in order of ranks; an error of one rank is raised on all."""
        if self.world_size == 1:
            return [do()]
        outcomes = self.gather(_outcome(do))
        for _, error in outcomes:
            if error is not None:
                raise error
        return [value for value, _ in outcomes]  # type: ignore[misc]

    def equalise(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the first rank's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)


def _outcome(do: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return do(), None
    except Exception as error:
        return None, error


ALONE = Ranks()


@contextmanager
def open_ranks(device: Device = "auto") -> Iterator[Ranks]:
    """Meet the other processes that the launcher's environment names; none: work alone.

    device: auto takes this process's GPU where there is one (number LOCAL_RANK). Raises InputError when the
    environment is incomplete or a GPU was asked for that is not there.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    place = _place(device)
    if world_size == 1:
        yield Ranks(device=place)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set",
            source="environment",
            remedy="start all processes with torchrun, or unset WORLD_SIZE to work alone",
        )
    dist.init_process_group("nccl" if place.startswith("cuda") else "gloo", timeout=PATIENCE)
    yield Ranks(dist.get_rank(), world_size, place)
    # Not after an error: the others may be waiting for this rank, and learn of its end by its closed connections.
    dist.destroy_process_group()


def _place(device: Device) -> str:
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise InputError("there is no GPU that PyTorch can use", source="engine.device", remedy="set it to cpu or auto")
    if device == "cpu" or not there:
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} of this node finds {torch.cuda.device_count()} GPU",
            source="LOCAL_RANK",
            remedy="start one process per GPU (torchrun --nproc-per-node=gpu)",
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"
