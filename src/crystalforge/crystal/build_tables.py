"""Writes `wyckoff.npz`, the table that `crystalforge.crystal.wyckoff` reads.

    python -m crystalforge.crystal.build_tables [OUTPUT]

Source facts. The positions are those of International Tables for Crystallography, volume A, as coordinate triplets
in the list that ships with pyxtal 1.1 (MIT licence; a development dependency, not needed to use the table). Its
settings are the Tables' standard ones: unique axis b and cell choice 1 for monoclinic groups, hexagonal axes for
rhombohedral groups, origin choice 2 where there are two. That list runs from the general position down to `a`; here
index 1 is `a`. The order of the triplets inside a position is kept: the first is the representative whose
coordinates become tokens.

The Hall number of each group (spglib's serial number of a setting) is not copied but found: it is the setting whose
operations in spglib's own database equal the general position of the list. That comparison of two independent
sources is also a check of the list.

Rotations have entries -2..2 and translations are whole 24ths, so both are stored exactly as int8.
"""

from __future__ import annotations

import ast
import csv
import re
import sys
from fractions import Fraction
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int64

from crystalforge.common.errors import missing_extra
from crystalforge.common.files import atomic_file
from crystalforge.crystal.wyckoff import TABLE_PATH, TRANSLATION_UNIT

_TERM = re.compile(r"([+-]?)(\d+(?:/\d+)?)?([xyz]?)")


def parse_triplet(text: str) -> Int64[np.ndarray, "3 4"]:
    """The affine map of a coordinate triplet, translation in 24ths.

    >>> parse_triplet("-y, x-y, z+1/3").tolist()
    [[0, -1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 8]]
    """
    matrix = np.zeros((3, 4), dtype=np.int64)
    for row, expression in enumerate(text.replace(" ", "").split(",")):
        for sign, number, variable in _TERM.findall(expression):
            if not number and not variable:
                continue
            value = Fraction(number or 1) * (-1 if sign == "-" else 1)
            value *= 1 if variable else TRANSLATION_UNIT
            assert value.denominator == 1, f"{text!r} is not in {TRANSLATION_UNIT}ths"
            matrix[row, "xyz".index(variable) if variable else 3] += int(value)
    return matrix


def read_positions() -> list[list[Int64[np.ndarray, "_M 3 4"]]]:
    """Orbit operations of every Wyckoff position, `[group - 1][letter - 1]`, from pyxtal's list."""
    try:
        path = resources.files("pyxtal") / "database" / "wyckoff_list.csv"
    except ImportError as error:
        raise missing_extra("pyxtal", "dev", error) from error
    with path.open() as stream:
        rows = list(csv.reader(stream))[2:]  # a header and the trivial group of index 0
    assert len(rows) == 230
    return [
        [np.stack([parse_triplet(triplet) for triplet in position]) for position in ast.literal_eval(row[1])[::-1]]
        for row in rows
    ]


def find_hall_numbers(general: list[Int64[np.ndarray, "_M 3 4"]]) -> list[int]:
    """Serial number of the spglib setting with exactly these operations, for each of the 230 groups."""
    import spglib

    wanted = [_as_set(operations[:, :, :3], operations[:, :, 3]) for operations in general]
    found = [0] * len(general)
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        assert kind is not None
        group = kind.number - 1
        if found[group]:
            continue
        database = spglib.get_symmetry_from_database(hall)
        assert database is not None
        translations = np.rint(np.asarray(database["translations"]) * TRANSLATION_UNIT).astype(int)
        if _as_set(np.asarray(database["rotations"]), translations) == wanted[group]:
            found[group] = hall
    assert all(found)
    return found


def _as_set(rotations: np.ndarray, translations: np.ndarray) -> set[bytes]:
    rows = np.concatenate([rotations.reshape(-1, 9), translations % TRANSLATION_UNIT], axis=1)
    return {row.tobytes() for row in rows.astype(np.int8)}


def build() -> dict[str, np.ndarray]:
    """All arrays of the table.

    n_letters [230]; multiplicity [230, 28]; rotations [14433, 3, 3] and translations [14433, 3] of all orbit
    operations, group by group and letter by letter from a; hall [230].
    """
    positions = read_positions()
    multiplicity = np.zeros((230, 28), dtype=np.int16)
    for group, letters in enumerate(positions):
        multiplicity[group, 1 : len(letters) + 1] = [len(operations) for operations in letters]
    flat = np.concatenate([operations for letters in positions for operations in letters])
    rotations: Int8[np.ndarray, "T 3 3"] = flat[:, :, :3].astype(np.int8)
    translations: Int8[np.ndarray, "T 3"] = flat[:, :, 3].astype(np.int8)
    assert np.array_equal(np.concatenate([rotations, translations[:, :, None]], axis=2), flat)
    return {
        "n_letters": np.array([len(letters) for letters in positions], dtype=np.int8),
        "multiplicity": multiplicity,
        "rotations": rotations,
        "translations": translations,
        "hall": np.array(find_hall_numbers([letters[-1] for letters in positions]), dtype=np.int16),
    }


def main(arguments: list[str] | None = None) -> None:
    """Write the table to the path given, or into the package."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with (
        atomic_file(Path(arguments[0]) if arguments else TABLE_PATH) as temporary,
        temporary.open("wb") as stream,
    ):
        np.savez_compressed(stream, allow_pickle=False, **build())


if __name__ == "__main__":
    main()
