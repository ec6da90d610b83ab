"""Crystals in and out of a session: from pymatgen, ASE, files and tables, back again, and shown in a notebook.

Shape: n crystals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.crystal.crystal import Crystal

if TYPE_CHECKING:
    import pandas as pd
    from ase import Atoms
    from pymatgen.core import Structure

ID, PROBLEM = "id", "problem"
TABLE_CELLS = ("lattice", "atomic_numbers", "frac_coords")


class Crystals(Sequence["Crystal | None"]):
    """A sequence of crystals, each with the values of some columns; what could not be read or built is None.

    A notebook shows it as a table with pictures. Indexing by a number gives a `Crystal`, by a slice, a mask or a list
    of numbers `Crystals`.

    >>> salt = Crystal.of([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [11, 17], [[0, 0, 0], [.5, .5, .5]])
    >>> found = Crystals([salt], {"e_above_hull": [0.01]})
    >>> found.to_structures()[0].reduced_formula, found["e_above_hull"].tolist()
    ('NaCl', [0.01])
    """

    def __init__(
        self, crystals: Iterable[Crystal | None], columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None
    ) -> None:
        self._crystals = list(crystals)
        self.columns: dict[str, np.ndarray] = {name: _column(values) for name, values in (columns or {}).items()}
        for name, values in self.columns.items():
            assert len(values) == len(self._crystals), f"{name}: {len(values)} values for {len(self)} crystals"

    @classmethod
    def of(cls, source: Any) -> Crystals:
        """Crystals from what people have at hand.

        A pymatgen `Structure`, ASE `Atoms`, a `Crystal`; the path of a CIF, of a directory of them, or of a parquet
        file; the text of a CIF; a data frame with a column `structure`, `cif`, or lattice, atomic_numbers and
        frac_coords, whose other columns are kept; or a sequence of these. Records of files that hold no ordered
        crystal become None, with the reason in the column `problem`. Raises InputError for anything else.
        """
        if isinstance(source, Crystals):
            return source
        if isinstance(source, str | Path):
            return _of_text(source)
        if hasattr(source, "columns") and hasattr(source, "itertuples"):
            return _of_frame(source)
        if source is None or isinstance(source, Crystal) or _is_structure(source) or _is_atoms(source):
            return cls([_one(source, None)])
        if not isinstance(source, Iterable):
            raise _unreadable(source, None)
        return _joined([
            _of_text(item) if isinstance(item, str | Path) else cls([_one(item, number)])
            for number, item in enumerate(source, start=1)
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self._crystals)

    def __iter__(self) -> Iterator[Crystal | None]:
        return iter(self._crystals)

    @overload
    def __getitem__(self, key: int) -> Crystal | None: ...  # type: ignore[override]
    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...  # type: ignore[override]
    @overload
    def __getitem__(self, key: slice) -> Crystals: ...  # type: ignore[override]
    @overload
    def __getitem__(self, key: Sequence[int] | np.ndarray) -> Crystals: ...  # type: ignore[override]

    def __getitem__(self, key: Any) -> Any:  # type: ignore[override]
        if isinstance(key, str):
            if key not in self.columns:
                raise InputError(f"there is no column {key!r}", remedy=f"one of: {', '.join(self.columns) or 'none'}")
            return self.columns[key]
        if isinstance(key, int | np.integer):
            return self._crystals[key]
        rows = np.arange(len(self))[key]
        return Crystals([self._crystals[k] for k in rows], {name: v[rows] for name, v in self.columns.items()})

    def with_columns(self, **columns: Sequence[Any] | np.ndarray) -> Crystals:
        """The same crystals with further columns, or other values in those they had."""
        return Crystals(self._crystals, {**self.columns, **columns})

    def sorted_by(self, column: str, *, descending: bool = False) -> Crystals:
        """In the order of a column; what has no number there comes last."""
        values = self[column].astype(np.float64)
        keys = np.where(np.isfinite(values), -values if descending else values, np.inf)
        return self[np.argsort(keys, kind="stable")]

    @property
    def formulas(self) -> list[str]:
        """Reduced formula of each, empty for None."""
        from crystalforge.evaluation.judging.scoring import formula
        from crystalforge.evaluation.validity import reduced_composition

        return ["" if c is None else formula(dict(reduced_composition(c))) for c in self]

    def to_structures(self) -> list[Structure]:
        """As pymatgen structures; those that are None are left out."""
        return [crystal.to_structure() for crystal in self if crystal is not None]

    def to_atoms(self) -> list[Atoms]:
        """As ASE atoms; those that are None are left out."""
        from ase import Atoms

        return [
            Atoms(numbers=c.numbers, cell=c.lattice, scaled_positions=c.frac, pbc=True) for c in self if c is not None
        ]

    def to_frame(self) -> pd.DataFrame:
        """As a data frame: formula, n_atoms, the columns, and the cells (`Crystals.of` reads it again)."""
        import pandas as pd

        return pd.DataFrame({
            "formula": self.formulas,
            "n_atoms": [0 if c is None else len(c) for c in self],
            **{name: list(values) for name, values in self.columns.items()},
            "lattice": [None if c is None else c.lattice.ravel().tolist() for c in self],
            "atomic_numbers": [None if c is None else c.numbers.tolist() for c in self],
            "frac_coords": [None if c is None else c.frac.ravel().tolist() for c in self],
        })  # fmt: skip

    def to_cifs(self, directory: str | Path) -> list[Path]:
        """One CIF of the conventional cell with its symmetry for each that is not None, as `number-formula.cif`."""
        from crystalforge.common.files import atomic_file
        from crystalforge.evaluation.report.cif import symmetrised

        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        written = []
        for number, crystal in enumerate(self):
            if crystal is not None:
                path = place / f"{number:05d}-{crystal.to_structure().composition.reduced_formula}.cif"
                with atomic_file(path) as temporary:
                    temporary.write_text(symmetrised(crystal)[2])
                written.append(path)
        return written

    def view(self, number: int = 0) -> Any:
        """A crystal in three dimensions, to turn with the mouse: an object that a notebook shows."""
        from crystalforge.api.notebook import View

        crystal = self._crystals[number]
        if crystal is None:
            raise InputError(f"there is no crystal {number} to show", remedy="choose one that is not None")
        return View.of(crystal)

    def _repr_html_(self) -> str:
        from crystalforge.api.notebook import MOST_ROWS, table

        shown = self[:MOST_ROWS]
        return table(list(shown), shown.formulas, shown.columns, more=len(self) - len(shown))

    def __repr__(self) -> str:
        shown = ", ".join(formula or "None" for formula in self[:6].formulas)
        return f"<{len(self)} crystals: {shown}{', ...' if len(self) > 6 else ''}; columns: {', '.join(self.columns)}>"


def read(source: Any) -> Crystals:
    """Crystals from files, tables, pymatgen or ASE; see `Crystals.of`.

    >>> len(read("data_x\\n_cell_length_a 3"))   # nothing that can be read is no exception
    1
    """
    return Crystals.of(source)


def _column(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind in "US" or array.ndim != 1 else array


def _is_structure(value: Any) -> bool:
    return hasattr(value, "frac_coords") and hasattr(value, "is_ordered")


def _is_atoms(value: Any) -> bool:
    return hasattr(value, "get_scaled_positions") and hasattr(value, "get_atomic_numbers")


def _one(value: Any, record: int | None) -> Crystal | None:
    if value is None or isinstance(value, Crystal):
        return value
    if _is_structure(value):
        try:
            return Crystal.from_structure(value)
        except ValueError as error:
            raise InputError(str(error), record=record, remedy="give an ordered structure") from None
    if _is_atoms(value):
        if not all(value.get_pbc()):
            raise InputError("these atoms are not periodic in three directions", record=record,
                             remedy="set cell and pbc")  # fmt: skip
        return Crystal.of(np.asarray(value.get_cell()), value.get_atomic_numbers(), value.get_scaled_positions())
    raise _unreadable(value, record)


def _unreadable(value: Any, record: int | None) -> InputError:
    return InputError(
        f"a {type(value).__name__} is no crystal",
        record=record,
        remedy="give pymatgen structures, ASE atoms, paths of CIF or parquet files, a data frame, or several of these",
    )


def _of_text(text: str | Path) -> Crystals:
    """The records of a file or directory, or of the text of a CIF."""
    from crystalforge.data.sources.paths import cif_records, records

    is_cif = isinstance(text, str) and ("\n" in text or text.startswith("data_"))
    return _of_records(cif_records(str(text), "text", "cif") if is_cif else records([Path(text)]))


def _of_records(found: Iterable[Any]) -> Crystals:
    from crystalforge.crystal.reading.reasons import Unusable

    crystals: list[Crystal | None] = []
    ids, problems = [], []
    for record in found:
        ids.append(record.id)
        try:
            crystals.append(record.crystal())
            problems.append("")
        except Unusable as error:
            crystals.append(None)
            problems.append(str(error))
    return Crystals(crystals, {ID: ids} | ({PROBLEM: problems} if any(problems) else {}))


def _of_frame(frame: Any) -> Crystals:
    names = list(frame.columns)
    if "structure" in names:
        taken, found = ("structure",), Crystals.of(list(frame["structure"]))
    elif "cif" in names:
        taken, found = ("cif",), _joined([_of_text(str(text)) for text in frame["cif"]])
    elif set(TABLE_CELLS) <= set(names):
        taken = TABLE_CELLS
        rows = zip(*(frame[name] for name in TABLE_CELLS), strict=True)
        found = Crystals([_cells(*row) for row in rows])
    else:
        raise InputError(
            f"the data frame has the columns {', '.join(map(str, names))}",
            remedy=f"give one called structure or cif, or the three {', '.join(TABLE_CELLS)}",
        )
    if len(found) != len(frame):
        raise InputError(f"{len(frame)} rows hold {len(found)} crystals", remedy="give one data block in each row")
    kept = {str(name): frame[name].to_numpy() for name in names if name not in (*taken, "formula", "n_atoms")}
    problems = {PROBLEM: found.columns[PROBLEM]} if PROBLEM in found.columns else {}
    return Crystals(found, kept | problems)


def _cells(cell: Any, numbers: Any, frac: Any) -> Crystal | None:
    """From one row of a table, where nothing may be None, NaN or an empty list."""
    return None if np.ndim(numbers) == 0 or not len(numbers) else Crystal.of(cell, numbers, frac)


def _joined(parts: Sequence[Crystals]) -> Crystals:
    """One after the other; columns that not all of them have are filled with empty text."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for part in parts:
        for name in names:
            columns[name].extend(part.columns.get(name, [""] * len(part)))
    return Crystals([crystal for part in parts for crystal in part], columns)
