"""The laws of one token given the network's raw output: one truth for the likelihood and for the sampler.

Two laws. `exact`, the default, is the law that the sampler draws from. `reference` is what the published code
(CrystalFormer v0.4.2) scores; it is kept for parity. Where `exact` deviates from the published code:
- the lattice is one mixture over all free parameters, not a product of one mixture per parameter;
- lattice lengths and angles are truncated to valid cells (`LatticeBounds`), so no draw is ever invalid;
- coordinates that are functions of earlier ones are not scored;
- in the last slot only the pad is allowed, so every crystal ends and its lattice has a place;
- masked tokens have log-probability -inf, not about -1e10.

Coordinates have densities per radian of the angle 2π(x - 1/2), as published.

Shapes: K mixture components, W letters, A elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crystalforge.model.network import CoordMixture, LatticeMixture
from crystalforge.model.tables import tables

Law = Literal["exact", "reference"]

LOG_2PI = math.log(2 * math.pi)
ROUNDING = 1e-5  # a token rounded to float32 may lie this far outside its bounds and still counts as inside


# ---- discrete tokens -----------------------------------------------------------------------------------------


def masked_log_softmax(
    logits: Float[Tensor, "*batch C"], allowed: Bool[Tensor, "*batch C"]
) -> Float[Tensor, "*batch C"]:
    """log softmax over the allowed choices; -inf elsewhere. Each row must allow something."""
    return logits.masked_fill(~allowed, -math.inf).log_softmax(dim=-1)


def allowed_wyckoff(
    spacegroup: Int64[Tensor, "*batch"],
    previous: Int64[Tensor, "*batch"] | None,
    last_slot: bool | Bool[Tensor, "*#batch"] = False,
) -> Bool[Tensor, "*batch 28"]:
    """Which letters may follow `previous` (None: which may come first).

    Letters ascend; a position without free coordinates is used once; after a pad only pads; the first is no pad.
    `last_slot`: only the pad.
    """
    symmetry = tables(spacegroup.device)
    letter = torch.arange(symmetry.multiplicity.shape[1], device=spacegroup.device)
    exists = (letter >= 1) & (letter <= symmetry.n_letters[spacegroup - 1, None])
    if previous is None:
        return exists
    before = previous[..., None]
    once = symmetry.is_fixed[spacegroup - 1, previous][..., None]
    goes_on = exists & (before > 0) & torch.where(once, letter > before, letter >= before)
    if isinstance(last_slot, Tensor):
        goes_on = goes_on & ~last_slot[..., None]
    elif last_slot:
        goes_on = torch.zeros_like(goes_on)
    return goes_on | (letter == 0)


def next_wyckoff_log_probs(
    logits: Float[Tensor, "*batch 28"],
    spacegroup: Int64[Tensor, "*batch"],
    previous: Int64[Tensor, "*batch"] | None,
    last_slot: bool | Bool[Tensor, "*#batch"] = False,
) -> Float[Tensor, "*batch 28"]:
    """log p of the letter after `previous` (None: of the first letter). The reference law has no `last_slot`."""
    return masked_log_softmax(logits, allowed_wyckoff(spacegroup, previous, last_slot))


def allowed_element(wyckoff: Int64[Tensor, "*batch"], atom_types: int) -> Bool[Tensor, "*batch A"]:
    """Any element on a site, the pad on a pad."""
    is_pad = torch.arange(atom_types, device=wyckoff.device) == 0
    return is_pad == (wyckoff == 0)[..., None]


def element_log_probs(logits: Float[Tensor, "*batch A"], wyckoff: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch A"]:
    """log p of the element on a site with letter `wyckoff`."""
    return masked_log_softmax(logits, allowed_element(wyckoff, logits.shape[-1]))


# ---- coordinates ---------------------------------------------------------------------------------------------


def scored_coords(
    spacegroup: Int64[Tensor, "*batch"], wyckoff: Int64[Tensor, "*batch"], law: Law = "exact"
) -> Bool[Tensor, "*batch 3"]:
    """Which of (x, y, z) count: the independent ones; in the reference law all that vary. None on pads."""
    symmetry = tables(spacegroup.device)
    table = symmetry.is_free if law == "exact" else symmetry.varies
    return table[spacegroup - 1, wyckoff] & (wyckoff > 0)[..., None]


def coord_log_density(mixture: CoordMixture, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log density, per radian, of fractional coordinate `x` under its von Mises mixture.

    Uses cos t - 1 = -2 sin²(t/2) and the scaled Bessel function, so that float32 holds for any concentration.
    """
    half = math.pi * (x[..., None] - 0.5) - mixture.loc / 2
    log_peak = LOG_2PI + torch.special.i0e(mixture.kappa).log()
    return torch.logsumexp(
        mixture.logits.log_softmax(dim=-1) - log_peak - 2 * mixture.kappa * half.sin().square(), dim=-1
    )


# ---- lattice -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatticeBounds:
    """The cells that the exact law can produce. Lengths in scaled Å ((a, b, c)/N^(1/3)), angles in radians.

    Free angles lie in (angle, π - angle). In triclinic cells gamma lies in
    (|alpha - beta| + triclinic, min(alpha + beta, 2π - alpha - beta) - triclinic): the open set of cells with a
    positive volume, less a margin. triclinic < angle keeps that interval from being empty.
    """

    length: float = 0.5
    angle: float = 0.2
    triclinic: float = 0.05


BOUNDS = LatticeBounds()


def lattice_bounds(
    lattice: Float[Tensor, "*batch 6"], triclinic: Bool[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Lower and upper bounds of the three angles; that of gamma depends on alpha and beta where `triclinic`."""
    alpha, beta = lattice[..., 3], lattice[..., 4]
    low = torch.full_like(lattice[..., 3:], BOUNDS.angle)
    high = torch.full_like(low, math.pi - BOUNDS.angle)
    low[..., 2] = torch.where(triclinic, (alpha - beta).abs() + BOUNDS.triclinic, low[..., 2])
    widest = torch.minimum(alpha + beta, 2 * math.pi - alpha - beta)
    high[..., 2] = torch.where(triclinic, widest - BOUNDS.triclinic, high[..., 2])
    return low, high.maximum(low)


def lattice_in_bounds(
    lattice: Float[Tensor, "*batch 6"], spacegroup: Int64[Tensor, "*batch"]
) -> Bool[Tensor, "*batch"]:
    """Whether the exact law gives the cell a density: its free lengths and angles are inside `LatticeBounds`."""
    free = tables(spacegroup.device).lattice_free[spacegroup - 1]
    low, high = lattice_bounds(lattice, spacegroup <= 2)
    angles = lattice[..., 3:]
    inside = torch.cat(
        [
            lattice[..., :3] >= BOUNDS.length - ROUNDING,
            (angles >= low - ROUNDING) & (angles <= high + ROUNDING),
        ],
        dim=-1,
    )
    return (inside | ~free).all(dim=-1)


def lattice_log_density(
    mixture: LatticeMixture,
    lattice: Float[Tensor, "*batch 6"],
    spacegroup: Int64[Tensor, "*batch"],
    law: Law = "exact",
) -> Float[Tensor, "*batch"]:
    """log density of the free lattice parameters (scaled Å, radians); -inf outside `LatticeBounds`.

    exact: log Σ_k w_k Π_c N(L_c; μ_kc, σ_kc) / Z_kc, with Z the Gaussian's mass inside the bounds.
    reference: Σ_c log Σ_k w_k N(L_c; μ_kc, σ_kc), which is not the law of any sampler.

    The exact law is evaluated in float64 (24 numbers per crystal): for a Gaussian whose mean lies outside the bounds
    density and mass nearly cancel.
    """
    free = tables(spacegroup.device).lattice_free[spacegroup - 1]
    if law == "reference":
        log_normal = _log_normal(mixture, lattice)
        per_parameter = torch.logsumexp(mixture.logits.log_softmax(dim=-1)[..., None] + log_normal, dim=-2)
        return torch.where(free, per_parameter, 0.0).sum(dim=-1)
    wide = LatticeMixture(mixture.logits.double(), mixture.loc.double(), mixture.scale.double())
    log_density = _log_normal(wide, lattice.double()) - lattice_log_mass(wide, lattice.double(), spacegroup)
    per_component = torch.where(free[..., None, :], log_density, 0.0).sum(dim=-1)
    total = torch.logsumexp(wide.logits.log_softmax(dim=-1) + per_component, dim=-1)
    return torch.where(lattice_in_bounds(lattice, spacegroup), total, -math.inf).to(lattice.dtype)


def _log_normal(mixture: LatticeMixture, lattice: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch K 6"]:
    z = (lattice[..., None, :] - mixture.loc) / mixture.scale
    return -0.5 * z.square() - mixture.scale.log() - 0.5 * LOG_2PI


def lattice_log_mass(
    mixture: LatticeMixture, lattice: Float[Tensor, "*batch 6"], spacegroup: Int64[Tensor, "*batch"]
) -> Float[Tensor, "*batch K 6"]:
    """log of each Gaussian's mass inside the bounds (gamma's given the lattice's alpha and beta)."""
    low, high = lattice_bounds(lattice, spacegroup <= 2)
    loc, scale = mixture.loc, mixture.scale
    lengths = torch.special.log_ndtr((loc[..., :3] - BOUNDS.length) / scale[..., :3])
    angles = log_ndtr_difference(
        (low[..., None, :] - loc[..., 3:]) / scale[..., 3:],
        (high[..., None, :] - loc[..., 3:]) / scale[..., 3:],
    )
    return torch.cat([lengths, angles], dim=-1)


def log_ndtr_difference(low: Float[Tensor, "*batch"], high: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log(Φ(high) - Φ(low)) for finite low < high, also far out in either tail."""
    # Mirror intervals of the upper tail into the lower one, where log Φ keeps its relative precision.
    mirror = low + high > 0
    a, b = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_b = torch.special.log_ndtr(b)
    # An interval too narrow to be told from nothing gets the smallest mass that the logarithm can carry.
    gap = (torch.special.log_ndtr(a) - log_b).clamp(max=-1e-7)
    return log_b + torch.log(-torch.expm1(gap))


def draw_lattice(
    loc: Float[Tensor, "B 6"],
    scale: Float[Tensor, "B 6"],
    uniform: Float[Tensor, "B 6"],
    spacegroup: Int64[Tensor, " B"],
) -> Float[Tensor, "B 6"]:
    """Six lattice parameters from one chosen component and six uniforms in [0, 1), by inversion.

    Free parameters follow the truncated Gaussians that `lattice_log_density` scores (reference law: there is none,
    so the same draw serves); the others are set by the crystal system.
    """
    length = truncated_normal(
        uniform[:, :3], loc[:, :3], scale[:, :3], torch.full_like(loc[:, :3], BOUNDS.length), None
    )
    lattice = torch.cat([length, torch.zeros_like(length)], dim=-1)
    for angle in range(3, 6):  # in turn: gamma's bounds need alpha and beta
        low, high = lattice_bounds(lattice, spacegroup <= 2)
        lattice[:, angle] = truncated_normal(
            uniform[:, angle], loc[:, angle], scale[:, angle], low[:, angle - 3], high[:, angle - 3]
        )
    return symmetrise_lattice(lattice, spacegroup)


def symmetrise_lattice(
    lattice: Float[Tensor, "*batch 6"], spacegroup: Int64[Tensor, "*batch"]
) -> Float[Tensor, "*batch 6"]:
    """The lattice with the parameters that the crystal system fixes: equal lengths, right and 120° angles."""
    a, b, c, alpha, beta, gamma = lattice.unbind(dim=-1)
    right = torch.full_like(a, math.pi / 2)
    g = spacegroup
    hexagonal = (g >= 143) & (g <= 194)
    return torch.stack(
        [
            a,
            torch.where(g >= 75, a, b),
            torch.where(g >= 195, a, c),
            torch.where(g >= 3, right, alpha),
            torch.where(g >= 16, right, beta),
            torch.where(g >= 3, torch.where(hexagonal, 2 * math.pi / 3, right), gamma),
        ],
        dim=-1,
    )


def truncated_normal(
    uniform: Float[Tensor, "*batch"],
    loc: Float[Tensor, "*batch"],
    scale: Float[Tensor, "*batch"],
    low: Float[Tensor, "*batch"],
    high: Float[Tensor, "*batch"] | None,
) -> Float[Tensor, "*batch"]:
    """The `uniform`-quantile of N(loc, scale) restricted to [low, high] (None: no upper bound).

    Works in float64. Draws in an upper tail are mirrored into the lower one, where Φ and log Φ keep their relative
    precision: the quantile is then good to rounding at any distance from the bulk.
    """
    u, m, s, lower = (value.to(torch.float64) for value in (uniform, loc, scale, low))
    upper = torch.full_like(lower, math.inf) if high is None else high.to(torch.float64)
    a, b = (lower - m) / s, (upper - m) / s
    mirror = a > -b  # the interval's bulk lies in the upper tail: draw the mirrored variable in the lower one
    left, right = torch.where(mirror, -b, a), torch.where(mirror, -a, b)
    u = torch.where(mirror, 1 - u, u)
    p, q = _ndtr(left), _ndtr(right)
    central = torch.special.ndtri(p + u * (q - p))
    # In the tail P(X < x) / P(X < right) is nearly exp(-rate (right - x)) with rate = |right|: a start for Newton's
    # steps on log Φ(z) = log(u Φ(right) + (1 - u) Φ(left)), whose error falls from 1e-3 to 1e-12 in two.
    rate = right.abs().clamp(min=1.0)
    floor = torch.exp(-rate * (right - left))
    tail = right + torch.log(floor + u * (1 - floor)) / rate
    log_target = torch.logaddexp(
        u.log() + torch.special.log_ndtr(right), torch.log1p(-u) + torch.special.log_ndtr(left)
    )
    for _ in range(3):
        log_phi = torch.special.log_ndtr(tail)
        slope = torch.exp(-0.5 * tail.square() - 0.5 * LOG_2PI - log_phi)
        tail = tail - (log_phi - log_target) / slope
    z = torch.where(right < -30.0, tail, central)
    z = torch.where(mirror, -z, z)
    return (m + s * z).clamp(min=lower, max=upper).to(loc.dtype)


def _ndtr(z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Φ with its relative precision in the lower tail (torch.special.ndtr is 1 + erf there, and 0 below -8)."""
    return 0.5 * torch.special.erfc(-z / math.sqrt(2))
