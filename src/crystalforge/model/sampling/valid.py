"""Draw until every crystal passes the geometric checks: rejection, each crystal from attempts of its own.

The law. A crystal of space group g is drawn from p(crystal | g) restricted to those that pass:

    p_valid(crystal | g) = p(crystal | g) / P(g),      P(g) = the share of p(. | g) that passes.

Space groups keep their frequencies: a crystal that is refused is drawn again in its own group. All is known exactly
but P(g), which no network gives. A crystal that took K draws says of it -ln P(g) = E[1 + 1/2 + ... + 1/(K - 1)]
(inverse binomial sampling: van Opheusden, Acerbi, Ma, PLoS Comput. Biol. 16 (2020) e1008483), unbiased with a
variance below pi^2/6: so log p - log P̂ of drawn crystals has the right mean (`Samples.log_share`). The share of the
unrestricted law that passes is that of first draws, `draws == 1`.

Attempt k of crystal i is the crystal of index i + k 2^40 of the unrestricted run: attempt 0 is what `sample` would
have drawn, and what crystal i becomes depends on (seed, i) alone, whatever the waves are.

Shapes: n crystals asked for, W rows of a wave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from crystalforge.common.errors import InputError
from crystalforge.crystal.geometry import Geometry, possible
from crystalforge.model.sampling.samples import Samples

ATTEMPT_BITS = 40  # 10^12 crystals, 8 million attempts
Wave = Callable[[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]], Iterator[Samples]]


def until_valid(
    wave: Wave,
    spacegroups: Int64[np.ndarray, " n"],
    first_index: int,
    geometry: Geometry,
    *,
    batch_size: int,
    max_draws: int,
) -> Iterator[Samples]:
    """Crystals first_index, ... that pass `geometry`, in groups as they are found, with the draws that each took.

    wave: draws crystals of the given space groups and indices. Raises InputError when one crystal has not passed after
    `max_draws` draws; those found before have been given by then.
    """
    if first_index + len(spacegroups) > 1 << ATTEMPT_BITS:
        raise InputError(f"index {first_index + len(spacegroups)} is out of range", remedy=f"below 2^{ATTEMPT_BITS}")
    waiting, tried = np.zeros(0, np.int64), np.zeros(len(spacegroups), np.int64)
    fresh, drawn, passed = 0, 0, 0
    while fresh < len(spacegroups) or len(waiting):
        more = min(max(batch_size - len(waiting), 0), len(spacegroups) - fresh)
        rows = np.concatenate([waiting[:batch_size], np.arange(fresh, fresh + more)])
        waiting, fresh = waiting[batch_size:], fresh + more
        wide, attempt = _ahead(rows, tried, batch_size, max_draws)
        index = first_index + wide + (attempt << ATTEMPT_BITS)
        found = Samples.concatenate(list(wave(spacegroups[wide], index)))  # by index: earlier attempts come first
        row = (found.index & ((1 << ATTEMPT_BITS) - 1)) - first_index
        good = np.flatnonzero(possible(found.tokens, geometry))
        accepted, first = np.unique(row[good], return_index=True)
        first = good[first]
        draws = (found.index[first] >> ATTEMPT_BITS) + 1
        refused = np.setdiff1d(rows, accepted)
        tried[rows] += np.bincount(wide, minlength=len(tried))[rows]
        tried[accepted] = draws
        passed, drawn = passed + len(accepted), drawn + int(draws.sum())
        if len(first):
            yield replace(found[first], index=accepted + first_index, draws=draws.astype(np.int32))
        hopeless = refused[tried[refused] >= max_draws]
        if len(hopeless):
            raise _gave_up(first_index + int(hopeless[0]), int(spacegroups[hopeless[0]]), max_draws, passed,
                           drawn + int(tried[refused].sum()))  # fmt: skip
        waiting = np.concatenate([waiting, refused])


def _ahead(
    rows: Int64[np.ndarray, " m"], tried: Int64[np.ndarray, " n"], room: int, most: int
) -> tuple[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
    """Which attempt of which crystal is drawn next. Where a wave has room, crystals that were refused try several
    attempts at once, as many as failed before: a small wave costs hardly less than a larger one.
    """
    spare = max(room // max(len(rows), 1), 1)
    count = np.minimum(np.minimum(np.maximum(tried[rows], 1), spare), most - tried[rows])
    wide = np.repeat(rows, count)
    within = np.arange(len(wide)) - np.repeat(np.cumsum(count) - count, count)
    return wide, tried[wide] + within


def _gave_up(index: int, spacegroup: int, draws: int, passed: int, drawn: int) -> InputError:
    return InputError(
        f"crystal {index} (space group {spacegroup}): none of {draws:,} draws passes the geometric checks; of all "
        f"{drawn:,} draws {passed:,} did",
        remedy="draw in other space groups, loosen the constraints or the checks, lower the temperature, or allow more "
        "draws (max_draws)",
    )
