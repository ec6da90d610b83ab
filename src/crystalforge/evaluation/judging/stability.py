"""Which samples are stable: by the protocol's rules, and in the eyes of each judge.

Shapes: n samples.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64

from crystalforge.evaluation.protocols import Protocol
from crystalforge.rewards.protocol import Status


def stability(table: pa.Table, protocol: Protocol) -> dict[str, Bool[np.ndarray, " n"]]:
    """Masks `stable` and `metastable` (not stable, but below the second limit) of the kinds that the protocol has;
    without its energies there are none."""
    energy = judged_energy(table, protocol)
    if energy is None:
        return {}
    scored = np.isfinite(energy)
    if protocol.valid_only:
        scored &= table.column("valid").to_numpy()
    masks = {}
    if protocol.stable_at is not None:
        masks["stable"] = scored & _below(energy, protocol.stable_at, protocol.stable_inclusive)
    if protocol.metastable_at is not None:
        below = scored & _below(energy, protocol.metastable_at, inclusive=True)
        masks["metastable"] = below & ~masks.get("stable", np.zeros(len(table), dtype=bool))
    return masks


def _below(energy: Float64[np.ndarray, " n"], limit: float, inclusive: bool) -> Bool[np.ndarray, " n"]:
    with np.errstate(invalid="ignore"):
        return energy <= limit if inclusive else energy < limit


def judged_energy(table: pa.Table, protocol: Protocol) -> Float64[np.ndarray, " n"] | None:
    """The E_hull (eV/atom) that a protocol compares with its limits, NaN where there is none; None: nobody gave one."""
    prefix = "relaxed_" if protocol.energy == "relaxed" else ""
    opinions = [prefix]
    if protocol.ensemble:
        opinions += [
            name for name in other_judges(table) if name.startswith("relaxed_") == bool(prefix) and name != prefix
        ]
    energies = [e for name in opinions if (e := energy_by(table, name)) is not None]
    if not energies:
        return None
    stacked = np.stack(energies)
    known = np.isfinite(stacked)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def energy_by(table: pa.Table, prefix: str) -> Float64[np.ndarray, " n"] | None:
    """E_hull in eV/atom as one judge sees it, NaN where it has no answer; None when it gives no E_hull."""
    if f"{prefix}e_above_hull" not in table.column_names:
        return None
    answered = table.column(f"{prefix}status").to_numpy() == Status.OK
    return np.where(answered, table.column(f"{prefix}e_above_hull").to_numpy(), np.nan)


def other_judges(table: pa.Table) -> list[str]:
    """Prefixes of all answers besides the reward's for the generated crystals, such as held_out_ and relaxed_."""
    return [name.removesuffix("status") for name in table.column_names if name.endswith("_status")]


def second_opinions(table: pa.Table, protocol: Protocol) -> pa.Table:
    """Whether the others find each sample stable by the protocol's limit, as columns."""
    if protocol.stable_at is None:
        return table
    masks = {}
    for prefix in ["", *other_judges(table)]:
        energy = energy_by(table, prefix)
        if energy is not None:
            masks[prefix] = _below(energy, protocol.stable_at, protocol.stable_inclusive)
    for prefix, mask in masks.items():
        if prefix:
            table = table.append_column(f"{prefix}stable", [mask])
    held_out = [mask for prefix, mask in masks.items() if prefix.startswith("held_out_")]
    if held_out and "" in masks:
        table = table.append_column("agreed", [np.logical_and.reduce([masks[""], *held_out])])
    return table
