"""Which operations a CIF asks for, from its four ways of saying so, and whether these agree.

In the order of their weight: the list of operations, the Hall symbol, the Hermann-Mauguin symbol, the number. What a
lighter one says must be true of a heavier one. A symbol or a number can leave the origin or the axes open; then there
is more than one setting, and the atoms must decide.

Shapes: M operations, fractional coordinates as columns: x' = R x + t.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal.reading.cif.groups import by_symbol, normalised, origins, squeezed, standard
from crystalforge.crystal.reading.cif.syntax import Block
from crystalforge.crystal.reading.reasons import Unusable

OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_pos_xyz",
    "_space_group_symop_magn_operation_xyz",
)
CENTRINGS = ("_space_group_symop_magn_centering_xyz",)
HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
SYMBOL = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_symmetry_space_group_name_h-m_full",
)
NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number", "_symmetry_int_tables_no")
MODULATED = ("_cell_modulation_dimension", "_space_group_ssg_name", "_space_group_ssg_name_it")
TRIPLET = re.compile(r"[^\s,]+\s*,\s*[^\s,]+\s*,\s*[^\s,]+")
TERM = re.compile(r"(?:[+-]?[xyzabc0-9./]+)+", re.IGNORECASE)
METRIC_TOLERANCE = 0.01  # of the product of two edges: half a percent of an edge, or half a degree
DENOMINATOR = 24
MOST = 192


@dataclass(frozen=True, eq=False)
class Setting:
    """Operations of one description of a space group; name: how a message calls it."""

    name: str
    number: int
    rotations: Float64[np.ndarray, "M 3 3"]
    translations: Float64[np.ndarray, "M 3"]

    @property
    def trivial(self) -> bool:
        """Whether there is the identity alone."""
        return len(self.rotations) == 1

    def misfit(self, lattice: Float64[np.ndarray, "3 3"]) -> float:
        """The largest change of the metric by an operation, in units of the product of the two edges."""
        metric = lattice @ lattice.T
        lengths = np.sqrt(np.diag(metric))
        moved = np.einsum("mki,kl,mlj->mij", self.rotations, metric, self.rotations)
        return float((np.abs(moved - metric) / np.outer(lengths, lengths)).max())


def settings(block: Block) -> list[Setting]:
    """The settings that the file's statements leave open, the likeliest first; empty when it says nothing.

    Raises Unusable (contradiction) when two statements cannot both be true, (malformed-cif) when the only one is not
    understood.
    """
    if any(block.get(name) not in (None, "0") for name in MODULATED):
        raise Unusable("malformed-cif", "the structure is modulated: it has no three-dimensional cell")
    rows = block.table(*OPERATIONS)
    triplets: tuple[str, ...] = ()
    if rows:
        column = next(name for name in OPERATIONS if name in rows)
        triplets = _triplets(rows, column)
        centrings = block.table(*CENTRINGS)
        if "magn" in column and centrings:
            triplets = _products(triplets, _triplets(centrings, CENTRINGS[0]))
    number = block.get(*NUMBER)
    symbols = tuple(dict.fromkeys(text for name in SYMBOL if (text := block.get(name))))
    return _settings(triplets, block.get(*HALL), symbols, number)


@cache
def _settings(
    triplets: tuple[str, ...], hall: str | None, symbols: tuple[str, ...], number: str | None
) -> list[Setting]:
    named = [(symbol, found) for symbol in symbols if (found := by_symbol(symbol))]
    stated = _number(number)
    statements = [(f"the symbol {symbol}", {entry.number for entry in found}) for symbol, found in named]
    if stated is not None:
        statements.append((f"the number {stated}", {stated}))
    hall_operations = _by_hall(hall)
    if triplets:
        setting = _by_operations(triplets)
        if hall_operations is not None and not _equal(hall_operations, _gemmi_operations(triplets)):
            raise _contradiction(f"the Hall symbol {hall}", setting.name)
    elif hall_operations is not None:
        setting = _setting(hall_operations, f"the Hall symbol {hall}")
    else:
        _agree(statements)
        return _open_settings(symbols, named, number, stated)
    for said, numbers in statements:
        if setting.number not in numbers:
            raise _contradiction(f"{said} (group {', '.join(map(str, sorted(numbers)))})", setting.name)
    for symbol, found in named:
        _same_axes(symbol, found, setting)
    return [setting]


def _agree(statements: Sequence[tuple[str, set[int]]]) -> None:
    for said, numbers in statements[1:]:
        if not numbers & statements[0][1]:
            raise _contradiction(said, statements[0][0] + f" (group {min(statements[0][1])})")


def _contradiction(one: str, other: str) -> Unusable:
    return Unusable("contradiction", f"{one} contradicts {other}", one)


def _open_settings(
    symbols: Sequence[str], named: Sequence[tuple[str, list[Any]]], number: str | None, stated: int | None
) -> list[Setting]:
    """What symbols and a number alone allow."""
    if named:
        symbol, entries = min(named, key=lambda item: len(item[1]))
        return [_setting(entry.operations(), f"{entry.xhm()} (from the symbol {symbol})") for entry in entries]
    if symbols:  # a number stands for the standard setting, but a symbol that is not understood may be another
        raise Unusable("malformed-cif", f"the space group {symbols[0]!r} is not known", symbols[0])
    if stated is not None:
        entries = origins(standard(stated))
        return [_setting(entry.operations(), f"{entry.xhm()} (from the number {stated})") for entry in entries]
    if number is not None:
        raise Unusable("malformed-cif", f"there is no space group {number}", number)
    return []


def _number(text: str | None) -> int | None:
    if text is None or not re.fullmatch(r"\d{1,3}", text.strip()):
        return None
    return int(text) if 1 <= int(text) <= 230 else None


@cache
def _by_hall(hall: str | None) -> Any:
    """Operations of a Hall symbol; None when there is none or it is not understood."""
    import gemmi

    if hall is None:
        return None
    try:
        return gemmi.symops_from_hall(hall.strip())
    except (RuntimeError, ValueError, IndexError):
        return None


def _same_axes(symbol: str, found: list[Any], setting: Setting) -> None:
    """Refuse operations of one tabulated setting under the symbol of another (`P b n m` with those of `P n m a`)."""
    tabulated = _tabulated(setting)
    if tabulated is None:
        return
    if any(entry.is_reference_setting() or entry.ccp4 == setting.number for entry in found):
        found = [*found, tabulated] if ":" not in normalised(symbol) else found  # `C 2/c` is the type's name as well
    same = [entry for entry in found if entry.hm == tabulated.hm or squeezed(entry.hm) == squeezed(tabulated.hm)]
    if not same or (":" in normalised(symbol) and all(entry.ext != tabulated.ext for entry in same)):
        raise _contradiction(f"the symbol {symbol}", f"the operations, which are those of {tabulated.xhm()}")


def _tabulated(setting: Setting) -> Any:
    import gemmi

    return gemmi.find_spacegroup_by_ops(gemmi.GroupOps(list(_as_gemmi(setting))))


def _as_gemmi(setting: Setting) -> Iterator[Any]:
    import gemmi

    for rotation, translation in zip(setting.rotations, setting.translations, strict=True):
        operation = gemmi.Op("x,y,z")
        operation.rot = np.rint(rotation * DENOMINATOR).astype(int).tolist()
        operation.tran = (np.rint(translation * DENOMINATOR).astype(int) % DENOMINATOR).tolist()
        yield operation


def _triplets(rows: dict[str, list[str]], column: str) -> tuple[str, ...]:
    """The operations of a loop, those that were written with spaces but without quotes among them."""
    told = rows[column]
    if all(text.count(",") >= 2 for text in told):
        return tuple(_plain(text) for text in told)
    # A row was cut at its spaces: `x, y, z` makes three cells. Read the cells as one text again.
    cells = [value for row in zip(*rows.values(), strict=True) for value in row]
    found = TRIPLET.findall(re.sub(r"\s*,\s*", ",", " ".join(cells)))
    words = sum(text.count(",") for text in cells)
    if not found or words != 2 * len(found):
        raise Unusable("malformed-cif", f"{told[0]!r} is no symmetry operation", told[0])
    return tuple(_plain(text) for text in found)


def _plain(text: str) -> str:
    """An operation in lower case without spaces; what a magnetic one says of time is left out."""
    return ",".join("".join(text.lower().split()).split(",")[:3])


def _products(triplets: Sequence[str], centrings: Sequence[str]) -> tuple[str, ...]:
    import gemmi

    try:
        products = [(gemmi.Op(one) * gemmi.Op(two)).wrap() for two in centrings for one in triplets]
    except RuntimeError as error:
        raise Unusable("malformed-cif", f"a symmetry operation is not understood ({error})") from error
    return tuple(dict.fromkeys(operation.triplet() for operation in products))


@cache
def _gemmi_operations(triplets: tuple[str, ...]) -> Any:
    import gemmi

    found = []
    for text in triplets:
        try:
            found.append(gemmi.Op(text))
        except (RuntimeError, ValueError) as error:
            raise Unusable("malformed-cif", f"{text!r} is no symmetry operation ({error})", text) from error
    return found


@cache
def _by_operations(triplets: tuple[str, ...]) -> Setting:
    return _setting(_gemmi_operations(triplets), "the operations")


def _equal(one: Any, other: Any) -> bool:
    first, second = np.unique(_keys(*_arrays(one))), np.unique(_keys(*_arrays(other)))
    return len(first) == len(second) and bool((first == second).all())


def _setting(operations: Any, name: str) -> Setting:
    """A setting of operations that make a group. Raises Unusable (contradiction) when they make none."""
    listed = [operation.wrap() for operation in operations]
    rotations, translations = _arrays(listed)
    _check_group(rotations, translations, name)
    number = _group_number(listed, rotations, translations)
    if name == "the operations":
        name = f"the operations, which are those of group {number}"
    return Setting(name, number, rotations, translations)


def _check_group(rotations: np.ndarray, translations: np.ndarray, name: str) -> None:
    count = len(rotations)
    if count > MOST:
        raise Unusable("contradiction", f"{name}: {count} operations are more than any space group has")
    keys = _keys(rotations, translations)
    if len(np.unique(keys)) != count:
        raise Unusable("contradiction", f"{name}: an operation is listed twice")
    identity = _keys(np.eye(3)[None], np.zeros((1, 3)))
    if not np.isin(identity, keys).all() or not np.allclose(np.abs(np.linalg.det(rotations)), 1):
        raise Unusable("contradiction", f"{name} make no group: the identity is missing, or one changes the volume")
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 3, 3)
    shifts = (np.einsum("aij,bj->abi", rotations, translations) + translations[:, None]).reshape(-1, 3)
    if not np.isin(_keys(products, shifts), keys).all():
        raise Unusable("contradiction", f"{name} make no group: the product of two of them is missing")


def _keys(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """One comparable item for each operation, lattice translations left out."""
    shift = np.rint(translations * DENOMINATOR).astype(np.int16) % DENOMINATOR
    rows = np.concatenate([np.rint(rotations).astype(np.int16).reshape(-1, 9), shift], axis=1)
    return np.ascontiguousarray(rows).view("V24").ravel()


def _arrays(operations: Any) -> tuple[np.ndarray, np.ndarray]:
    listed = list(operations)
    rotations = np.array([operation.rot for operation in listed], float).reshape(-1, 3, 3) / DENOMINATOR
    return rotations, np.array([operation.tran for operation in listed], float).reshape(-1, 3) / DENOMINATOR


def _group_number(listed: Sequence[Any], rotations: np.ndarray, translations: np.ndarray) -> int:
    import gemmi
    import spglib

    known = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(list(listed)))
    if known is not None:
        return int(known.number)
    found = spglib.get_spacegroup_type_from_symmetry(np.rint(rotations).astype(np.intc), translations)
    if found is None:
        raise Unusable("contradiction", "the operations make no space group")
    return int(found.number)
