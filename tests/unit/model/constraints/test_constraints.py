"""Constraints: what a user writes, what it means in a group, and that no sample escapes it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalforge.common.errors import InputError
from crystalforge.common.settings import validated
from crystalforge.crystal import wyckoff
from crystalforge.model.batch import TokenBatch
from crystalforge.model.constraints.automaton import automaton, feasible_spacegroups, plan
from crystalforge.model.constraints.constraints import Constraints, SiteTemplate
from crystalforge.model.constraints.elements import SETS, SYMBOLS, atomic_number, parse_formula
from crystalforge.model.constraints.masks import Masks
from crystalforge.model.distributions import allowed_wyckoff
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import sample

Site = tuple[int, int]  # letter, atomic number

# ---- the masks, against all crystals written out ---------------------------------------------------------------


def all_crystals(group: int, elements: tuple[int, ...], most: int) -> Iterator[tuple[Site, ...]]:
    """Every sequence of up to `most` sites by the rules of letters, without the library's masks."""
    fixed, letters = wyckoff.is_fixed()[group - 1], range(1, int(wyckoff.n_letters()[group - 1]) + 1)
    for count in range(1, most + 1):
        for chosen in itertools.combinations_with_replacement(letters, count):
            if all(a < b or not fixed[a] for a, b in itertools.pairwise(chosen)):
                for kinds in itertools.product(elements, repeat=count):
                    yield tuple(zip(chosen, kinds, strict=True))


def meets(wish: Constraints, group: int, crystal: tuple[Site, ...]) -> bool:
    """Whether a crystal is as demanded, read off the demands one by one."""
    symbols = [SYMBOLS[element] for _, element in crystal]
    atoms = [int(wyckoff.multiplicity()[group - 1, letter]) for letter, _ in crystal]
    centring = len(wyckoff.centring(group))
    if wish.elements is not None and not set(symbols) <= set(wish.elements):
        return False
    if wish.chemical_system is not None and set(symbols) != set(wish.chemical_system):
        return False
    most = wish.max_atoms
    if most is None and wish.composition is not None and wish.formula_units is None:
        most = 20 * centring
    elif most is not None and wish.max_atoms_cell == "primitive":
        most *= centring
    if most is not None and sum(atoms) > most:
        return False
    if wish.max_sites is not None and len(crystal) > wish.max_sites:
        return False
    if wish.composition is not None:
        counts = {s: sum(n for n, t in zip(atoms, symbols, strict=True) if t == s) for s in set(symbols)}
        if set(counts) != set(wish.composition):
            return False
        units = {counts[s] / n for s, n in wish.composition.items()}
        if len(units) > 1 or not min(units).is_integer() or wish.formula_units not in (None, min(units)):
            return False
    if wish.sites and (len(crystal) < len(wish.sites) or (len(crystal) > len(wish.sites) and not wish.further_sites)):
        return False
    for site, (letter, _), symbol in zip(wish.sites, crystal, symbols, strict=False):
        if site.wyckoff is not None and wyckoff.letter_name(letter) not in site.wyckoff:
            return False
        if site.elements is not None and symbol not in site.elements:
            return False
        if site.same_element_as is not None and symbol != symbols[site.same_element_as - 1]:
            return False
    return True


def reached(wish: Constraints, group: int, slots: int) -> set[tuple[Site, ...]]:
    """All crystals that following the masks can give; fails in a dead end."""
    masks, g = Masks(wish, [group], slots, "cpu"), torch.tensor([group])
    found: set[tuple[Site, ...]] = set()

    def follow(crystal: tuple[Site, ...], cell: torch.Tensor) -> None:
        slot = len(crystal)
        previous = torch.tensor([crystal[-1][0]]) if crystal else None
        letters = (allowed_wyckoff(g, previous, slot == slots - 1) & masks.letters(slot, g, cell))[0].nonzero()
        assert len(letters), f"no letter may follow {crystal}"
        for letter in letters.squeeze(1):
            if letter == 0:
                found.add(crystal)
                continue
            earlier = torch.tensor([[element for _, element in crystal] + [0] * (slots - slot)])
            elements = masks.elements(slot, g, letter[None], cell, earlier)[0].nonzero()
            assert len(elements), f"no element may follow {crystal} on {letter}"
            for element in elements.squeeze(1):
                after = masks.advance(slot, g, letter[None], element[None], cell)
                follow((*crystal, (int(letter), int(element))), after)

    follow((), torch.zeros(1, dtype=torch.int64))
    return found


@st.composite
def wishes(draw: st.DrawFn) -> Constraints:
    """Constraints over Na and Cl (and, in lists, O) for crystals of at most three sites."""
    some: dict[str, Any] = {"elements": ("Na", "Cl")}
    kind = draw(st.sampled_from(["free", "system", "composition"]))
    if kind == "system":
        some["chemical_system"] = draw(st.sampled_from([("Na", "Cl"), ("Cl",)]))
    if kind == "composition":
        some["composition"] = draw(st.sampled_from([{"Na": 1, "Cl": 1}, {"Na": 1, "Cl": 2}, {"Cl": 1}]))
        some["formula_units"] = draw(st.sampled_from([None, None, 1, 2, 4]))
    some["max_atoms"] = draw(st.sampled_from([None, 2, 4, 9, 16]))
    some["max_atoms_cell"] = draw(st.sampled_from(["conventional", "primitive"]))
    some["max_sites"] = draw(st.sampled_from([None, 2, 3]))
    sites = []
    for number in range(draw(st.integers(0, 3))):
        tie = draw(st.sampled_from([None, *range(1, number + 1)]))
        sites.append(
            SiteTemplate(
                wyckoff=draw(st.sampled_from([None, None, "a", "bc", "ce"])),
                elements=draw(st.sampled_from([None, None, ("Na",), ("Cl", "O")])),
                same_element_as=tie,
            )
        )
    return Constraints(**some, sites=tuple(sites), further_sites=draw(st.booleans()))


@given(wish=wishes(), group=st.sampled_from([2, 3, 38, 44, 146, 160, 196, 216]))
@settings(max_examples=60, deadline=None)
def test_masks_allow_all_that_is_demanded_and_nothing_else(wish: Constraints, group: int) -> None:
    slots = 4
    expected = {crystal for crystal in all_crystals(group, (11, 17), slots - 1) if meets(wish, group, crystal)}
    try:
        found = reached(wish, group, slots)
    except InputError:
        found = set()
    assert found == expected


# ---- samples ---------------------------------------------------------------------------------------------------

SAMPLED = [
    Constraints(elements="Li O F", max_sites=3),
    Constraints(exclude=["radioactive", "toxic", "noble_gases"], max_atoms=12, max_atoms_cell="primitive"),
    Constraints(chemical_system="Li-Fe-P-O", max_atoms=56),
    Constraints(composition="CaTiO3"),
    Constraints(composition="Al2O3", formula_units=6),
    Constraints(sites=[{"wyckoff": "a", "elements": "Ca Sr"}, {}, {"same_element_as": 1}], further_sites=True),
    Constraints(composition="Na2Cl2", sites=[{}, {"same_element_as": 1}, {}, {"same_element_as": 3}]),
]


@pytest.mark.parametrize("wish", SAMPLED, ids=["few", "safe", "system", "any Z", "Z = 6", "tied", "all tied"])
def test_every_sample_is_as_demanded(wish: Constraints, spread_model: Callable[..., CrystalFormer]) -> None:
    groups = np.array([g for g in (1, 2, 12, 62, 63, 139, 166, 167, 194, 221, 225, 227) if feasible(wish, g)])
    assert len(groups) >= 3
    tokens = sample(spread_model(), np.repeat(groups, 4), seed=8, constraints=wish, temperature=1.3).tokens
    unwanted = {symbol for name in wish.exclude for symbol in SETS[name]}
    for row in range(len(tokens)):
        n = tokens.n_sites[row]
        crystal = tuple(zip(tokens.wyckoff[row, :n].tolist(), tokens.element[row, :n].tolist(), strict=True))
        assert meets(wish, int(tokens.spacegroup[row]), crystal)
        assert not unwanted & {SYMBOLS[element] for _, element in crystal}
    atoms = TokenBatch.from_tokens(tokens).multiplicity.sum(dim=1)
    assert (atoms > 0).all()


def feasible(wish: Constraints, group: int) -> bool:
    try:
        automaton(wish, plan(wish, 21), group)
    except InputError:
        return False
    return True


def test_a_wide_wish_costs_little_probability(spread_model: Callable[..., CrystalFormer]) -> None:
    """A constraint that every crystal meets leaves the sampler's numbers alone."""
    free = sample(spread_model(), np.arange(1, 100), seed=2)
    held = sample(spread_model(), np.arange(1, 100), seed=2, constraints=Constraints(max_sites=20))
    assert (free.tokens.coords == held.tokens.coords).all()
    np.testing.assert_allclose(free.total_log_prob_drawn, held.total_log_prob_drawn)


def test_feasible_groups_of_perovskite_cell() -> None:
    groups = feasible_spacegroups(Constraints(composition="CaTiO3", max_atoms=5, sites=[{}, {}, {}]))
    assert 221 in groups
    assert 62 not in groups  # Pnma: orbits of 4 and 8


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"elements": ["Xx"]}, "there is no element 'Xx'"),
        ({"forbidden_elements": "tI"}, "perhaps 'Ti'"),
        ({"exclude": ["toxc"]}, "perhaps 'toxic'"),
        ({"chemical_sistem": "Na-Cl"}, "did you mean 'chemical_system'?"),
        ({"composition": "Ca(OH)2"}, "cannot read the formula 'Ca(OH)2'"),
        ({"composition": {"Na": 0}}, "positive counts"),
        ({"composition": "NaCl", "chemical_system": "Na-O"}, "name different elements"),
        ({"composition": "PbO", "exclude": ["toxic"]}, "required and excluded at once: Pb"),
        ({"formula_units": 2}, "formula_units needs a composition"),
        ({"elements": "Na", "forbidden_elements": "Na"}, "no element is left"),
        ({"sites": [{"same_element_as": 1}]}, "not an earlier site"),
        ({"sites": [{"wyckoff": "?"}]}, "'?' is not a Wyckoff letter"),
        ({"sites": [{"elements": []}]}, "an empty list allows nothing"),
        ({"max_atoms": 0}, "max_atoms"),
    ],
)
def test_wishes_that_cannot_be_read(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        validated(Constraints, wish, source="wish.yaml")


@pytest.mark.parametrize(
    ("wish", "group", "message"),
    [
        ({"composition": "CaTiO3", "formula_units": 1}, 225, "no crystal of space group 225 meets"),
        ({"sites": [{"wyckoff": "b"}, {"wyckoff": "a"}]}, 221, "site 2 of the template ('a') in space group"),
        ({"sites": [{"wyckoff": "a"}, {"wyckoff": "a"}]}, 221, "the next letter is 'b' or later"),
        ({"sites": [{"wyckoff": "z"}]}, 221, "there is no such Wyckoff letter"),
        ({"sites": [{}] * 21}, 1, "21 sites are more than the 20 that the model can place"),
        ({"max_sites": 1, "sites": [{}, {}]}, 1, "the template has 2 sites, max_sites allows 1"),
        ({"sites": [{"elements": "Na"}, {"elements": "Cl", "same_element_as": 1}]}, 1, "allows no element"),
        ({"composition": "CaTiO3", "max_atoms": 2000}, 1, "more than the 100000 allowed"),
    ],
)  # fmt: skip
def test_wishes_that_cannot_be_met(
    wish: dict[str, Any], group: int, message: str, spread_model: Callable[..., CrystalFormer]
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        sample(spread_model(), np.array([group]), seed=0, constraints=Constraints(**wish))


def test_symbols_and_formulas() -> None:
    assert len(SYMBOLS) == 119
    assert [atomic_number(symbol) for symbol in ("H", "Ti", "La", "Lu", "Og")] == [1, 22, 57, 71, 118]
    assert parse_formula("Ca3 Al2 Si3 O12") == {"Ca": 3, "Al": 2, "Si": 3, "O": 12}
    assert SETS["lanthanides"][0] == "La"
    assert SETS["lanthanides"][-1] == "Lu"
    assert SETS["radioactive"][2] == "Po"
