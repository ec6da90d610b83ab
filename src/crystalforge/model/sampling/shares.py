"""In which shares a model asks for space groups, where fine-tuning has moved them from those of the training set.

A tuned model's `info` then holds `spacegroup_tilt`, ln(q_g/w_g) up to a constant, beside the shares themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

TILT = "spacegroup_tilt"


def tilt_of(info: Mapping[str, Any]) -> Float64[np.ndarray, " 230"]:
    """The tilt that a model says it was taught; zeros where it says nothing."""
    return np.asarray(info.get(TILT) or np.zeros(230), dtype=np.float64)


def tilted_shares(
    weights: Float64[np.ndarray, " 230"], tilt: Float64[np.ndarray, " 230"]
) -> Float64[np.ndarray, " 230"]:
    """weights exp(tilt), normalised; `weights` as they are where nothing is tilted."""
    if not tilt.any():
        return weights
    shares = weights * np.exp(tilt - tilt[weights > 0].max())
    return shares / shares.sum()


def log_ratio(
    weights: Float64[np.ndarray, " 230"], shares: Float64[np.ndarray, " 230"], spacegroup: Int64[np.ndarray, " B"]
) -> Float64[np.ndarray, " B"]:
    """ln(q_g/w_g) of crystals' groups, in nats, by two laws of the groups, of any positive sums.

    >>> law = np.eye(230)[0] + np.eye(230)[1]
    >>> log_ratio(law, law + 2 * np.eye(230)[1], np.array([1, 2])).round(3).tolist()
    [-0.693, 0.405]
    """
    if shares is weights:
        return np.zeros(len(spacegroup))
    rows = spacegroup - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(shares[rows] / shares.sum()) - np.log(weights[rows] / weights.sum())
