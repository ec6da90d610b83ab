"""Other descriptions of the same crystal: any point of a site's orbit that lies on its position's representative.

The tokeniser takes the one that came first in its input, which says nothing about the crystal. A model that sees
another at every turn has more to learn from, and spreads its probability over all of them.

Shapes: B crystals, S site slots, T maps in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float64, Int64

from crystalforge.crystal import wyckoff
from crystalforge.crystal.tokens import Tokens

SAME = 1e-6  # fractional; translations are multiples of 1/24


@dataclass(frozen=True, eq=False)
class Moves:
    """Operations of each group that take the representative of a Wyckoff position onto itself, end to end.

    Those of (g, w) are rows offset[g - 1, w] and the count[g - 1, w] - 1 after it; the identity is among them.
    """

    maps: Float64[np.ndarray, "T 3 4"]
    offset: Int64[np.ndarray, "230 28"]
    count: Int64[np.ndarray, "230 28"]


@cache
def moves() -> Moves:
    """The table, made on first use (half a second)."""
    count = np.ones((wyckoff.N_GROUPS, 28), np.int64)
    parts = []
    for g in range(1, wyckoff.N_GROUPS + 1):
        letters = int(wyckoff.n_letters()[g - 1])
        general = wyckoff.operations(g, letters)
        for w in range(28):
            found = np.eye(3, 4)[None]
            if 1 <= w <= letters and wyckoff.is_free()[g - 1, w].any():
                found = _onto_itself(general, wyckoff.representatives()[g - 1, w])
            count[g - 1, w] = len(found)
            parts.append(found)
    flat = count.ravel()
    return Moves(np.concatenate(parts), (np.cumsum(flat) - flat).reshape(count.shape), count)


def _onto_itself(
    general: Float64[np.ndarray, "M 3 4"], representative: Float64[np.ndarray, "3 4"]
) -> Float64[np.ndarray, "K 3 4"]:
    linear, shift = representative[:, :3], representative[:, 3]
    # Each operation after the representative's map; it stays if another application of that map changes nothing.
    turned = general[:, :, :3] @ linear
    moved = general[:, :, :3] @ shift + general[:, :, 3]
    again = moved @ linear.T + shift - moved
    stays = (np.abs(linear @ turned - turned) < SAME).all(axis=(1, 2)) & (np.abs(again - np.rint(again)) < SAME).all(
        axis=1
    )
    # Operations that agree on the position give one point, and count once.
    keys = np.concatenate([turned.reshape(len(turned), 9), np.rint(moved * wyckoff.TRANSLATION_UNIT) % 24], axis=1)
    _, first = np.unique(keys[stays].astype(np.int64), axis=0, return_index=True)
    return general[stays][np.sort(first)]


def redescribed(tokens: Tokens, random: np.random.Generator) -> Tokens:
    """The same crystals, each site by a point of its orbit drawn with equal chances, in the tokeniser's order."""
    table = moves()
    g = tokens.spacegroup[:, None].astype(np.int64) - 1
    w = tokens.wyckoff.astype(np.int64)
    choice = np.minimum((random.random(w.shape) * table.count[g, w]).astype(np.int64), table.count[g, w] - 1)
    maps = table.maps[table.offset[g, w] + choice]
    coords = np.where(
        (table.count[g, w] > 1)[..., None],
        (np.einsum("bsij,bsj->bsi", maps[..., :3], tokens.coords) + maps[..., 3]) % 1.0,
        tokens.coords,
    )
    single = coords.astype(np.float32)
    coords[single >= 1.0] = 0.0  # it would round to 1
    single[single >= 1.0] = 0.0
    row = np.broadcast_to(np.arange(len(tokens))[:, None], w.shape)
    letter = np.where(w > 0, w, 99)  # pads stay at the end
    keys = (single[..., 2], single[..., 1], single[..., 0], letter, row)
    order = np.lexsort(tuple(key.ravel() for key in keys)).reshape(w.shape) - row[:, :1] * w.shape[1]
    return Tokens(
        tokens.spacegroup,
        tokens.wyckoff,
        np.take_along_axis(tokens.element, order, axis=1),
        np.take_along_axis(coords, order[..., None], axis=1),
        tokens.lattice,
    )
