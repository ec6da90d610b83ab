"""How much alike are generated and real crystals as sets: coverage and property distances of CDVAE (arXiv 2110.06197).

COV-R: share of real crystals with a generated one near by; COV-P: share of generated crystals with a real one near by.
Near: both fingerprints within their cutoffs, which are CDVAE's for MP-20. Property distances: Wasserstein-1 distances
between the distributions of density, number of elements and energy.

Deviations, each because matminer is not needed for anything else here:
- the structure fingerprint is CrystalNNFingerprint's `ops` preset rebuilt from the parts that pymatgen has (weights of
  coordination numbers 1 to 24 and order parameters of their motifs, mean over the sites): the same 61 numbers;
- the composition fingerprint is not Magpie's but Magpie's six statistics of those of its elemental properties that
  pymatgen has, standardised over the real crystals and stretched to Magpie's 132 dimensions. COV figures are therefore
  comparable within this project, and only roughly with published ones;
- the energy is the reward's own, of generated and real crystals alike, rather than that of a property model.

Shapes: n generated crystals, m real ones, F and G numbers of structure and composition features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from crystalforge.crystal import Crystal
from crystalforge.evaluation.metrics.statistics import CONFIDENCE, Estimate, share
from crystalforge.evaluation.validity import composition_valid, structure_valid

STRUCTURE_CUTOFF, COMPOSITION_CUTOFF = 0.4, 10.0  # CDVAE's, for MP-20
MAGPIE = 132  # features of the original composition fingerprint: distances grow with the root of their number
LARGEST_COORDINATION = 24
BOND_ORDER = ("q2", "q4", "q6")  # Steinhardt's parameters, for the coordination numbers that have no motif of their own
BOND_ORDERED = (9, 10, 11, 12)
ATOMIC_MASS_UNIT = 1.66053906660  # g/cm^3 per u/Å^3
LAST_WITH_SHELLS = 103  # pymatgen knows the electrons of the elements up to lawrencium
RESAMPLES = 200  # of the bootstrap: enough for the two digits that are shown
PROPERTIES = ("density", "n_elements", "energy_per_atom")


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of a set of crystals: structure [n F] and composition [n G], rows of NaN where there is none."""

    structure: Float64[np.ndarray, "n F"]
    composition: Float64[np.ndarray, "n G"]


def fingerprints(crystals: Sequence[Crystal | None]) -> Fingerprints:
    """Fingerprints of the valid crystals among those given; CDVAE has none of invalid ones."""
    good = [c is not None and structure_valid(c)[0] and composition_valid(c) for c in crystals]
    structure = np.full((len(crystals), len(_parameters())), math.nan)
    composition = np.full((len(crystals), 6 * _properties().shape[1]), math.nan)
    for row, crystal in enumerate(crystals):
        if crystal is not None and good[row]:
            structure[row] = structure_fingerprint(crystal)
            composition[row] = composition_fingerprint(crystal.numbers)
    return Fingerprints(structure, composition)


def structure_fingerprint(crystal: Crystal) -> Float64[np.ndarray, " F"]:
    """Mean over the atoms of coordination weights and motif order parameters; NaN where CrystalNN finds no neighbours.

    Atoms that symmetry makes equal are looked at once.
    """
    from pymatgen.analysis.local_env import CrystalNN
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    structure: Any = crystal.to_structure()
    finder = CrystalNN()
    try:
        orbits = SpacegroupAnalyzer(structure, symprec=0.01).get_symmetry_dataset().equivalent_atoms  # type: ignore[union-attr]
    except Exception:  # spglib finds no symmetry in an odd cell: every atom for itself
        orbits = np.arange(len(crystal))
    found = np.zeros(len(_parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CrystalNN would like oxidation states, which generated crystals do not have
        for atom, count in zip(*np.unique(orbits, return_counts=True), strict=True):
            try:
                found += int(count) * _site(finder, structure, int(atom))
            except Exception:  # no neighbours, elements without a radius: CrystalNN fails in many ways
                return np.full(len(_parameters()), math.nan)
    return found / len(crystal)


def _site(finder: Any, structure: Any, atom: int) -> Float64[np.ndarray, " F"]:
    neighbours = finder.get_nn_data(structure, atom)
    values = np.zeros(len(_parameters()))
    for place, (coordination, parameter) in enumerate(_parameters()):
        weight = neighbours.cn_weights.get(coordination, 0.0)
        if parameter is None or weight == 0:
            values[place] = weight
            continue
        sites = [structure[atom], *(entry["site"] for entry in neighbours.cn_nninfo[coordination])]
        order = parameter.get_order_parameters(sites, 0, indices_neighs=list(range(1, len(sites))))[0]
        values[place] = weight * (order or 0.0)  # None: the motif cannot be judged here
    return values


@cache
def _parameters() -> tuple[tuple[int, Any], ...]:
    """(coordination number, order parameter, or None for the number's own weight) of every feature."""
    from pymatgen.analysis.local_env import CN_OPT_PARAMS, LocalStructOrderParams

    found: list[tuple[int, Any]] = []
    for coordination in range(1, LARGEST_COORDINATION + 1):
        found.append((coordination, None))
        if coordination == 1:
            found.append((1, LocalStructOrderParams(["sgl_bd"])))
        motifs: dict[str, Any] = CN_OPT_PARAMS.get(coordination, {})
        for kind, *settings in motifs.values():
            found.append((coordination, LocalStructOrderParams([kind], parameters=settings or None)))
        if coordination in BOND_ORDERED:
            found += [(coordination, LocalStructOrderParams([kind])) for kind in BOND_ORDER]
    return tuple(found)


def composition_fingerprint(numbers: np.ndarray) -> Float64[np.ndarray, " G"]:
    """Minimum, maximum, range, mean, mean deviation and mode of each elemental property over the atoms."""
    kinds, counts = np.unique(numbers, return_counts=True)
    values, weights = _properties()[kinds], counts / counts.sum()
    mean = weights @ values
    spread = weights @ np.abs(values - mean)
    mode = values[weights == weights.max()].min(axis=0)  # of equally common elements Magpie takes the smaller value
    return np.concatenate([values.min(0), values.max(0), np.ptp(values, axis=0), mean, spread, mode])


@cache
def _properties() -> Float64[np.ndarray, "119 P"]:
    """Properties of each element; unknown ones are the mean over the known."""
    from pymatgen.core.periodic_table import Element

    shells = {"s": 2, "p": 6, "d": 10, "f": 14}
    table = np.full((119, 8 + 2 * len(shells) + 2), math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen says which values it does not have
        for z in range(1, 119):
            e = Element.from_Z(z)
            valence: dict[str, float] = dict.fromkeys(shells, 0 if z <= LAST_WITH_SHELLS else math.nan)
            if z <= LAST_WITH_SHELLS:
                for part in e.electronic_structure.split("."):
                    if not part.startswith("["):  # the noble gas within
                        valence[part[1]] += int(part[2:])
            empty = {shell: shells[shell] - count if count else 0 for shell, count in valence.items()}
            plain = [z, e.mendeleev_no, e.atomic_mass, e.melting_point, e.group, e.row, e.atomic_radius, e.X]
            table[z] = [
                *(math.nan if x is None else float(x) for x in plain),
                *valence.values(), sum(valence.values()), *empty.values(), sum(empty.values()),
            ]  # fmt: skip
    return np.where(np.isfinite(table), table, np.nanmean(table, axis=0))


def coverage(generated: Fingerprints, real: Fingerprints) -> dict[str, Estimate]:
    """COV-R over the real crystals with fingerprints and COV-P over all generated ones, with Wilson intervals."""
    known = _complete(real)
    built = _complete(generated)
    covering = np.zeros(len(built), dtype=bool)
    if not (known.any() and built.any()):
        return {"cov_recall": share(np.zeros(int(known.sum()), dtype=bool)), "cov_precision": share(covering)}
    near = _near(generated, real, built, known)
    covering[built] = np.any(near, axis=1)
    return {"cov_recall": share(np.asarray(np.any(near, axis=0))), "cov_precision": share(covering)}


def _complete(found: Fingerprints) -> Bool[np.ndarray, " n"]:
    return np.asarray(np.all(np.isfinite(found.structure), axis=1))


def _near(
    generated: Fingerprints, real: Fingerprints, built: Bool[np.ndarray, " n"], known: Bool[np.ndarray, " m"]
) -> Bool[np.ndarray, "p q"]:
    """Which real crystals are near which generated ones. CDVAE looks at the nearest by structure and the nearest by
    composition, which need not be the same crystal; here one crystal must be near in both, which is what is meant."""
    from scipy.spatial.distance import cdist

    centre = real.composition[known].mean(axis=0)
    scale = real.composition[known].std(axis=0)
    stretch = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0) * math.sqrt(MAGPIE / real.composition.shape[1])
    a, b = ((part - centre) * stretch for part in (generated.composition[built], real.composition[known]))
    structure = cdist(generated.structure[built], real.structure[known])
    return (structure <= STRUCTURE_CUTOFF) & (cdist(a, b) <= COMPOSITION_CUTOFF)


def density(crystal: Crystal) -> float:
    """Mass density in g/cm^3."""
    from pymatgen.core.periodic_table import Element

    mass = sum(float(Element.from_Z(int(z)).atomic_mass) for z in crystal.numbers)
    return ATOMIC_MASS_UNIT * mass / crystal.volume


def distance(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"], *, seed: int = 0) -> Estimate:
    """Wasserstein-1 distance of two samples of a property with the percentile bootstrap interval.

    The distance of finite samples is never zero, so that the interval of two equal distributions lies above zero.
    """
    from scipy.stats import wasserstein_distance

    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not (len(a) and len(b)):
        return Estimate(math.nan, math.nan, math.nan, 0)
    rng = np.random.default_rng(seed)
    draws = [wasserstein_distance(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(wasserstein_distance(a, b)), float(low), float(high), len(a))


def property_distances(
    generated: Mapping[str, Float64[np.ndarray, " n"]], real: Mapping[str, Float64[np.ndarray, " m"]]
) -> dict[str, Estimate]:
    """`distance` of each property that both have, as `wdist_<property>`."""
    return {
        f"wdist_{name}": distance(generated[name], real[name])
        for name in PROPERTIES
        if name in generated and name in real
    }
