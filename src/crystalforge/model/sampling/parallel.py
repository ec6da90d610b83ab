"""The sampler on several cores: one single-threaded process per core, each with its share of the crystals.

Two threads in one process slow each other down on small products; two processes do not. A crystal depends on
(seed, index) alone, so the shares come together to exactly what one process draws (up to rounding by batch).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from crystalforge.common.progress import Progress
from crystalforge.model.build import build_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import BATCH_SIZE, sample
from crystalforge.model.sampling.samples import Samples

_model: CrystalFormer | None = None  # of a worker process


def sample_parallel(
    model: CrystalFormer,
    spacegroups: Int64[np.ndarray, " n"],
    *,
    seed: int,
    first_index: int = 0,
    workers: int = 2,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    **options: Any,
) -> Samples:
    """`sample` with `workers` processes; `options` as there. For a model on a CPU.

    Worth it from some hundred crystals on: a worker takes seconds to start. Keep a `SamplerPool` for repeated calls.
    """
    with SamplerPool(model, workers=workers) as pool:
        return pool.sample(
            spacegroups, seed=seed, first_index=first_index, batch_size=batch_size, progress=progress, **options
        )


class SamplerPool:
    """Worker processes that hold a model. Close it, or use it as a context manager.

    Workers are spawned, so that neither threads nor locks of this process are copied; the weights travel once, as
    bytes.
    """

    def __init__(self, model: CrystalFormer, *, workers: int = 2) -> None:
        assert workers >= 1, f"{workers} workers"
        weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
        # The rotary angles are no part of the state, yet they may have been built in float64.
        weights["cos"], weights["sin"] = model.cos.cpu().numpy(), model.sin.cpu().numpy()
        self.workers = workers
        self._pool = ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_start, initargs=(model.config, weights)
        )

    def stream(
        self,
        spacegroups: Int64[np.ndarray, " n"],
        *,
        seed: int,
        first_index: int = 0,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[Samples]:
        """Waves of crystals in the order in which they finish."""
        # At least one wave per worker, and waves of like size.
        waves = max(self.workers, -(-len(spacegroups) // batch_size)) if len(spacegroups) else 0
        edges = np.linspace(0, len(spacegroups), waves + 1).round().astype(int).tolist()
        jobs = [
            self._pool.submit(_work, spacegroups[begin:end], dict(options, seed=seed, first_index=first_index + begin))
            for begin, end in pairwise(edges)
            if end > begin
        ]
        for job in as_completed(jobs):
            samples = job.result()
            if progress is not None:
                progress.update(len(samples))
            yield samples

    def sample(self, spacegroups: Int64[np.ndarray, " n"], *, seed: int, **options: Any) -> Samples:
        """All crystals in the order of `spacegroups`."""
        return Samples.concatenate(list(self.stream(spacegroups, seed=seed, **options)))

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> SamplerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _start(config: ModelConfig, weights: dict[str, np.ndarray]) -> None:
    global _model
    torch.set_num_threads(1)
    _model = build_model(config)
    _model.to(torch.from_numpy(weights["head.weight"]).dtype)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    _model.cos, _model.sin = tensors.pop("cos"), tensors.pop("sin")
    _model.load_state_dict(tensors)
    _model.eval()


def _work(spacegroups: np.ndarray, options: dict[str, Any]) -> Samples:
    assert _model is not None, "the initializer has run"
    return sample(_model, spacegroups, batch_size=max(1, len(spacegroups)), **options)
