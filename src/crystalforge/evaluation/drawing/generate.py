"""Samples straight from a model, a chunk at a time, with their log-probability under the model and under its base."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from crystalforge.common.files import sha256_json
from crystalforge.crystal import Tokens
from crystalforge.evaluation.drawing.samples import SampleSet

if TYPE_CHECKING:
    from crystalforge.model.network import CrystalFormer
    from crystalforge.model.sampling.config import SamplingConfig

LIKELIHOOD_BATCH = 256  # crystals scored by the base model at a time


class ModelSource:
    """An evaluation's `Source` that draws from the model in directory `model`.

    Its log-probabilities are those of the law really drawn from (`law`: temperatures, top-p, constraints; for crystals
    that had to be valid with an unbiased estimate of their normaliser, see `sampling.valid`), so that their mean excess
    over the base model's estimates the KL divergence of that law.

    spacegroup_weights: relative frequency of the 230 space groups, normally the training set's. asked: the
    frequencies in which the model itself asks for them, where it has learned others; log_prob then holds ln of their
    ratio to the former. base: directory of the model against which the KL divergence is estimated; the model itself if
    None. Sample i of a seed is the same whatever the chunks are. Two models with the same seed get the same random
    numbers, and where they ask alike the same space groups: a comparison that treats them as independent is then on the
    safe side.
    """

    def __init__(
        self,
        label: str,
        model: Path,
        spacegroup_weights: Float64[np.ndarray, " 230"],
        *,
        samples: int,
        seed: int,
        base: Path | None = None,
        asked: Float64[np.ndarray, " 230"] | None = None,
        law: SamplingConfig | None = None,
        device: str = "cpu",
    ) -> None:
        from crystalforge.model.checkpoint import load_model
        from crystalforge.model.sampling.config import SamplingConfig

        self.label, self.seed, self._samples = label, seed, samples
        self._weights, self._law, self._device = spacegroup_weights, law or SamplingConfig(), device
        self._asked = spacegroup_weights if asked is None else asked
        self._model = load_model(model, device=device).model
        self._base = None if base is None or base == model else load_model(base, device=device).model

    @cached_property
    def model_hash(self) -> str:
        """Hash of the weights, for the lineage."""
        from crystalforge.model.checkpoint import weights_hash

        return weights_hash(self._model)

    def identity(self) -> str:
        """Hash of weights and sampling law."""
        from crystalforge.model.checkpoint import weights_hash

        return sha256_json(
            {
                "model": self.model_hash,
                "base": None if self._base is None else weights_hash(self._base),
                "weights": self._asked.tolist(),
                **self._law.model_dump(mode="json"),
            }
        )

    def __len__(self) -> int:
        return self._samples

    def draw(self, first: int, count: int) -> SampleSet:
        """Samples first .. first + count - 1; the same for the same arguments."""
        from crystalforge.model.sampling.sampler import draw_spacegroups, sample
        from crystalforge.model.sampling.shares import log_ratio

        groups = draw_spacegroups(self._asked, count, seed=self.seed, first_index=first)
        drawn = sample(
            self._model,
            groups,
            seed=self.seed,
            first_index=first,
            **self._law.options(),
        )
        if self._base is None:
            base = drawn.total_log_prob
        else:
            base = log_prob_under(self._base, drawn.tokens, device=self._device)
        return SampleSet.from_tokens(
            self.label,
            drawn.tokens,
            seed=self.seed,
            first_index=first,
            log_prob=drawn.total_log_prob_drawn - drawn.log_share + log_ratio(self._weights, self._asked, groups),
            log_prob_base=base,
            draws=None if self._law.valid is None else drawn.draws,
        )


def log_prob_under(model: CrystalFormer, tokens: Tokens, *, device: str = "cpu") -> Float64[np.ndarray, " n"]:
    """Log-probability in nats of token crystals under a model, given their space groups."""
    import torch

    from crystalforge.model.batch import TokenBatch
    from crystalforge.model.likelihood import log_prob

    parts = [np.zeros(0)]
    with torch.no_grad():
        for first in range(0, len(tokens), LIKELIHOOD_BATCH):
            batch = TokenBatch.from_tokens(tokens[first : first + LIKELIHOOD_BATCH], device=device).truncated()
            parts.append(log_prob(model, batch).total.double().cpu().numpy())
    return np.concatenate(parts)
