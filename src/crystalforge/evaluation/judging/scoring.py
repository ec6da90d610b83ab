"""The part of an evaluation that looks at one crystal at a time: validity, reward, lineage. Makes table rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from crystalforge.crystal import Crystal
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.validity import composition_valid, reduced_composition, structure_valid
from crystalforge.rewards.protocol import Reward, Scores

# Columns every row has. Energies in eV/atom, lengths in Å, log-probabilities in nats; NaN where not known.
IDENTITY = pa.schema(
    [
        ("label", pa.string()),
        ("seed", pa.int64()),
        ("index", pa.int64()),
        ("run_id", pa.string()),
        ("model_hash", pa.string()),
        ("data_hash", pa.string()),
        ("reward_version", pa.string()),
    ]
)
CRYSTAL = pa.schema(
    [
        ("spacegroup", pa.int32()),  # as the model wrote it; 0 where the sample came without tokens
        ("wyckoff", pa.list_(pa.int32())),
        ("element", pa.list_(pa.int32())),
        ("coords", pa.list_(pa.float64())),
        ("lattice_parameters", pa.list_(pa.float64())),
        ("lattice", pa.list_(pa.float64())),  # row vectors of the cell that was scored
        ("atomic_numbers", pa.list_(pa.int32())),
        ("frac_coords", pa.list_(pa.float64())),
        ("formula", pa.string()),
        ("n_atoms", pa.int32()),
        ("n_elements", pa.int32()),
        ("volume_per_atom", pa.float64()),
    ]
)
CHECKS = pa.schema(
    [
        ("log_prob", pa.float64()),
        ("log_prob_base", pa.float64()),
        ("built", pa.bool_()),
        ("min_distance", pa.float64()),
        ("structure_valid", pa.bool_()),
        ("composition_valid", pa.bool_()),
        ("valid", pa.bool_()),
    ]
)


def score(samples: SampleSet, reward: Reward, *, lineage: Mapping[str, str]) -> pa.Table:
    """One row per sample: what it is, whether it is valid, what the reward says; where crystals had to be valid, how
    many were drawn for it (draws).

    lineage: values of the columns run_id, model_hash and data_hash. The reward is asked once for all samples; if it
    is unavailable, its exception passes through and no row is made.
    """
    columns: dict[str, object] = {
        "label": [samples.label] * len(samples),
        "seed": np.full(len(samples), samples.seed, dtype=np.int64),
        "index": samples.index,
        "reward_version": [str(reward.version)] * len(samples),
        **{name: [lineage.get(name, "")] * len(samples) for name in ("run_id", "model_hash", "data_hash")},
        **_token_columns(samples),
        **_crystal_columns(samples.crystals),
        "log_prob": samples.log_prob,
        "log_prob_base": samples.log_prob_base,
    }
    fixed = pa.schema([*IDENTITY, *CRYSTAL, *CHECKS])
    table = pa.table({name: columns[name] for name in fixed.names}, schema=fixed)
    if samples.draws is not None:
        table = table.append_column("draws", pa.array(samples.draws))
    for name, values in judged_by(reward, samples.crystals).items():
        table = table.append_column(name, values)
    return table


# Parts of a reward that figures and protocols look for by name, whatever rewards they are part of.
SOUGHT = ("e_above_hull", "dielectric_constant", "band_gap")


def judged_by(judge: Reward, crystals: Sequence[Crystal | None]) -> dict[str, pa.Array]:
    """Columns reward, status and one for each component, as the judge answers.

    A composite's or an ensemble's parts carry their names before a dot; what is in SOUGHT is a column without it too,
    the mean of the parts that have it.
    """
    scores: Scores = judge.score(crystals)
    assert len(scores) == len(crystals), "a reward must answer for every crystal"
    parts = dict(scores.components)
    for name in SOUGHT:
        nested = [values for key, values in scores.components.items() if key.endswith(f".{name}")]
        if name not in parts and nested:
            parts[name] = np.mean(nested, axis=0)
    return {
        "reward": pa.array(scores.values),
        "status": pa.array(scores.status),
        **{name: pa.array(values) for name, values in parts.items()},
    }


def _token_columns(samples: SampleSet) -> dict[str, object]:
    tokens = samples.tokens
    if tokens is None:
        nothing: list[list[float]] = [[] for _ in range(len(samples))]
        return {
            "spacegroup": np.zeros(len(samples), dtype=np.int32),
            **dict.fromkeys(("wyckoff", "element", "coords", "lattice_parameters"), nothing),
        }
    sites = [int(n) for n in tokens.n_sites]
    return {
        "spacegroup": tokens.spacegroup,
        "wyckoff": [row[:n].tolist() for row, n in zip(tokens.wyckoff, sites, strict=True)],
        "element": [row[:n].tolist() for row, n in zip(tokens.element, sites, strict=True)],
        "coords": [row[:n].ravel().tolist() for row, n in zip(tokens.coords, sites, strict=True)],
        "lattice_parameters": [row.tolist() for row in tokens.lattice],
    }


def _crystal_columns(crystals: Sequence[Crystal | None]) -> dict[str, object]:
    structure = [structure_valid(crystal) for crystal in crystals]
    composition = [composition_valid(crystal) for crystal in crystals]
    volume = [crystal.volume / len(crystal) if crystal is not None and len(crystal) else np.nan for crystal in crystals]
    return {
        "lattice": [[] if c is None else c.lattice.ravel().tolist() for c in crystals],
        "atomic_numbers": [[] if c is None else c.numbers.tolist() for c in crystals],
        "frac_coords": [[] if c is None else c.frac.ravel().tolist() for c in crystals],
        "formula": ["" if c is None else formula(dict(reduced_composition(c))) for c in crystals],
        "n_atoms": [0 if c is None else len(c) for c in crystals],
        "n_elements": [0 if c is None else len(np.unique(c.numbers)) for c in crystals],
        "volume_per_atom": volume,
        "built": [c is not None and len(c) > 0 for c in crystals],
        "min_distance": [distance for _, distance in structure],
        "structure_valid": [ok for ok, _ in structure],
        "composition_valid": composition,
        "valid": [a and b for (a, _), b in zip(structure, composition, strict=True)],
    }


def formula(composition: Mapping[int, int]) -> str:
    """Reduced formula of atom counts by atomic number, in the usual order of elements, such as `SrTiO3`."""
    from pymatgen.core import Composition
    from pymatgen.core.periodic_table import Element

    with warnings.catch_warnings():  # elements without an electronegativity only lose their place in the order
        warnings.simplefilter("ignore", UserWarning)
        return Composition({Element.from_Z(z): n for z, n in composition.items()}).reduced_formula


def crystals_of(table: pa.Table) -> list[Crystal | None]:
    """The crystals of a table's rows; None where nothing was built."""
    columns = (table.column(name).to_pylist() for name in ("lattice", "atomic_numbers", "frac_coords"))
    return [
        Crystal.of(lattice, numbers, frac) if numbers else None for lattice, numbers, frac in zip(*columns, strict=True)
    ]
