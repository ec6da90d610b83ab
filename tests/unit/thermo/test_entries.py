"""Reference phases: what is kept of every row, by which name, and which numbers are elements."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from crystalforge.common.errors import InputError
from crystalforge.thermo import Entries, read_entries
from crystalforge.thermo.entries import parse_formula


def table(path: Path, **columns: list[Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_entries_lie_end_to_end() -> None:
    found = Entries.of([{8: 3, 26: 2, 1: 0}, {1: 1}, {1: 4, 6: 1}], [-1, -2.5, -3.5])
    assert found.n_elements.tolist() == [2, 1, 2]
    assert found.starts.tolist() == [0, 2, 3]
    assert found.elements.tolist() == [8, 26, 1, 1, 6]
    assert found.fractions.tolist() == pytest.approx([0.6, 0.4, 1, 0.8, 0.2])
    assert found.energy.tolist() == [-1, -2.5, -3.5]
    assert (found.ids, found.skipped, found.scale, len(found)) == (["0", "1", "2"], {}, "mp2020", 3)


def test_rows_without_a_number_are_counted_and_the_others_keep_their_names() -> None:
    rows = [{1: 1}, {2: 1}, {}, {3: 1}, {4: 0}, {5: 1}]
    found = Entries.of(rows, [1.0, None, 1.0, float("nan"), 1.0, 2.0], list("abcdef"))
    assert (found.ids, found.elements.tolist(), found.energy.tolist()) == (["a", "f"], [1, 5], [1, 2])
    assert found.skipped == {"without energy or composition": 4}
    assert Entries.of(rows[:4:3], [float("inf"), 3.0]).ids == ["1"]


def test_parquet_keeps_its_names_and_repeated_compositions(tmp_path: Path) -> None:
    rows = {"formula": ["Na", "NaCl", "Cl2", "NaCl", None, ""], "energy_per_atom": [-1.0, -3.0, -2.0, -4.0, 0.0, 0.0]}
    for column in ("id", "material_id"):
        found = read_entries(table(tmp_path / "x.parquet", **rows, **{column: list("uvwxyz")}))
        assert (found.ids, found.energy.tolist()) == (list("uvwx"), [-1, -3, -2, -4])
        assert found.elements.tolist() == [11, 11, 17, 17, 11, 17]
        assert found.skipped == {"without energy or composition": 2}
    assert read_entries(table(tmp_path / "x.parquet", **rows)).ids == ["0", "1", "2", "3"]
    # Where a file has both, the numbers, and the first name.
    both = rows | {"atomic_numbers": [[3]] * 6, "id": list("uvwxyz"), "material_id": list("abcdef")}
    found = read_entries(table(tmp_path / "x.parquet", **both))
    assert (set(found.elements.tolist()), found.ids) == ({3}, list("uvwxyz"))


def test_numbers_are_counted_into_a_composition(tmp_path: Path) -> None:
    rows = {"atomic_numbers": [[8, 1, 1], [1], [118, 118, 1]], "energy_per_atom": [-1.0, -2.0, -3.0]}
    found = read_entries(table(tmp_path / "x.parquet", **rows))
    assert found.elements.tolist() == [1, 8, 1, 1, 118]
    assert found.fractions.tolist() == pytest.approx([2 / 3, 1 / 3, 1, 1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ([[119.0]], "119.0 is no atomic number"),
        ([[0.0]], "0.0 is no atomic number"),
        ([[1.0, 1.5, 0.0]], "1.5 is no atomic number"),
        ([[1.0, None]], "None is no atomic number"),
    ],
)
def test_what_is_no_atomic_number_is_named_with_its_row(tmp_path: Path, numbers: list, says: str) -> None:
    path = table(tmp_path / "x.parquet", atomic_numbers=[[8.0], [118.0, 1.0], *numbers], energy_per_atom=[0.0] * 3)
    with pytest.raises(InputError, match=rf"x\.parquet, record 3.*{says}"):
        read_entries(path)


@pytest.mark.parametrize("scale", ["uncorrected", "raw", "pbe"])
def test_scales_without_corrections_read_the_plain_energies(tmp_path: Path, scale: str) -> None:
    energies = {"energy_per_atom": [-1.0], "corrected_energy_per_atom": [-1.3], "formation_energy_per_atom": [0.0]}
    found = read_entries(table(tmp_path / "x.parquet", formula=["Na"], **energies), scale=scale)
    assert (found.energy.tolist(), found.scale) == ([-1.0], scale)


@pytest.mark.parametrize(("scale", "energy"), [("r2scan", -1.3), ("formation", -1.0), (None, -1.3)])
def test_the_first_column_there_is_serves(tmp_path: Path, scale: str | None, energy: float) -> None:
    columns = {"energy_per_atom": [-1.0], "corrected_energy_per_atom": [-1.3]}
    found = read_entries(table(tmp_path / "x.parquet", formula=["Na"], **columns), scale=scale)
    assert (found.energy.tolist(), found.scale) == ([energy], scale or "mp2020")


@pytest.mark.parametrize("missing", ["formula", "energy_per_atom"])
def test_a_table_that_lacks_a_column_says_which_it_has(tmp_path: Path, missing: str) -> None:
    columns = {"formula": ["Na"], "energy_per_atom": [-1.0], "spin": [0.0]}
    del columns[missing]
    with pytest.raises(InputError, match=r"(?s)has the columns .*spin.*give atomic_numbers or formula"):
        read_entries(table(tmp_path / "x.parquet", **columns))


ENTRY: dict[str, Any] = {"composition": {"Na": 2.0}, "energy": -2.6}


def read(tmp_path: Path, content: Any, **options: Any) -> Entries:
    (tmp_path / "hull.json").write_text(json.dumps(content))
    return read_entries(tmp_path / "hull.json", **options)


@pytest.mark.parametrize(
    "content",
    [
        [ENTRY, "a word", 3],
        {"entries": [ENTRY]},
        {"all_entries": [ENTRY]},
        {"entries": None, "all_entries": [ENTRY]},
        {"computed_data": {"all_entries": [ENTRY]}},
    ],
)
def test_a_list_by_any_of_its_names(tmp_path: Path, content: Any) -> None:
    found = read(tmp_path, content)
    assert (found.energy.tolist(), found.elements.tolist(), found.scale) == ([-1.3], [11], "mp2020")
    assert read(tmp_path, content, scale="pbe").scale == "pbe"


@pytest.mark.parametrize("content", [{}, [], 3, "x", {"entries": []}, {"computed_data": []}, {"computed_data": {}}])
def test_what_holds_no_entries_says_what_was_expected(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match="holds no computed entries"):
        read(tmp_path, content)


def test_names_of_entries_and_their_corrections(tmp_path: Path) -> None:
    adjustments = [{"value": -0.4}, {"value": -0.2}]
    found = read(tmp_path, [
        ENTRY | {"entry_id": "mine", "data": {"mat_id": "other"}},
        ENTRY | {"data": {"mat_id": "agm1"}},
        ENTRY | {"data": None, "correction": None, "energy_adjustments": adjustments},
        ENTRY | {"correction": -0.4, "energy_adjustments": adjustments},
        ENTRY | {"correction": 0.0, "energy_adjustments": adjustments},
        ENTRY | {"energy_adjustments": None},
    ])  # fmt: skip
    assert found.ids == ["mine", "agm1", "2", "3", "4", "5"]
    assert found.energy.tolist() == pytest.approx([-1.3, -1.3, -1.6, -1.5, -1.3, -1.3])


def test_compositions_as_text_as_amounts_and_from_a_structure(tmp_path: Path) -> None:
    site = {"species": [{"element": "Na", "occu": 1.0}]}
    shared = {"species": [{"element": "Cl", "occu": 0.5}, {"element": "Na", "occu": 0.5}]}
    found = read(tmp_path, [
        {"composition": "Na Cl3", "energy": -4.0},
        {"composition": " ", "energy": -4.0},
        {"composition": {"@module": "pymatgen", "Na+": 1.0, "Cl": 1.0, "Na": 2.0}, "energy": -4.0},
        {"structure": {"sites": [site, shared]}, "energy": -4.0},
        {"composition": {"Na": 0.25}, "energy": -1.0},
    ])  # fmt: skip
    assert found.elements.tolist() == [11, 17, 11, 17, 11, 17, 11]
    assert found.fractions.tolist() == pytest.approx([0.25, 0.75, 0.75, 0.25, 0.75, 0.25, 1])
    assert found.energy.tolist() == pytest.approx([-1, -1, -2, -4])
    assert found.skipped == {"without energy or composition": 1}


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open), (".bz2", bz2.open)])
def test_files_as_they_are_packed(tmp_path: Path, suffix: str, opener: Any) -> None:
    path = tmp_path / f"a.hull.json{suffix}"
    with opener(path, "wt") as stream:
        json.dump([ENTRY], stream)
    assert read_entries(path).energy.tolist() == [-1.3]


def test_one_ion_of_several_charges_is_one_element() -> None:
    assert parse_formula(" Mn2+3 Mn3+2.5 O2-5 ") == {25: 5.5, 8: 5}
    assert parse_formula("Na+ Na1+2 Cl-3") == {11: 3, 17: 3}


def test_the_embedded_phases() -> None:
    found = read_entries("embedded")
    assert len(found) > 5000
    assert found.scale == "mp2020"
    assert found.skipped == {}
    assert set(found.elements[found.starts[found.n_elements == 1]]) >= set(range(1, 10))
