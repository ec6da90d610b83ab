"""What a model's crystals are like before anything is refused: shares of an evaluation's table. Prints JSON.

    crystalforge evaluate -c recipes/stability.yaml --base mp --data work/data -o work/quality \\
      --set reward.potential.path=M3GNet-MP-2018.6.1-Eform --set evaluate.relax=null --set evaluate.nearest=false
    python benchmarks/generator.py work/quality --label base --known mp20 mp

Overlapping: two atoms, images included, closer than 0.7 of the sum of their covalent radii (Cordero et al. 2008); what
is no crystal counts with it. Known: formula, space group and orbits, the fingerprint, occur in the training set of a
shipped model or in the training split of an output of `ingest`; stricter than StructureMatcher, by which the
evaluation's own figures go. Those are: stable (E_hull < 0.1 eV/atom as generated) by the reward, which refuses
overlapping atoms, and by the held-out judge, which does not; unique, novel, S.U.N.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, UInt64

from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.crystal.geometry import Geometry, cells_sound, covalent_radii, nearest
from crystalforge.data.fingerprint import fingerprints, orbit_codes
from crystalforge.data.store import TokenStore
from crystalforge.evaluation.evaluate import TABLE, read_table
from crystalforge.evaluation.judging.judge import tokens_of
from crystalforge.evaluation.judging.scoring import crystals_of
from crystalforge.evaluation.metrics.statistics import Estimate, distinct_interval, share
from crystalforge.evaluation.metrics.summary import estimate
from crystalforge.stages.models import find_model, training_fingerprints

OVERLAP, TOUCHING = 0.7, 0.5  # of the covalent radii; Å
# In a flat cell every atom touches its own image, and there would be images without end to look at.
CELL = Geometry(volume_per_atom=(0.1, np.inf), min_height=0.1, max_length=np.inf)
FIGURES = {
    "stable_rate": "stable by the reward",
    "held_out_stable_rate": "stable by the held-out judge",
    "unique_rate": "unique",
    "novel_rate": "novel",
    "sun_rate": "stable, unique and novel",
    "structure_valid_rate": "valid structure",
    "passed_rate": "valid at the first draw",
}


def main() -> None:
    """Read the arguments, print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="output of `crystalforge evaluate`")
    parser.add_argument("--label", default="base", help="which of its models")
    parser.add_argument("--known", nargs="*", default=["mp20"], help="shipped models, or outputs of ingest")
    arguments = parser.parse_args()
    table = read_table(arguments.evaluation / TABLE)
    known = {name: training_set(name) for name in arguments.known}
    print(json.dumps(quality(table.filter(pc.field("label") == arguments.label), known), indent=2))


def training_set(name: str) -> UInt64[np.ndarray, " F"]:
    """Fingerprints of what a shipped model was trained on, or of the training split of an output of `ingest`."""
    place = Path(name)
    if (place / "store").is_dir():
        store = TokenStore.open(place / "store")
        return orbit_codes(np.asarray(store.column("fingerprint")[store.split("train")]))
    found = training_fingerprints(find_model(place), None)
    return np.zeros(0, np.uint64) if found is None else found


def quality(table: pa.Table, known: Mapping[str, UInt64[np.ndarray, " F"]]) -> dict[str, Any]:
    """Shares of one model's rows, in percent, each with its 95 % interval."""
    bond, distance = shortest(crystals_of(table))
    tokens = tokens_of(table)
    prints, written = orbit_codes(fingerprints(tokens)), tokens.n_sites > 0
    overlapping = ~(bond >= OVERLAP)
    found: dict[str, Estimate] = {
        "overlapping, < 0.7 of the covalent radii": share(overlapping),
        "atoms closer than 0.5 Å": share(~(distance >= TOUCHING)),
        "distinct by fingerprint": _distinct(prints, written),
    }
    for name, those in known.items():
        new = ~(np.isin(prints, those) & written)
        found[f"known to {name}"] = share(~new)
        found[f"not known to {name}, not overlapping"] = share(new & ~overlapping)
        found[f"overlapping among those not known to {name}"] = share(overlapping[new])
        if "stable" in table.column_names:
            found[f"stable, distinct, not known to {name}"] = _distinct(prints, new & table.column("stable").to_numpy())
    figures = estimate(table)
    found |= {caption: figures[name] for name, caption in FIGURES.items() if name in figures}
    return {
        "benchmark": "generator",
        "crystals": len(table),
        "seed": int(table.column("seed")[0].as_py()),
        "percent": {name: 100 * value.value for name, value in found.items()},
        "interval": {name: [100 * value.low, 100 * value.high] for name, value in found.items()},
    }


def shortest(
    crystals: Sequence[Crystal | None],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Least distance of two atoms of each crystal, as a part of their covalent radii and in Å, both exact below the
    limits; NaN for what is no crystal."""
    packed = PackedCrystals.pack(crystals)
    rows = np.flatnonzero(cells_sound(packed, CELL))
    bond, distance = np.full(len(packed), np.nan), np.full(len(packed), np.nan)
    built = packed.take(rows)
    bond[rows] = nearest(built, OVERLAP, radii=covalent_radii()[built.numbers])
    distance[rows] = nearest(built, TOUCHING)
    return bond, distance


def _distinct(prints: UInt64[np.ndarray, " n"], mask: Bool[np.ndarray, " n"]) -> Estimate:
    return distinct_interval(prints[mask].view(np.int64).tolist(), len(prints))


if __name__ == "__main__":
    main()
