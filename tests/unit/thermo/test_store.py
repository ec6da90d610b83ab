"""A hull store's bounds: all elements, what it says of itself, what it keeps, and names of phases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.thermo import Entries, HullStore
from crystalforge.thermo.hull import formula_of

FAR = (1, 64, 65, 118)
"""The first and the last element, and the two at the seam of a mask's words."""


def store_of(*phases: tuple[Mapping[int, float | int], float], **options) -> HullStore:
    return HullStore.from_entries(Entries.of([made for made, _ in phases], [energy for _, energy in phases]), **options)


def test_all_elements_have_their_place_in_the_masks() -> None:
    pairs = [{a: 1, b: 1} for a in FAR for b in FAR if a < b]
    store = store_of(*[({z: 1}, -float(z)) for z in FAR], *[(pair, -100.0 - sum(pair)) for pair in pairs])
    for z in FAR:
        assert store.e_above_hull([z], 0.0) == z
    for pair in pairs:
        assert store.e_above_hull(pair, 0.0) == pytest.approx(100 + sum(pair))
    assert store.around([1, 64, 65]).n_compounds == 3, "none of the fourth element"
    assert store.e_above_hull([1, 117], 0.0) != store.e_above_hull([1, 118], 0.0)
    assert store.system([119]) is store.system([0]) is store.system([1, 119]) is store.system([0, 1]) is None


@pytest.mark.parametrize("wrong", [0, 119])
def test_what_is_no_element_is_refused(wrong: int) -> None:
    with pytest.raises(InputError, match=f"^hull: atomic number {wrong} is not in the periodic table"):
        HullStore.from_entries(Entries.of([{26: 1}, {wrong: 1}], [0.0, 0.0]), source="hull")
    with pytest.raises(InputError, match=r"^hull: no entries with an energy"):
        HullStore.from_entries(Entries.of([{}], [1.0]), source="hull")


def test_a_store_says_what_it_was_made_of() -> None:
    entries = Entries.of([{1: 1}, {8: 1}, {8: 2}, {1: 2, 8: 1}, {1: 1}], [-1.0, -2.0, -3.0, -4.0, None])
    store = HullStore.from_entries(entries, source="here")
    said = {name: store.manifest[name] for name in ("format", "scale", "source", "entries_read", "entries", "systems")}
    assert said == {
        "format": 1, "scale": "mp2020", "source": "here", "entries_read": 4, "entries": 3, "systems": 3,
    }  # fmt: skip
    assert store.manifest["skipped"] == {"without energy or composition": 1}
    assert len(store) == 3
    assert store.e_above_hull([8], -3.0) == 0, "the cheaper of two phases of a composition"


def test_nearly_equal_compositions_stay_apart() -> None:
    """One part in a million is another composition; rounding of a fraction is not."""
    store = store_of(({1: 1}, 0.0), ({8: 1}, 0.0), ({1: 1, 8: 1}, -1.0), ({1: 1.000004, 8: 1}, -2.0))
    assert len(store) == 4
    assert len(store_of(({1: 1}, 0.0), ({1: 0.1 + 0.2, 8: 0.9}, 0.0), ({1: 0.3, 8: 0.9}, 1.0))) == 2
    # Shares of a quarter and three, and 2e-9 or 2e-8 beside them.
    for beside, phases in [(2e-9, 1), (2e-8, 2)]:
        assert len(store_of(({1: 0.25, 8: 0.75}, 0.0), ({1: 0.25 + beside, 8: 0.75 - beside}, 1.0))) == phases


def test_the_last_asked_systems_are_kept() -> None:
    store = store_of(*[({z: 1}, 0.0) for z in (1, 2, 3)], cache_size=2)
    one, two = store.system([1]), store.system([2])
    assert store.system([1]) is one
    store.system([3])  # the one that has waited longest goes: [2]
    assert store.system([1]) is one
    assert store.system([2]) is not two
    assert (store.hits, store.misses) == (2, 4)


def test_what_is_known_around_a_composition() -> None:
    store = store_of(({3: 1}, -1.0), ({16: 1}, -2.0), ({3: 2, 16: 1}, -4.0), ({3: 1, 16: 1}, -2.5), ({8: 1}, 0.0))
    around = store.around({3: 5, 16: 1})
    assert (around.n_compounds, around.n_same_elements, around.missing) == (2, 2, False)
    # Li5S: three atoms of six are Li2S, three are Li; by name, the larger share first.
    assert dict(around.decomposition) == {"Li2S": pytest.approx(0.5), "Li": pytest.approx(0.5)}
    assert [name for name, _ in store.around({3: 7, 16: 3}).decomposition] == ["Li2S", "Li"]
    assert store.around([3, 3, 16]).decomposition == (("Li2S", pytest.approx(1)),)
    lacking = store.around([3, 26])
    assert (lacking.n_compounds, lacking.n_same_elements, lacking.decomposition, lacking.missing) == (0, 0, (), True)
    assert store.around([]).missing


@pytest.mark.parametrize(
    ("amounts", "name"),
    [
        ({26: 2, 8: 3}, "Fe2O3"),
        ({8: 1}, "O2"),
        ({11: 1, 17: 1, 8: 0}, "NaCl"),
        ({11: 101, 17: 99}, "Na101Cl99"),
        ({3: 1, 6: 1, 8: 1, 1: 1}, "HLiCO"),
        ({19: 2, 11: 1, 13: 1, 9: 6}, "K2NaAlF6"),  # one share is a whole number of fifths, the others are not
    ],
)
def test_names_of_phases(amounts: dict[int, int], name: str) -> None:
    from pymatgen.core import Composition

    order = sorted(amounts)
    fractions = np.array([amounts[z] for z in order], dtype=np.float64)
    found = formula_of(order, fractions / fractions.sum())
    assert Composition(found) == Composition(name)
    assert not set(found) & set(".-+")


def test_beyond_200_atoms_a_formula_is_made_of_fractions() -> None:
    assert formula_of([11, 17], np.array([97, 103]) / 200) == "Na97Cl103"
    assert "." in formula_of([11, 17], np.array([100, 101]) / 201)


def test_shares_of_six_digits_are_the_formula_they_were_rounded_from() -> None:
    assert formula_of([9, 12], np.array([0.666667, 0.333333])) == "MgF2"


def test_compositions_by_number_array_and_amounts_are_one() -> None:
    store = store_of(({1: 1}, 0.0), ({8: 1}, 0.0), ({1: 2, 8: 1}, -1.0))
    asked = [[8, 1, 1], np.array([1, 8, 1]), {8: 1, 1: 2, 26: 0}, {1: 0.5, 8: 0.25}]
    answer = store.e_above_hull_many(asked, np.array([0.0, 1.0, 2.0, 3.0]))
    assert answer.e_above_hull == pytest.approx([1, 2, 3, 4])
    assert answer.hull_energy == pytest.approx([-1] * 4)
    assert answer.n_compounds.tolist() == [1] * 4


def test_a_scale_that_is_asked_for_must_be_the_store_s(tmp_path: Path) -> None:
    store_of(({1: 1}, 0.0)).save(tmp_path / "hull")
    assert HullStore.open(tmp_path / "hull", scale="mp2020").scale == "mp2020"
    with pytest.raises(InputError, match="on the scale 'mp2020', not 'pbe'"):
        HullStore.open(tmp_path / "hull", scale="pbe")


def test_a_replacement_that_was_cut_short_leaves_the_old_store(tmp_path: Path) -> None:
    store = store_of(({1: 1}, -1.5))
    store.save(tmp_path / "hull")
    (tmp_path / "hull").rename(tmp_path / ".hull.old")
    assert HullStore.open(tmp_path / "hull").digest == store.digest


def test_the_embedded_hull_is_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Entries.of([{11: 1}, {17: 1}], [-1.0, -2.0], scale="formation")
    monkeypatch.setattr(
        "crystalforge.thermo.hull.read_entries", lambda path, scale: few if path == "embedded" else None
    )
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    found = HullStore.open("embedded")
    assert (len(found), found.scale, found.manifest["source"]) == (2, "formation", "embedded")


def test_a_store_of_no_manifest_s_format_is_refused_before_its_digest(tmp_path: Path) -> None:
    store_of(({1: 1}, 0.0)).save(tmp_path / "hull")
    manifest = json.loads((tmp_path / "hull" / "manifest.json").read_text())
    del manifest["format"]
    (tmp_path / "hull" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="has format None, this version reads 1"):
        HullStore.open(tmp_path / "hull")
