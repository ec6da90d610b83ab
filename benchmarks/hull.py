"""How fast is a distance to the hull?   python benchmarks/hull.py [--entries FILE] [--queries N]

Prints JSON: build_s (from a file of entries to an index), open_s (a saved store, memory-mapped), cold and warm lookups
per second on one core, single (one crystal a call) and batched, pymatgen's own diagrams beside them, memory. Queries
are the entries' own compositions in random order, with random energies near the hull.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import finish

from crystalforge.thermo import Entries, HullStore, read_entries


def measure(entries_path: str, n_queries: int, seed: int) -> dict[str, object]:
    """All figures for one file of entries."""
    began = time.perf_counter()
    entries = read_entries(entries_path)
    read = time.perf_counter()
    store = HullStore.from_entries(entries)
    built = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store.save(Path(folder) / "hull")
        size = sum(file.stat().st_size for file in (Path(folder) / "hull").iterdir())
        opening = time.perf_counter()
        store = HullStore.open(Path(folder) / "hull", cache_size=1_000_000)
        opened = time.perf_counter() - opening
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(entries), size=n_queries)
        starts = entries.starts
        queries = [
            dict(
                zip(
                    entries.elements[starts[row] : starts[row] + entries.n_elements[row]].tolist(),
                    entries.fractions[starts[row] : starts[row] + entries.n_elements[row]].tolist(),
                    strict=True,
                )
            )
            for row in chosen
        ]
        energy = entries.energy[chosen] + rng.normal(0, 0.05, n_queries)
        cold_began = time.perf_counter()
        store.e_above_hull_many(queries, energy)
        cold = time.perf_counter() - cold_began
        systems = store.misses
        warm_began = time.perf_counter()
        answer = store.e_above_hull_many(queries, energy)
        warm = time.perf_counter() - warm_began
        single_began = time.perf_counter()
        for query, value in zip(queries, energy.tolist(), strict=True):
            store.e_above_hull(query, value)
        single = time.perf_counter() - single_began
    reference = _pymatgen(entries, queries[:20], energy[:20], answer.e_above_hull[:20])
    return {
        "entries": len(entries),
        "kept": len(store),
        "systems_in_store": store.manifest["systems"],
        "read_s": round(read - began, 3),
        "build_s": round(built - read, 3),
        "open_s": round(opened, 4),
        "store_mb": round(size / 1e6, 2),
        "queries": n_queries,
        "systems_asked": systems,
        "lookups_per_s": {
            "warm_batched": round(n_queries / warm),
            "warm_single": round(n_queries / single),
            "cold_batched": round(n_queries / cold),
            "cold_systems": round(systems / cold),
            "pymatgen_diagram_per_query": reference["per_s"],
        },
        "largest_difference_to_pymatgen_ev": reference["difference"],
        "without_reference": int(answer.missing.sum()),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def _pymatgen(entries: Entries, queries: list, energy: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """The usual way, a PhaseDiagram per structure (entries already at hand): its rate, and the agreement with ours."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition, Element

    starts, widths = entries.starts, entries.n_elements
    sets = [
        frozenset(entries.elements[start : start + width].tolist()) for start, width in zip(starts, widths, strict=True)
    ]

    def entry(composition: dict[int, float], value: float) -> PDEntry:
        formula = Composition({Element.from_Z(z): amount for z, amount in composition.items()})
        return PDEntry(formula, value * formula.num_atoms)

    seconds, worst = 0.0, 0.0
    for query, value, mine in zip(queries, energy.tolist(), ours.tolist(), strict=True):
        rows = [row for row, members in enumerate(sets) if members <= set(query)]
        phases = []
        for row in rows:
            part = slice(starts[row], starts[row] + widths[row])
            pairs = zip(entries.elements[part].tolist(), entries.fractions[part].tolist(), strict=True)
            phases.append(entry(dict(pairs), float(entries.energy[row])))
        began = time.perf_counter()
        theirs = PhaseDiagram(phases).get_e_above_hull(entry(query, value), allow_negative=True)
        seconds += time.perf_counter() - began
        worst = max(worst, abs(theirs - mine))
    return {"per_s": round(len(queries) / seconds, 1), "difference": worst}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="embedded", help="a file of entries, or `embedded`")
    parser.add_argument("--queries", type=int, default=5000, help="how many lookups")
    parser.add_argument("--seed", type=int, default=0, help="of the queries")
    arguments = parser.parse_args()
    finish(measure(arguments.entries, arguments.queries, arguments.seed), packages=("numpy", "pymatgen"))


if __name__ == "__main__":
    main()
