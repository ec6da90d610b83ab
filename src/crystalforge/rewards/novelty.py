"""Rewards for being unlike: unlike what is known (novelty), unlike the rest of the batch (diversity).

The fingerprint is cheap (0.2 ms a crystal), independent of the cell, the order of the atoms and the frame, and made for
graded distances; it is no proof that two crystals are the same. Counting new materials takes structure matching.

Shapes: B crystals, R reference crystals, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.neighbors import neighbor_list
from crystalforge.rewards.base import Judgement
from crystalforge.rewards.protocol import Status

CUTOFF = 6.0
"""Å to which the radial part looks."""

CENTRES = np.linspace(1.0, CUTOFF, 26)
"""Å; 0.2 apart, as wide as the Gaussians."""

WIDTH = 0.2

RADIAL_WEIGHT = 0.15
"""Weight of the radial part: a change of all bonds by one width weighs about as much as replacing a tenth of the
atoms by another element."""

N_ELEMENTS = 118

CHUNK = 100
"""Crystals at a time: bounds the memory of the pairs of atoms to some 10 MB."""


def fingerprint(crystals: Sequence[Crystal]) -> Float64[np.ndarray, "B F"]:
    """Atomic fractions (118) and a smoothed count of neighbours by distance (26), averaged over atoms.

    The radial part of atom i at r is the sum over neighbours j of exp(-(r - r_ij)^2 / 2 width^2) / r_ij^2, fading to
    zero at the cutoff.
    """
    if len(crystals) > CHUNK:
        chunks = (crystals[start : start + CHUNK] for start in range(0, len(crystals), CHUNK))
        return np.concatenate([fingerprint(chunk) for chunk in chunks])
    features = np.zeros((len(crystals), N_ELEMENTS + len(CENTRES)))
    if not len(crystals):
        return features
    for row, crystal in enumerate(crystals):
        features[row, :N_ELEMENTS] = np.bincount(crystal.numbers - 1, minlength=N_ELEMENTS) / len(crystal)
    edges = neighbor_list(crystals, CUTOFF)
    fade = (1 - (edges.distance / CUTOFF) ** 2) ** 2 / edges.distance**2
    peaks = fade[:, None] * np.exp(-0.5 * ((edges.distance[:, None] - CENTRES) / WIDTH) ** 2)
    # Edges come crystal by crystal: sums of consecutive rows.
    ends = np.searchsorted(edges.crystal, np.arange(len(crystals) + 1))
    sums = np.vstack([np.zeros((1, len(CENTRES))), np.cumsum(peaks, axis=0)])
    radial = sums[ends[1:]] - sums[ends[:-1]]
    sizes = np.array([len(crystal) for crystal in crystals])
    features[:, N_ELEMENTS:] = RADIAL_WEIGHT * radial / sizes[:, None]
    return features


def load_reference(path: Path | None) -> Float64[np.ndarray, "R F"]:
    """Fingerprints of known crystals: npy of them, or parquet of structures; None: the embedded prototypes."""
    if path is None:
        from importlib import resources

        source = resources.files("crystalforge") / "data" / "prototypes.parquet"
        if not source.is_file():
            raise InputError(
                "the embedded prototypes are not in this installation", remedy="give `reference`, or reinstall"
            )
        with resources.as_file(source) as file:
            return _from_parquet(file)
    if not path.is_file():
        raise InputError("no such file", source=path, remedy="give an npy of fingerprints or a parquet of structures")
    if path.suffix == ".parquet":
        return _from_parquet(path)
    try:
        features = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"is no npy array ({error})", source=path) from error
    wanted = N_ELEMENTS + len(CENTRES)
    if features.ndim != 2 or features.shape[1] != wanted or not len(features):
        raise InputError(f"has the shape {features.shape}, wanted [n > 0, {wanted}]", source=path)
    return features.astype(np.float64)


def _from_parquet(path: Path) -> Float64[np.ndarray, "R F"]:
    import pyarrow.parquet as parquet

    columns = ["lattice", "atomic_numbers", "frac_coords"]
    if missing := set(columns) - set(parquet.read_schema(path).names):
        raise InputError(f"lacks the columns {', '.join(sorted(missing))}", source=path)
    rows = parquet.read_table(path, columns=columns).to_pylist()
    return fingerprint([Crystal.of(*(row[name] for name in columns)) for row in rows])


class NoveltyJudge:
    """Distance to the nearest reference fingerprint, in units of `scale`, at most 1."""

    component_names = ("distance",)
    elements: frozenset[int] | None = None

    def __init__(self, reference: Float64[np.ndarray, "R F"], scale: float) -> None:
        from scipy.spatial import KDTree

        self._tree, self._scale = KDTree(reference), scale
        self.digests = {"reference": hashlib.sha256(np.ascontiguousarray(reference).tobytes()).hexdigest()}

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        distance = np.asarray(self._tree.query(fingerprint(crystals))[0], dtype=np.float64)
        return _unlike(distance, self._scale)


class DiversityJudge:
    """Distance to the nearest other crystal of the batch, in units of `scale`, at most 1 (also when alone)."""

    component_names = ("distance",)
    elements: frozenset[int] | None = None

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self.digests: dict[str, str] = {}

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        from scipy.spatial import KDTree

        if len(crystals) == 1:
            return _unlike(np.array([np.inf]), self._scale)
        features = fingerprint(crystals)
        # The nearest is the crystal itself or a copy of it, so the second nearest is what counts.
        distance = np.asarray(KDTree(features).query(features, k=2)[0], dtype=np.float64)[:, 1]
        return _unlike(distance, self._scale)


def _unlike(distance: Float64[np.ndarray, " B"], scale: float) -> Judgement:
    status = np.full(len(distance), Status.OK, dtype=np.int32)
    return Judgement(np.minimum(distance / scale, 1.0), status, {"distance": distance})
