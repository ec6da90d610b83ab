"""What reinforcement maximises, how large it can become, and how much of that was reached.

The objective is L(p) = E_p[r] - tau KL(p || p_base) (arXiv 2504.02367, equation 1). Its maximum is
L* = tau ln E_base[exp(r/tau)], at p* = p_base exp(r/tau)/Z (equation 2), and tau KL(p || p*) = L* - L(p). Both can be
measured, because likelihoods here are exactly those of the sampler: L from a model's own crystals, L* from the base's.

A law may be restricted to crystals that pass a check, by drawing until one passes. If a share P of the draws passes,
the restricted law is p/P there, so its KL is E[ln(p/p_base) | passed] - ln P.

Standard errors are those of the influence functions (delta method); rewards and L in the reward's unit, KL in nats.

Shapes: B crystals of the model judged, A of the base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

FEWEST = 2  # crystals below which nothing is said about an error


@dataclass(frozen=True)
class Measured:
    """A figure with its standard error (NaN where unknown); n: crystals it rests on."""

    value: float
    error: float
    n: int


@dataclass(frozen=True)
class Optimum:
    """L* and what the base's crystals say of p*, by importance weights exp(r/tau).

    effective: effective sample size of those weights, (sum w)^2 / sum w^2: below a hundred or so L* is a guess, and as
    a rule too small a one. kl: KL(p* || p_base). reward: mean reward under p*.
    """

    value: float
    error: float
    n: int
    effective: float
    kl: float
    reward: float


def objective(
    reward: Float64[np.ndarray, " B"],
    log_ratio: Float64[np.ndarray, " B"],
    tau: float,
    passed: Bool[np.ndarray, " B"] | None = None,
) -> Measured:
    """L of the law that drew the crystals, or of its restriction to those that `passed`.

    log_ratio: ln(p/p_base) of each. Crystals without a finite one (a density that overflowed) are left out.

    >>> round(objective(np.array([-1.0, 0.0]), np.array([1.0, 3.0]), 0.1).value, 2)
    -0.7
    """
    known = np.isfinite(log_ratio)
    chosen = known if passed is None else known & passed
    drawn, n = int(known.sum()), int(chosen.sum())
    if n == 0:
        return Measured(math.nan, math.nan, 0)
    shaped = reward[chosen] - tau * log_ratio[chosen]
    share = n / drawn
    value = float(shaped.mean()) + tau * math.log(share)
    if n < FEWEST:
        return Measured(value, math.nan, n)
    # The share of draws that pass and the mean over those that do are uncorrelated.
    variance = float(shaped.var(ddof=1)) / n + tau**2 * (1 - share) / n
    return Measured(value, math.sqrt(variance), n)


def influence(
    reward: Float64[np.ndarray, " B"],
    log_ratio: Float64[np.ndarray, " B"],
    tau: float,
    passed: Bool[np.ndarray, " B"] | None = None,
) -> Float64[np.ndarray, " B"]:
    """What each draw adds to the error of `objective`: the square of that error is their variance over B.

    With it two laws that drew with common random numbers are compared draw by draw: what both owe to the draw cancels.
    """
    known = np.isfinite(log_ratio)
    chosen = known if passed is None else known & passed
    if not chosen.any():
        return np.full(len(reward), math.nan)
    shaped = reward - tau * np.where(known, log_ratio, 0.0)
    share = chosen.sum() / known.sum()
    own = np.where(chosen, shaped - shaped[chosen].mean(), 0.0) + tau * np.where(known, chosen - share, 0.0)
    return own / share * (len(reward) / known.sum())


def divergence(log_ratio: Float64[np.ndarray, " B"], passed: Bool[np.ndarray, " B"] | None = None) -> Measured:
    """KL(p || p_base) of the law that drew the crystals, or of its restriction to those that `passed`; nats."""
    found = objective(np.zeros(len(log_ratio)), log_ratio, 1.0, passed)
    return Measured(-found.value, found.error, found.n)


def optimum(
    reward: Float64[np.ndarray, " B"], tau: float, log_ratio: Float64[np.ndarray, " B"] | None = None
) -> Optimum:
    """L* from crystals of the base, or (with log_ratio, ln(p/p_base)) of any law p, by weights p_base/p exp(r/tau).

    The nearer p is to p*, the more equal are these weights, and the better is L* known.

    >>> round(optimum(np.array([0.0, -1.0]), 0.1).value, 3)      # half of the base is as good as it gets
    -0.069
    """
    if log_ratio is not None:
        known = np.isfinite(log_ratio)
        reward, log_ratio = reward[known], log_ratio[known]
    n = len(reward)
    if n == 0:
        return Optimum(math.nan, math.nan, 0, 0.0, math.nan, math.nan)
    exponent = reward / tau - (0.0 if log_ratio is None else log_ratio)
    top = float(exponent.max())
    weight = np.exp(exponent - top)
    mean = float(weight.mean())
    value = tau * (top + math.log(mean))
    error = tau * float(weight.std(ddof=1)) / mean / math.sqrt(n) if n >= FEWEST else math.nan
    tilted = float((weight * reward).mean()) / mean
    effective = n * mean**2 / float((weight**2).mean())
    return Optimum(value, error, n, effective, (tilted - value) / tau, tilted)


def attained(found: Measured, base_reward: Float64[np.ndarray, " A"], tau: float) -> Measured:
    """(L - L(base)) / (L* - L(base)): 0 for the base, 1 at the optimum, negative for what is worse than the base.

    base_reward: of the base's crystals, all of them; they give L(base) = E_base[r] and L*, whose errors go together.
    NaN where the base's rewards do not differ: nothing can be attained then.
    """
    n = len(base_reward)
    best = optimum(base_reward, tau)
    start = float(base_reward.mean()) if n else math.nan
    room = best.value - start
    if not room > 0:
        return Measured(math.nan, math.nan, found.n)
    value = (found.value - start) / room
    weight = np.exp((base_reward - best.value) / tau)  # mean 1
    influence = (1 - value) * (base_reward - start) + value * tau * (weight - 1)
    own = float(influence.var(ddof=1)) / n if n >= FEWEST else math.nan
    return Measured(value, math.sqrt(found.error**2 + own) / room, found.n)


def best_of(reward: Float64[np.ndarray, " A"], candidates: int) -> Float64[np.ndarray, " A"]:
    """Probability with which each of the base's crystals is the best of `candidates` draws from among them.

    One draw of the base so serves every number of candidates; any mean under best-of-N is a sum with these weights.

    >>> best_of(np.array([0.0, -1.0]), 2).tolist()
    [0.75, 0.25]
    """
    n = len(reward)
    rank = np.empty(n)
    rank[np.argsort(reward, kind="stable")] = np.arange(1, n + 1)
    return (rank / n) ** candidates - ((rank - 1) / n) ** candidates


def best_of_kl(candidates: int) -> float:
    """Upper bound of KL(best of N || base) in nats, ln N - (N - 1)/N (arXiv 2401.01879); exact without ties.

    >>> round(best_of_kl(4), 2)
    0.64
    """
    return math.log(candidates) - (candidates - 1) / candidates
