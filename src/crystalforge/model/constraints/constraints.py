"""What a user may demand of a crystal. Every demand is met by construction: it masks the next token.

The demands are data (pydantic, from YAML or Python); `constraints_automaton` turns them into masks that look ahead,
so that what is begun can always be finished.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from crystalforge.crystal import ATOM_TYPES, wyckoff
from crystalforge.model.constraints.elements import atomic_number, excluded_set, parse_formula, reduced

DEFAULT_MAX_ATOMS = 20  # per primitive cell, as in MP-20 and Alex-20, where only a composition is given


def _symbols(value: Any) -> Any:
    """Symbols as a list, or joined by '-', ',' or spaces."""
    if isinstance(value, str):
        value = value.replace("-", " ").replace(",", " ").split()
    return tuple(value) if isinstance(value, list | set | tuple) else value


def _letters(value: Any) -> Any:
    return tuple(value) if isinstance(value, str | list) else value


def _counts(value: Any) -> Any:
    return parse_formula(value) if isinstance(value, str) else value


Symbols = Annotated[tuple[str, ...], BeforeValidator(_symbols)]


class SiteTemplate(BaseModel):
    """What one site must be; what is not given is free.

    >>> SiteTemplate(wyckoff="a", elements="Ca Sr Ba").elements
    ('Ca', 'Sr', 'Ba')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    wyckoff: Annotated[tuple[str, ...], BeforeValidator(_letters)] | None = Field(
        None, description="letter, or the letters to choose from ('bc')"
    )
    elements: Symbols | None = Field(None, description="element, or the elements to choose from")
    same_element_as: int | None = Field(
        None, ge=1, description="number (from 1) of an earlier site of the same element"
    )

    @model_validator(mode="after")
    def _check(self) -> SiteTemplate:
        for symbol in self.elements or ():
            atomic_number(symbol)
        for letter in self.wyckoff or ():
            wyckoff.letter_index(letter)
        if self.elements == () or self.wyckoff == ():
            raise ValueError("an empty list allows nothing; leave the key out to allow everything")
        return self


class Constraints(BaseModel):
    """Demands on every crystal of a run.

    >>> Constraints(chemical_system="Li-Fe-P-O", exclude=["toxic"], max_atoms=56).chemical_system
    ('Li', 'Fe', 'P', 'O')
    >>> Constraints(composition="Ti2O4").composition
    {'Ti': 1, 'O': 2}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    elements: Symbols | None = Field(None, description="only these elements may appear")
    forbidden_elements: Symbols = Field((), description="these elements may not appear")
    exclude: Symbols = Field(
        (), description="named sets not to appear: radioactive, toxic, rare, noble_gases, lanthanides, actinides"
    )
    chemical_system: Symbols | None = Field(None, description="all of these elements appear, and no other")
    composition: Annotated[dict[str, int], BeforeValidator(_counts)] | None = Field(
        None, description="formula, such as CaTiO3, met up to a factor"
    )
    formula_units: int | None = Field(None, ge=1, description="formula units in the conventional cell")
    max_atoms: int | None = Field(
        None, ge=1, description="most atoms in the cell; with a composition alone, 20 (or one unit) per primitive cell"
    )
    max_atoms_cell: Literal["conventional", "primitive"] = Field("conventional", description="the cell of max_atoms")
    max_sites: int | None = Field(None, ge=1, description="most symmetry-inequivalent sites")
    sites: tuple[SiteTemplate, ...] = Field((), description="the sites one by one, in order of their letters")
    further_sites: bool = Field(False, description="whether sites may follow those of the template")

    @model_validator(mode="after")
    def _check(self) -> Constraints:
        for symbol in (*(self.elements or ()), *self.forbidden_elements, *(self.chemical_system or ())):
            atomic_number(symbol)
        for name in self.exclude:
            excluded_set(name)
        if self.composition is not None:
            for symbol in self.composition:
                atomic_number(symbol)
            object.__setattr__(self, "composition", reduced(self.composition))  # "up to a factor"
            if self.chemical_system is not None and set(self.chemical_system) != set(self.composition):
                raise ValueError("chemical_system and composition name different elements; one of the two is enough")
        if self.formula_units is not None and self.composition is None:
            raise ValueError("formula_units needs a composition")
        for number, site in enumerate(self.sites, start=1):
            if site.same_element_as is not None and site.same_element_as >= number:
                raise ValueError(f"site {number}: same_element_as = {site.same_element_as} is not an earlier site")
        if not self.allowed_elements().any():
            raise ValueError("no element is left: the lists of allowed and excluded elements have nothing in between")
        required = self.required_elements()
        lost = [symbol for symbol in required if not self.allowed_elements()[atomic_number(symbol)]]
        if lost:
            raise ValueError(f"required and excluded at once: {', '.join(lost)}")
        return self

    def required_elements(self) -> tuple[str, ...]:
        """Elements that must appear; no other may, unless there are none."""
        return tuple(self.composition or self.chemical_system or ())

    def allowed_elements(self) -> Bool[np.ndarray, " A"]:
        """By atomic number (0, the pad, is False)."""
        allowed = np.ones(ATOM_TYPES, dtype=bool)
        allowed[0] = False
        for only in (self.elements, self.required_elements() or None):
            if only is not None:
                allowed &= np.isin(np.arange(ATOM_TYPES), [atomic_number(symbol) for symbol in only])
        banned = [*self.forbidden_elements, *(symbol for name in self.exclude for symbol in excluded_set(name))]
        allowed[[atomic_number(symbol) for symbol in banned]] = False
        return allowed
