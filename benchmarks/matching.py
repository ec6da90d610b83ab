"""How fast is uniqueness and novelty?   python benchmarks/matching.py [--parquet FILE] [--samples N] [--references N]

Prints JSON. Samples are distorted copies of the source's crystals, a third of them with one element exchanged for its
neighbour in the group, so that all of matching, new and repeated crystals occur. Timed: grouping the samples and
looking each of them up among the references, on one core. Beside it the same by StructureMatcher.fit on every pair,
from the mean over pairs drawn at random (all of them would take hours), and the answers of both on a subset where
every pair is tried. `--scaling` repeats it for growing reference sets, 100,000 among them. `--verify` asks instead
whether the metrics are right; see `verify`.
"""

from __future__ import annotations

import argparse
import resource
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from _common import finish

from crystalforge.crystal import Crystal
from crystalforge.evaluation.judging.judge import match_all
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.protocols import MatcherSettings
from crystalforge.evaluation.testing import brute_groups, brute_novel, composition_is_valid, structure_is_valid
from crystalforge.evaluation.validity import composition_valid, reduced_composition, structure_valid

RANDOM_PAIRS = 3000  # timed for the extrapolation
LARGEST = 100_000  # references of the last point of --scaling
SUBSET = 120  # samples (and as many references of the same compositions) compared pair by pair


def load(path: str | None) -> tuple[list[Crystal], list[str]]:
    """Crystals of at most 20 atoms from a parquet file with the columns lattice, atomic_numbers, frac_coords."""
    import pyarrow.parquet as pq

    source = path or str(files("crystalforge.data") / "prototypes.parquet")
    names = pq.read_schema(source).names
    table = pq.read_table(source, columns=["lattice", "atomic_numbers", "frac_coords"])
    columns = (table.column(name).to_pylist() for name in table.column_names)
    crystals = [Crystal.of(*row) for row in zip(*columns, strict=True) if len(row[1]) <= 20]
    identity = "material_id" if "material_id" in names else "id" if "id" in names else None
    ids = [str(k) for k in range(len(crystals))]
    if identity and len(table) == len(crystals):
        ids = pq.read_table(source, columns=[identity]).column(0).to_pylist()
    return crystals, ids


def distorted(crystals: list[Crystal], count: int, seed: int) -> list[Crystal]:
    """Copies with strain 2 %, displacements of about 0.05 Å and, in a third of them, another element."""
    from pymatgen.core.periodic_table import Element

    below = {}
    for z in range(1, 87):
        element = Element.from_Z(z)
        below[z] = next(
            (o for o in range(z + 1, 87) if Element.from_Z(o).group == element.group and o - z in (8, 18, 32)), z
        )
    rng = np.random.default_rng(seed)
    found = []
    for row in rng.integers(len(crystals), size=count):
        crystal = crystals[row]
        numbers = crystal.numbers.copy()
        if rng.random() < 1 / 3:
            chosen = int(rng.choice(np.unique(numbers)))
            numbers[numbers == chosen] = below.get(chosen, chosen)
        moves = rng.normal(0, 0.03, crystal.frac.shape) @ np.linalg.inv(crystal.lattice)
        strain = np.eye(3) + rng.normal(0, 0.02, (3, 3))
        found.append(Crystal.of(crystal.lattice @ strain, numbers, crystal.frac + moves))
    return found


def fast(samples: list[Crystal], references: list[Crystal], ids: list[str]) -> tuple[float, list[int], list[bool]]:
    """Seconds, group heads and novelty of the samples."""
    began = time.perf_counter()
    reference = Reference.from_crystals(references, ids)
    found = match_all(samples, reference, MatcherSettings())
    return time.perf_counter() - began, found.heads.tolist(), ((found.match < 0) & (found.heads >= 0)).tolist()


def seconds_per_pair(samples: list[Crystal], references: list[Crystal], seed: int) -> float:
    """Mean time of StructureMatcher.fit over pairs drawn at random, as a pairwise pass would meet them."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    rng, matcher = np.random.default_rng(seed), StructureMatcher()
    first = [samples[k].to_structure() for k in rng.integers(len(samples), size=RANDOM_PAIRS)]
    second = [references[k].to_structure() for k in rng.integers(len(references), size=RANDOM_PAIRS)]
    began = time.perf_counter()
    for a, b in zip(first, second, strict=True):
        matcher.fit(a, b)
    return (time.perf_counter() - began) / RANDOM_PAIRS


def verify(crystals: list[Crystal], generated: list[Crystal], count: int, seed: int) -> dict[str, object]:
    """The metrics of `count` crystals, half of them real and half generated, against their definitions.

    Uniqueness among all of them, and novelty of each half against the other, by StructureMatcher.fit on every pair;
    structure and composition validity by pymatgen's distance matrix and SMACT's walk over all oxidation states.
    """
    rng = np.random.default_rng(seed)
    half = count // 2
    real = [crystals[k] for k in rng.permutation(len(crystals))[:half]]
    # Some generated crystals are shown beside the very crystals they were made of, so that matches occur.
    made = [*(generated[k] for k in rng.permutation(len(generated))[: half - half // 4]),
            *distorted(real, half // 4, seed + 2)]  # fmt: skip
    both = [*real, *made]
    began = time.perf_counter()
    heads = brute_groups(both)
    novel = brute_novel(made, real) + brute_novel(real, made)
    slow = time.perf_counter() - began
    began = time.perf_counter()
    found = match_all(both, Reference.from_crystals([], []), MatcherSettings()).heads.tolist()
    ours = novelty(made, real) + novelty(real, made)
    quick = time.perf_counter() - began
    composition = [composition_is_valid(crystal) for crystal in both]
    judged = [(a, composition_valid(c)) for a, c in zip(composition, both, strict=True) if a is not None]
    structure = [(structure_is_valid(c), structure_valid(c)[0]) for c in both]
    return {
        "crystals": {"real": len(real), "generated": len(made)},
        "uniqueness": {"equal": sum(a == b for a, b in zip(heads, found, strict=True)), "of": len(heads),
                       "repeated": len(heads) - len(set(heads))},
        "novelty": {"equal": sum(a == b for a, b in zip(novel, ours, strict=True)), "of": len(novel),
                    "novel": sum(novel)},
        "structure validity": {"equal": sum(a == b for a, b in structure), "of": len(structure),
                               "valid": sum(a for a, _ in structure)},
        "composition validity": {"equal": sum(a == b for a, b in judged), "of": len(judged),
                                 "valid": sum(bool(a) for a, _ in judged)},
        "seconds": {"definitions, matching": round(slow, 1), "ours, matching": round(quick, 2)},
    }  # fmt: skip


def novelty(samples: list[Crystal], references: list[Crystal]) -> list[bool]:
    """Which samples match no reference, by the fast code."""
    reference = Reference.from_crystals(references, [str(k) for k in range(len(references))])
    found = match_all(samples, reference, MatcherSettings())
    return ((found.match < 0) & (found.heads >= 0)).tolist()


def drawn(path: str | None, crystals: list[Crystal], count: int, seed: int) -> list[Crystal]:
    """Generated crystals: those in a file, or from a model that ships with the package, or distorted copies."""
    from crystalforge.crystal.convert import to_crystals
    from crystalforge.evaluation.drawing.files import read_samples
    from crystalforge.stages.models import shipped

    if path is not None:
        found = read_samples("generated", Path(path)).crystals
    elif shipped():
        from crystalforge.model.checkpoint import load_model
        from crystalforge.model.sampling.sampler import draw_spacegroups, sample

        loaded = load_model(next(iter(shipped().values())) / "model")
        weights = np.asarray(loaded.info["spacegroup_weights"], dtype=np.float64)
        found = to_crystals(sample(loaded.model, draw_spacegroups(weights, count, seed=seed), seed=seed).tokens,
                            primitive=True)  # fmt: skip
    else:
        found = distorted(crystals, count, seed)
    return [crystal for crystal in found if crystal is not None]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parquet", help="crystals to draw from (default: the embedded prototypes)")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--references", type=int, default=40_000)
    parser.add_argument("--scaling", action="store_true", help="also with a quarter and half of the references")
    parser.add_argument("--verify", type=int, nargs="?", const=500, metavar="N", help="check N crystals instead")
    parser.add_argument("--generated", help="parquet of generated crystals for --verify (default: a shipped model's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    crystals, ids = load(options.parquet)
    if options.verify:
        generated = drawn(options.generated, crystals, options.verify, options.seed)
        finish(verify(crystals, generated, options.verify, options.seed), packages=("pymatgen",))
        return
    # A source smaller than asked for is repeated in distorted form: the work per pair stays that of real crystals.
    most = max(options.references, LARGEST if options.scaling else 0)
    pool, names = crystals[:most], ids[:most]
    if len(pool) < most:
        extra = distorted(crystals, most - len(pool), options.seed + 1)
        pool, names = pool + extra, names + [f"copy-{k}" for k in range(len(extra))]
    references = pool[: options.references]
    samples = distorted(crystals, options.samples, options.seed)

    seconds, heads, novel = fast(samples, references, names[: len(references)])
    per_pair = seconds_per_pair(samples, references, options.seed)
    n, kinds = len(samples), len(set(heads))
    pairs = n * len(references) + n * kinds / 2
    compositions = {reduced_composition(c) for c in samples[:SUBSET]}
    related = [c for c in references if reduced_composition(c) in compositions][:SUBSET]
    _, fast_heads, fast_novel = fast(samples[:SUBSET], related, [str(k) for k in range(len(related))])
    slow_heads, slow_novel = brute_groups(samples[:SUBSET]), brute_novel(samples[:SUBSET], related)
    result: dict[str, object] = {
        "samples": n,
        "references": len(references),
        "seconds": round(seconds, 2),
        "samples_per_second": round(n / seconds, 1),
        "unique": round(kinds / n, 4),
        "novel": round(float(np.mean(novel)), 4),
        "pairwise_microseconds_per_pair": round(per_pair * 1e6, 1),
        "pairwise_seconds_extrapolated": round(per_pair * pairs),
        "speedup": round(per_pair * pairs / seconds, 1),
        "equal_to_brute_force_on_subset": fast_heads == slow_heads and fast_novel == slow_novel,
        "subset": [SUBSET, len(related)],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if options.scaling:
        result["scaling"] = {
            size: round(fast(samples, pool[:size], names[:size])[0], 2)
            for size in (LARGEST // 10, LARGEST // 4, LARGEST)
        }
    finish(result, packages=("pymatgen",))


if __name__ == "__main__":
    main()
