"""The figures that compare sets rather than crystals, for every model of a table: coverage and property distances."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from crystalforge.common.files import sha256_json
from crystalforge.common.progress import Progress
from crystalforge.crystal import Crystal, PackedCrystals
from crystalforge.evaluation.judging.parts import HASH, Tick, pieces
from crystalforge.evaluation.judging.relaxing import chosen_rows
from crystalforge.evaluation.judging.scoring import crystals_of, judged_by
from crystalforge.evaluation.metrics.coverage import Fingerprints, coverage, density, fingerprints, property_distances
from crystalforge.evaluation.metrics.measures import by_label
from crystalforge.rewards.protocol import Reward, Status

PIECE = 32  # crystals fingerprinted between two writes
ENERGY = "energy_per_atom"


def set_metrics(
    table: pa.Table, real: Sequence[Crystal], reward: Reward, *, crystals: int, out: Path, quiet: bool = False
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """`{label: {cov_recall, cov_precision, wdist_<property>: {value, low, high, n}}}` against the real crystals.

    crystals: at most so many of each side, chosen by the seed. The reward is asked for the energies of the real ones
    where it knows energies. Fingerprints are kept under `out` and made once.
    """
    some = [real[row] for row in chosen_rows(len(real), crystals, 0)]
    parts = {label: rows.take(pa.array(chosen_rows(len(rows), crystals, 0))) for label, rows in by_label(table).items()}
    total = len(some) + sum(map(len, parts.values()))
    with Progress("coverage", total, unit="crystals", stream=io.StringIO() if quiet else None) as progress:

        def tick(count: int, _: str) -> None:
            progress.update(count)

        known = _fingerprints(some, out, tick)
        properties = _properties(some) | _energies(some, reward, out)
        found = {}
        for label, rows in parts.items():
            own = crystals_of(rows)
            measured = _properties([c for c in own if c is not None and c.volume > 0])
            if ENERGY in rows.column_names:
                ok = rows.column("status").to_numpy() == Status.OK
                measured[ENERGY] = rows.column(ENERGY).to_numpy()[ok]
            estimates = coverage(_fingerprints(own, out, tick), known) | property_distances(measured, properties)
            found[label] = {name: estimate.as_dict() for name, estimate in estimates.items()}
    return found


def _fingerprints(crystals: Sequence[Crystal | None], out: Path, tick: Tick) -> Fingerprints:
    def make(first: int, count: int) -> pa.Table:
        found = fingerprints(crystals[first : first + count])
        return pa.table({"structure": found.structure.tolist(), "composition": found.composition.tolist()})

    kept = pieces(out / f"fingerprints-{_key(crystals)}", len(crystals), PIECE, make, tick, "fingerprint")
    return Fingerprints(*(np.array(kept.column(name).to_pylist()) for name in ("structure", "composition")))


def _energies(crystals: Sequence[Crystal], reward: Reward, out: Path) -> dict[str, Float64[np.ndarray, " m"]]:
    def make(first: int, count: int) -> pa.Table:
        return pa.table(judged_by(reward, crystals[first : first + count]))

    folder = out / f"real-{_key(crystals)}-{reward.version.digest[:HASH]}"
    said = pieces(folder, len(crystals), len(crystals) or 1, make, lambda *_: None, "")
    if ENERGY not in said.column_names:
        return {}
    ok = said.column("status").to_numpy() == Status.OK
    return {ENERGY: said.column(ENERGY).to_numpy()[ok]}


def _properties(crystals: Sequence[Crystal]) -> dict[str, Float64[np.ndarray, " n"]]:
    return {
        "density": np.array([density(crystal) for crystal in crystals], dtype=np.float64),
        "n_elements": np.array([len(np.unique(crystal.numbers)) for crystal in crystals], dtype=np.float64),
    }


def _key(crystals: Sequence[Crystal | None]) -> str:
    packed = PackedCrystals.pack(crystals)
    arrays = (packed.n_atoms, packed.numbers, packed.lattice, packed.frac)
    return sha256_json([array.tolist() for array in arrays])[:16]
