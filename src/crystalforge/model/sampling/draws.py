"""Drawing one token from a law, and the law's log-probability after temperature and top-p.

The laws are `distributions`'; here they are only sharpened and inverted. All arithmetic is float64 whatever the
network ran in: it is a small part of the work, and inverse transforms then see 53-bit uniforms.

Sharpening, as in the published sampler: top-p keeps the smallest set of most probable choices whose mass reaches p
(under the law at temperature 1, after masks), then the logits are divided by T. Mixture components are choices like
any other; a component's concentration becomes κ/T and its width σ√T. Letters, elements, coordinates and lattice may
each have a temperature of their own.

Shapes: B crystals, C choices, K mixture components.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from crystalforge.crystal import wyckoff as symmetry
from crystalforge.model.distributions import (
    Law,
    draw_lattice,
    lattice_log_density,
    masked_log_softmax,
    symmetrise_lattice,
)
from crystalforge.model.network import CoordMixture, LatticeMixture
from crystalforge.model.sampling.random import LATTICE_EVENT, Streams
from crystalforge.model.tables import tables

ATTEMPTS_AT_ONCE = 8  # a von Mises draw needs 1.52 attempts at worst: 1 crystal in 5,000 needs a second round
LATTICE_RETRIES = 100  # of the reference law, which knows no bounds


@dataclass(frozen=True)
class Sharpening:
    """How the model's law is changed before drawing; the default changes nothing."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __call__(
        self,
        logits: Float[Tensor, "B C"],
        allowed: Bool[Tensor, "B C"] | None = None,
    ) -> Float64[Tensor, "B C"]:
        """Log-probabilities of the drawn law."""
        logits = logits.to(torch.float64)
        law = logits.log_softmax(dim=-1) if allowed is None else masked_log_softmax(logits, allowed)
        if self.top_p < 1:
            law = law.masked_fill(~_nucleus(law, self.top_p), -math.inf)
        return law if self == Sharpening() else (law / self.temperature).log_softmax(dim=-1)


@dataclass(frozen=True)
class Sharpenings:
    """How each kind of choice is sharpened; the default changes nothing."""

    letters: Sharpening = Sharpening()
    elements: Sharpening = Sharpening()
    first_element: Sharpening = Sharpening()
    coords: Sharpening = Sharpening()
    lattice: Sharpening = Sharpening()

    @classmethod
    def of(cls, temperatures: Mapping[str, float], top_p: float) -> Sharpenings:
        """From `temperature` and those that replace it: letter_, element_, first_element_, coord_ and
        lattice_temperature; the first element's is by default the others'."""
        general = temperatures.get("temperature", 1.0)

        def part(name: str, default: float = general) -> Sharpening:
            return Sharpening(temperatures.get(f"{name}_temperature", default), top_p)

        elements = part("element")
        return cls(
            part("letter"), elements, part("first_element", elements.temperature), part("coord"), part("lattice")
        )


def _nucleus(law: Float64[Tensor, "B C"], top_p: float) -> Bool[Tensor, "B C"]:
    """The most probable choices up to the one whose mass reaches `top_p`; at least one."""
    ordered, order = law.exp().sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = before <= top_p
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def draw_choice(law: Float64[Tensor, "B C"], uniform: Float64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """The choice at quantile `uniform` of log-probabilities `law`; never one of probability 0."""
    cumulative = law.exp().cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    return (cumulative <= target).sum(dim=-1)


def draw_von_mises(
    loc: Float64[Tensor, " B"],
    kappa: Float64[Tensor, " B"],
    streams: Streams,
    index: Int64[Tensor, " B"],
    event: int,
) -> Float64[Tensor, " B"]:
    """Angles in [-π, π) from von Mises(loc, kappa), exactly, for any kappa >= 0.

    Rejection from a wrapped Cauchy envelope (Best and Fisher, Appl. Statist. 28 (1979) 152), attempt by attempt of
    the crystal's own stream (attempt 0 is left to the component). The envelope's parameters are written so that
    neither kappa -> 0 nor kappa -> infinity cancels; its angle is drawn by inversion: 2 atan(q tan(π v)).
    """
    root = torch.sqrt(1 + 4 * kappa.square())
    tau = (1 + root).sqrt()
    ratio = (root + 1) * (tau + math.sqrt(2)) / (4 * tau)  # kappa / (2 rho)
    rho = kappa / (2 * ratio)
    narrow = (1 - rho) / (1 + rho)
    angle = torch.empty_like(loc)
    todo = torch.arange(len(loc), device=loc.device)
    first = 1
    while len(todo):
        uniform = streams.attempts(index[todo], event, first, ATTEMPTS_AT_ONCE)
        first += ATTEMPTS_AT_ONCE
        candidate = 2 * torch.atan(narrow[todo, None] * torch.tan(math.pi * (uniform[..., 0] - 0.5)))
        # c = kappa (r - cos t) with r = (1 + rho²) / (2 rho)
        spread = (1 - rho[todo, None]).square() + 4 * rho[todo, None] * (candidate / 2).sin().square()
        c = ratio[todo, None] * spread
        accepted = uniform[..., 1] <= c * (1 - c).exp()
        done = accepted.any(dim=1)
        first_accepted = accepted.to(torch.int8).argmax(dim=1, keepdim=True)
        angle[todo[done]] = candidate.gather(1, first_accepted).squeeze(1)[done]
        todo = todo[~done]
    turned = angle + loc
    return turned - 2 * math.pi * torch.floor((turned + math.pi) / (2 * math.pi))


# ---- coordinates ---------------------------------------------------------------------------------------------


def coord_rows(mixture: CoordMixture, rows: Int64[Tensor, " m"]) -> CoordMixture:
    """Some rows of a batch of mixtures, in float64."""
    parts = (mixture.logits, mixture.loc, mixture.kappa)
    return CoordMixture(*(part[rows].to(torch.float64) for part in parts))


def sharpened_coord(mixture: CoordMixture, sharpen: Sharpening) -> CoordMixture:
    """The mixture that is drawn from."""
    return CoordMixture(sharpen(mixture.logits), mixture.loc, mixture.kappa / sharpen.temperature)


def draw_coord(drawn: CoordMixture, streams: Streams, index: Int64[Tensor, " B"], event: int) -> Float64[Tensor, " B"]:
    """A fractional coordinate in [0, 1) from a sharpened mixture: the component, then its angle."""
    component = draw_choice(drawn.logits, streams.uniforms(index, event)[:, 0])[:, None]
    loc, kappa = (values.gather(1, component).squeeze(1) for values in (drawn.loc, drawn.kappa))
    return wrapped(draw_von_mises(loc, kappa, streams, index, event) / (2 * math.pi) + 0.5)


def wrapped(x: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """x mod 1 in [0, 1), also for x just below an integer, whose remainder rounds to 1."""
    remainder = x - x.floor()
    return torch.where(remainder < 1, remainder, 0.0)


def project(
    spacegroup: Int64[Tensor, " B"],
    wyckoff: Int64[Tensor, " B"],
    axis: int,
    earlier: Float64[Tensor, "B 3"],
    candidate: Float64[Tensor, " B"],
) -> Float64[Tensor, " B"]:
    """Coordinate `axis` of the representative, given its earlier coordinates and a draw for this one.

    The representative's map is lower triangular: a free coordinate stays what was drawn, the others follow.
    """
    row = representatives(candidate.device)[spacegroup - 1, wyckoff, axis]  # B 4
    terms = [row[:, other] * earlier[:, other] for other in range(axis)]
    return wrapped(sum(terms, row[:, axis] * candidate + row[:, 3]))


@cache
def _representatives(device: str) -> Float64[Tensor, "230 28 3 4"]:
    return torch.tensor(symmetry.representatives(), device=device)


def representatives(device: torch.device) -> Float64[Tensor, "230 28 3 4"]:
    """First operation of each Wyckoff position, see `crystal.wyckoff.representatives`."""
    return _representatives(str(device))


# ---- lattice -------------------------------------------------------------------------------------------------


def lattice_rows(mixture: LatticeMixture, rows: Int64[Tensor, " m"]) -> LatticeMixture:
    """Some rows of a batch of mixtures, in float64."""
    parts = (mixture.logits, mixture.loc, mixture.scale)
    return LatticeMixture(*(part[rows].to(torch.float64) for part in parts))


def sharpened_lattice(mixture: LatticeMixture, sharpen: Sharpening) -> LatticeMixture:
    """The mixture that is drawn from."""
    scale = mixture.scale * math.sqrt(sharpen.temperature)
    return LatticeMixture(sharpen(mixture.logits), mixture.loc, scale)


def drawn_lattice_log_density(
    drawn: LatticeMixture, lattice: Float64[Tensor, "B 6"], spacegroup: Int64[Tensor, " B"], law: Law
) -> Float64[Tensor, " B"]:
    """log density of the free parameters under the sharpened mixture: one joint mixture, in the reference law
    without bounds (and as if invalid cells were not drawn again, which multiplies it by an unknown constant)."""
    if law == "exact":
        return lattice_log_density(drawn, lattice, spacegroup)
    free = tables(lattice.device).lattice_free[spacegroup - 1, None]
    z = (lattice[:, None] - drawn.loc) / drawn.scale
    log_normal = -0.5 * z.square() - drawn.scale.log() - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(drawn.logits + torch.where(free, log_normal, 0.0).sum(dim=-1), dim=-1)


def draw_cell(
    drawn: LatticeMixture,
    spacegroup: Int64[Tensor, " B"],
    streams: Streams,
    index: Int64[Tensor, " B"],
    law: Law,
) -> tuple[Float64[Tensor, "B 6"], Int64[Tensor, " B"]]:
    """Lattice parameters (scaled Å, radians) from a sharpened mixture, and how often each had to be drawn again.

    One component for all six. The exact law's Gaussians are truncated to valid cells, so nothing is drawn again. The
    reference's are not: draws that are no cell are repeated, component included; after `LATTICE_RETRIES` the
    truncated draw is taken.
    """
    lattice, again = _draw_cell(drawn, spacegroup, streams, index, 0, bounded=law == "exact")
    retries = torch.zeros_like(index)
    if law == "exact":
        return lattice, retries
    for attempt in range(1, LATTICE_RETRIES + 1):
        rows = again.nonzero().squeeze(1)
        if not len(rows):
            break
        last = attempt == LATTICE_RETRIES
        part = lattice_rows(drawn, rows)
        lattice[rows], again[rows] = _draw_cell(part, spacegroup[rows], streams, index[rows], attempt, bounded=last)
        retries[rows] += 1
    return lattice, retries


def _draw_cell(
    drawn: LatticeMixture,
    spacegroup: Int64[Tensor, " B"],
    streams: Streams,
    index: Int64[Tensor, " B"],
    attempt: int,
    *,
    bounded: bool,
) -> tuple[Float64[Tensor, "B 6"], Bool[Tensor, " B"]]:
    uniform = streams.attempts(index, LATTICE_EVENT, 4 * attempt, 4).flatten(1)
    component = draw_choice(drawn.logits, uniform[:, 0])
    row = torch.arange(len(component), device=component.device)
    loc, scale = drawn.loc[row, component], drawn.scale[row, component]
    if bounded:
        return draw_lattice(loc, scale, uniform[:, 2:], spacegroup), torch.zeros_like(component, dtype=torch.bool)
    normal = torch.special.ndtri(uniform[:, 2:] + 2.0**-54)  # off zero, where the quantile is infinite
    lattice = symmetrise_lattice(loc + scale * normal, spacegroup)
    return lattice, ~_is_cell(lattice)


def _is_cell(lattice: Float64[Tensor, "B 6"]) -> Bool[Tensor, " B"]:
    """Whether the lengths and angles span a volume."""
    angles = lattice[:, 3:]
    ca, cb, cg = angles.cos().unbind(dim=-1)
    squared_volume = 1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg
    in_range = (lattice[:, :3] > 0).all(dim=1) & (angles > 0).all(dim=1) & (angles < math.pi).all(dim=1)
    return in_range & (squared_volume > 1e-6)
