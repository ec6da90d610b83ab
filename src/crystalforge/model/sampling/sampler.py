"""Crystals from the model: p(crystal | space group), drawn token by token with a cache.

One wave is a batch of crystals that all stand at the same token. Each site is five tokens; a crystal whose next
letter is the pad gets its lattice there and leaves the wave, the others close ranks and go on. Nothing is computed
for pads, nothing is compiled, and space groups mix freely within a wave.

Two log-probabilities are kept per factor: under the model (what `likelihood.log_prob` gives for the finished tokens)
and under the law that was really drawn from, which temperature, top-p and constraints change. The latter counts what
is drawn: tied coordinates are computed, never drawn, and the last slot's pad is certain, in the reference law too.

Random numbers depend on (seed, index of the crystal) alone; see `crystalforge.model.sampling.random`.

Shapes: n crystals asked for, B rows of a wave, S site slots, C choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, Literal, ParamSpec, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from crystalforge.common.errors import InputError
from crystalforge.common.progress import Progress
from crystalforge.crystal.geometry import Geometry
from crystalforge.model.batch import TokenBatch
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.model.constraints.masks import Masks
from crystalforge.model.distributions import (
    Law,
    allowed_element,
    allowed_wyckoff,
    coord_log_density,
    lattice_log_density,
    masked_log_softmax,
)
from crystalforge.model.network import TOKENS_PER_SITE, CoordMixture, CrystalFormer, LatticeMixture
from crystalforge.model.sampling.config import MAX_DRAWS
from crystalforge.model.sampling.draws import (
    Sharpening,
    Sharpenings,
    coord_rows,
    draw_cell,
    draw_choice,
    draw_coord,
    drawn_lattice_log_density,
    lattice_rows,
    project,
    sharpened_coord,
    sharpened_lattice,
)
from crystalforge.model.sampling.network import CloseRanks, Decoder
from crystalforge.model.sampling.random import SPACEGROUP_EVENT, Streams
from crystalforge.model.sampling.samples import FACTORS, Samples
from crystalforge.model.sampling.valid import until_valid
from crystalforge.model.sampling.writers import writer
from crystalforge.model.tables import tables

Precision = Literal["float32", "bfloat16", "float64"]
BATCH_SIZE = 512


def stream(
    model: CrystalFormer,
    spacegroups: Int64[np.ndarray, " n"],
    *,
    seed: int,
    first_index: int = 0,
    constraints: Constraints | None = None,
    temperature: float = 1.0,
    letter_temperature: float | None = None,
    element_temperature: float | None = None,
    first_element_temperature: float | None = None,
    coord_temperature: float | None = None,
    lattice_temperature: float | None = None,
    top_p: float = 1.0,
    valid: Geometry | None = None,
    max_draws: int = MAX_DRAWS,
    law: Law = "exact",
    batch_size: int = BATCH_SIZE,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> Iterator[Samples]:
    """One crystal per entry of `spacegroups`; crystal i has index `first_index + i`. They come in groups as they
    finish, the shortest of each wave first.

    temperature, top_p: of all choices (letters, elements, mixture components) and widths, see `sampling.draws`; the
    other temperatures replace the general one for their part. valid: draw each crystal again, in its space group and
    at most `max_draws` times, until it passes these checks (see `sampling.valid`). law: "reference" for the published
    law, whose lattice has no bounds. batch_size and precision are matters of speed; batch_size bounds the memory too
    (2.1 MB per token position and 32 crystals at full size). InputError for anything out of range or infeasible.
    """
    temperatures = {"temperature": temperature} | {
        name: value
        for name, value in (
            ("letter_temperature", letter_temperature),
            ("element_temperature", element_temperature),
            ("first_element_temperature", first_element_temperature),
            ("coord_temperature", coord_temperature),
            ("lattice_temperature", lattice_temperature),
        )
        if value is not None
    }
    _check(spacegroups, first_index, batch_size, temperatures, top_p, max_draws, law)
    masks = None
    if constraints is not None and len(spacegroups):
        masks = Masks(constraints, spacegroups.tolist(), model.config.max_sites, model.head.weight.device)
    law_drawn = Sharpenings.of(temperatures, top_p)
    sampler = Sampler(model, Streams(seed), law_drawn, law, masks, precision)
    for samples in _waves(sampler, spacegroups, first_index, batch_size, valid, max_draws):
        if progress is not None:
            progress.update(len(samples))
        yield samples


def _waves(
    sampler: Sampler,
    spacegroups: Int64[np.ndarray, " n"],
    first_index: int,
    batch_size: int,
    valid: Geometry | None,
    max_draws: int,
) -> Iterator[Samples]:
    if valid is not None:
        yield from until_valid(
            sampler.wave, spacegroups, first_index, valid, batch_size=batch_size, max_draws=max_draws
        )
        return
    index = np.arange(first_index, first_index + len(spacegroups), dtype=np.int64)
    for start in range(0, len(spacegroups), batch_size):
        part = slice(start, start + batch_size)
        yield from sampler.wave(spacegroups[part], index[part])


Options = ParamSpec("Options")


def _whole(parts: Callable[Concatenate[CrystalFormer, Options], Iterator[Samples]]) -> Callable[
    Concatenate[CrystalFormer, Options], Samples
]:  # fmt: skip
    """All that `parts` gives at once, with the very same parameters."""

    def together(model: CrystalFormer, *args: Options.args, **options: Options.kwargs) -> Samples:
        return Samples.concatenate(list(parts(model, *args, **options)), slots=model.config.max_sites)

    together.__doc__ = """As `stream`, but all crystals at once, in the order of `spacegroups`.

    >>> sample(model, np.full(100, 225), seed=1).tokens.element[:3, 0]     # doctest: +SKIP
    array([55, 19, 12], dtype=int32)
    """
    return together


sample = _whole(stream)


def draw_spacegroups(
    weights: Float64[np.ndarray, " 230"], n: int, *, seed: int, first_index: int = 0
) -> Int64[np.ndarray, " n"]:
    """Space groups of crystals first_index .. first_index + n - 1, in proportion to `weights` (any positive sum)."""
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise InputError("space-group weights must be finite, not negative, and not all zero")
    index = torch.arange(first_index, first_index + n)
    uniform = Streams(seed).uniforms(index, SPACEGROUP_EVENT)[:, 0].numpy()
    cumulative = np.cumsum(weights / weights.sum())
    return np.searchsorted(cumulative, uniform * cumulative[-1], side="right").astype(np.int64) + 1


class _Wave:
    """The crystals of one batch while they grow; row b of every tensor belongs to one of them."""

    def __init__(self, sampler: Sampler, spacegroups: Int64[np.ndarray, " n"], index: Int64[np.ndarray, " n"]) -> None:
        n, slots, device = len(spacegroups), sampler.slots, sampler.decoder.device
        self.spacegroup = torch.tensor(spacegroups, dtype=torch.int64, device=device)  # a copy: its rows move
        self.index = torch.tensor(index, dtype=torch.int64, device=device)
        self.wyckoff = torch.zeros((n, slots), dtype=torch.int64, device=device)
        self.element = torch.zeros((n, slots), dtype=torch.int64, device=device)
        self.coords = torch.zeros((n, slots, 3), dtype=torch.float64, device=device)
        # The state of the constraints; without any, a number that nobody reads.
        self.cell = torch.zeros_like(self.index) if sampler.masks is None else sampler.masks.start(self.index)
        self.log_prob = torch.zeros((n, len(FACTORS)), dtype=torch.float64, device=device)
        self.log_prob_drawn = torch.zeros_like(self.log_prob)
        self.writer = writer(sampler.decoder, self.spacegroup)

    def close_ranks(self, move: CloseRanks) -> None:
        """Let go of the rows that `move` does not keep."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, move(value))
        self.writer.close_ranks(move)

    def __len__(self) -> int:
        return len(self.index)


class Sampler:
    """The options of one run with the packed network."""

    def __init__(
        self,
        model: CrystalFormer,
        streams: Streams,
        sharpen: Sharpenings,
        law: Law,
        masks: Masks | None,
        precision: Precision,
    ) -> None:
        self.decoder = Decoder(model, precision)
        self.slots = model.config.max_sites
        self.streams, self.sharpen = streams, sharpen
        self.law: Law = law
        self.masks = masks
        # Without sharpening the drawn law of a coordinate is the model's, and need not be evaluated twice.
        self.plain = sharpen.coords == Sharpening() and law == "exact"

    def wave(self, spacegroups: Int64[np.ndarray, " n"], index: Int64[np.ndarray, " n"]) -> Iterator[Samples]:
        """Draw one wave of crystals, yielding them as they end; `index` decides their random numbers."""
        wave = _Wave(self, spacegroups, index)
        for slot in range(self.slots):
            finished = self._grow(wave, slot)
            if finished is not None:
                yield finished
            if not len(wave):
                return
        raise AssertionError("the last slot allows nothing but the pad, so every crystal has ended")

    @torch.inference_mode()
    def _grow(self, wave: _Wave, slot: int) -> Samples | None:
        """Draw the letter of `slot`; give the crystals that end there their lattice, the others a site."""
        letter = self._draw_letter(wave, slot, wave.writer.letter_logits)
        element_logits, lattice = wave.writer.letter(slot, wave.spacegroup, letter)
        finished = None
        if bool((letter == 0).any()):
            finished = self._finish(wave, (letter == 0).nonzero().squeeze(1), lattice)
            move = CloseRanks(letter > 0)
            element_logits = move(element_logits)
            wave.close_ranks(move)
        if len(wave):
            element = self._draw_element(wave, slot, element_logits)
            mixture = wave.writer.element(slot, wave.spacegroup, element)
            for axis in range(3):
                assert mixture is not None, "there is one for each axis"
                self._draw_coord(wave, slot, axis, mixture)
                mixture = wave.writer.coord(slot, axis, wave.spacegroup, wave.coords[:, slot])
        return finished

    # ---- one token ---------------------------------------------------------------------------------------------

    def _draw_letter(self, wave: _Wave, slot: int, logits: Float[Tensor, "B C"]) -> Int64[Tensor, " B"]:
        previous = wave.wyckoff[:, slot - 1] if slot else None
        last = slot == self.slots - 1
        drawn_from = allowed_wyckoff(wave.spacegroup, previous, last)
        if self.masks is not None:
            drawn_from = drawn_from & self.masks.letters(slot, wave.spacegroup, wave.cell)
        # The reference law does not know that the last slot must stay empty.
        law = allowed_wyckoff(wave.spacegroup, previous, last and self.law == "exact")
        letter = self._draw_choice(wave, slot, 0, logits, law, drawn_from, self.sharpen.letters)
        wave.wyckoff[:, slot] = letter
        return letter

    def _draw_element(self, wave: _Wave, slot: int, logits: Float[Tensor, "B C"]) -> Int64[Tensor, " B"]:
        letter, cell = wave.wyckoff[:, slot], wave.cell
        law = drawn_from = allowed_element(letter, logits.shape[-1])
        if self.masks is not None:
            possible = self.masks.elements(slot, wave.spacegroup, letter, cell, wave.element)
            drawn_from = law & possible[:, : law.shape[1]]
        sharpen = self.sharpen.elements if slot else self.sharpen.first_element
        element = self._draw_choice(wave, slot, 1, logits, law, drawn_from, sharpen)
        wave.element[:, slot] = element
        if self.masks is not None:
            wave.cell = self.masks.advance(slot, wave.spacegroup, letter, element, cell)
        return element

    def _draw_choice(
        self,
        wave: _Wave,
        slot: int,
        kind: int,
        logits: Float[Tensor, "B C"],
        allowed: Bool[Tensor, "B C"],
        drawn_from: Bool[Tensor, "B C"],
        sharpen: Sharpening,
    ) -> Int64[Tensor, " B"]:
        """A letter (kind 0) or element (kind 1), with its log-probabilities under the model and as drawn."""
        drawn = sharpen(logits, drawn_from)
        uniform = self.streams.uniforms(wave.index, TOKENS_PER_SITE * slot + kind)[:, 0]
        choice = draw_choice(drawn, uniform)
        law = masked_log_softmax(logits.to(torch.float64), allowed)
        row = torch.arange(len(wave), device=choice.device)
        wave.log_prob[:, kind] += law[row, choice]
        wave.log_prob_drawn[:, kind] += drawn[row, choice]
        return choice

    def _draw_coord(self, wave: _Wave, slot: int, axis: int, mixture: CoordMixture) -> None:
        """Coordinate `axis`: drawn where it is free, else what the site's symmetry makes it."""
        symmetry, letter = tables(wave.index.device), wave.wyckoff[:, slot]
        rows = symmetry.is_free[wave.spacegroup - 1, letter, axis].nonzero().squeeze(1)
        candidate = torch.zeros_like(wave.coords[:, slot, axis])
        drawn = sharpened_coord(coord_rows(mixture, rows), self.sharpen.coords)
        event = TOKENS_PER_SITE * slot + 2 + axis
        candidate[rows] = draw_coord(drawn, self.streams, wave.index[rows], event)
        x = project(wave.spacegroup, letter, axis, wave.coords[:, slot], candidate)
        wave.coords[:, slot, axis] = x
        density = coord_log_density(drawn, x[rows])
        wave.log_prob_drawn[rows, 2] += density
        if not self.plain:
            scored = symmetry.is_free if self.law == "exact" else symmetry.varies
            rows = scored[wave.spacegroup - 1, letter, axis].nonzero().squeeze(1)
            density = coord_log_density(coord_rows(mixture, rows), x[rows])
        wave.log_prob[rows, 2] += density

    def _finish(self, wave: _Wave, rows: Int64[Tensor, " m"], lattice: LatticeMixture) -> Samples:
        """The crystals of `rows`, which end here, with their lattice."""
        group, index = wave.spacegroup[rows], wave.index[rows]
        mixture = lattice_rows(lattice, rows)
        drawn = sharpened_lattice(mixture, self.sharpen.lattice)
        cell, retries = draw_cell(drawn, group, self.streams, index, self.law)
        wave.log_prob[rows, 3] = lattice_log_density(mixture, cell, group, self.law)
        wave.log_prob_drawn[rows, 3] = drawn_lattice_log_density(drawn, cell, group, self.law)
        tokens = TokenBatch(group, wave.wyckoff[rows], wave.element[rows], wave.coords[rows], cell)

        def factors(log_prob: Float64[Tensor, "B 4"]) -> dict[str, Any]:
            columns = log_prob[rows].cpu().numpy()
            return {name: columns[:, number].copy() for number, name in enumerate(FACTORS)}

        return Samples(
            index.cpu().numpy(),
            tokens.to_tokens(),
            factors(wave.log_prob),
            factors(wave.log_prob_drawn),
            retries.to(torch.int32).cpu().numpy(),
            np.ones(len(rows), dtype=np.int32),
        )


def _check(
    spacegroups: Int64[np.ndarray, " n"],
    first_index: int,
    batch_size: int,
    temperatures: Mapping[str, float],
    top_p: float,
    max_draws: int,
    law: str,
) -> None:
    wrong = spacegroups[(spacegroups < 1) | (spacegroups > 230)]
    if len(wrong):
        raise InputError(f"there is no space group {wrong[0]}", remedy="use numbers from 1 to 230")
    if first_index < 0 or batch_size < 1:
        raise InputError(f"first_index {first_index} must not be negative and batch_size {batch_size} must be positive")
    for name, value in temperatures.items():
        if not 0 < value < float("inf"):
            raise InputError(f"{name} {value} is out of range", remedy="use a positive number; 1 is the model's law")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p} is out of range", remedy="use a number in (0, 1]; 1 keeps everything")
    if max_draws < 1:
        raise InputError(f"max_draws {max_draws} is out of range", remedy="allow one draw of each crystal at least")
    if law not in get_args(Law):
        raise InputError(f"unknown law {law!r}", remedy=f"use one of {', '.join(get_args(Law))}")
