"""New crystals from known structure types: data-mined ionic substitution (Hautier et al., Inorg. Chem. 50, 656, 2011).

Structure types are pymatgen's AFLOW prototype library (Mehl et al., Comput. Mater. Sci. 136, S1, 2017), symmetrised.
The probability that one ion takes another's place is Hautier's, as shipped with pymatgen.

Two additions of ours, because the published table knows cations and eight anions only:
- an ion that the table lacks (As3-, Te2-) is replaced by ions of the same charge, with the likelihood of the
  elements: the largest weight over the pairs of their tabulated ions;
- structure types without a charge assignment (intermetallics) are decorated with neutral atoms by that same
  likelihood of elements; charge neutrality is then trivial.

Every structure type is treated by itself, with random numbers from (seed, its label): one of them can be rebuilt
without the others. Shapes: k different elements of a structure type.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_Z = 94  # CHGNet's last element
MAX_ATOMS = 20
OPTIONS_PER_SITE = {1: 60, 2: 45, 3: 24, 4: 12, 5: 8}  # most likely ions tried for each element, by k
# Elements that no one puts into a material: not replaced by, though structure types that hold them are kept.
AVOIDED = frozenset((2, 10, 18, 36, 54, 61, *range(84, 90), 91, 93))


@dataclass(frozen=True, eq=False)
class Prototype:
    """A structure type: its label (AFLOW's, with `.2`, `.3`, ... where the library has several) and primitive cell."""

    label: str
    structure: Structure

    @cached_property
    def charges(self) -> Mapping[str, int] | None:
        """The charge of each element, None where it is not ionic or an element has more than one charge."""
        return _charges(self.structure)

    @cached_property
    def mixed(self) -> bool:
        """Whether it is ionic with more than one charge of an element (Mn3O4): decorations must then allow some
        neutral assignment.
        """
        return self.charges is None and _can_be_neutral(self.structure.composition.reduced_formula)

    @property
    def elements(self) -> list[str]:
        """Symbols in the order of the label's sites: the order in which substitutions are named."""
        return sorted({site.specie.symbol for site in self.structure})

    def decorated(self, symbols: tuple[str, ...]) -> Structure:
        """The structure type with `elements[i]` replaced by `symbols[i]`, in the old cell."""
        structure = self.structure.copy()
        structure.replace_species(dict(zip(self.elements, symbols, strict=True)))
        return structure

    def name(self, symbols: tuple[str, ...]) -> str:
        """Identifier of a decoration, e.g. AB_cF8_225_a_b:Cl-Na."""
        return f"{self.label}:{'-'.join(symbols)}"


@cache
def prototypes(max_atoms: int = MAX_ATOMS) -> tuple[Prototype, ...]:
    """All structure types of the library with at most `max_atoms` atoms and elements up to Z = 94."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    seen: Counter[str] = Counter()
    found = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        label = entry["tags"]["aflow"]
        seen[label] += 1
        structure = _symmetrised(entry["snl"].structure, int(label.split("_")[2]))
        if len(structure) > max_atoms or max(structure.atomic_numbers) > MAX_Z:
            continue
        name = label if seen[label] == 1 else f"{label}.{seen[label]}"
        found.append(Prototype(name, structure))
    return tuple(found)


def decorations(prototype: Prototype, count: int, *, seed: int = 0) -> list[tuple[str, ...]]:
    """At most `count` charge-balanced substitutions, drawn without repetition with their data-mined probability.

    The original decoration is not among them. Symbols are in the order of `prototype.elements`.
    """
    from pymatgen.core import Composition

    elements = prototype.elements
    options = [_replacements(symbol, prototype.charges) for symbol in elements]
    limit = OPTIONS_PER_SITE[len(elements)]
    amounts = prototype.structure.composition.get_el_amt_dict()
    likelihood: dict[tuple[str, ...], float] = {}
    for choice in itertools.product(*(option[:limit] for option in options)):
        symbols = tuple(symbol for symbol, _, _ in choice)
        if len(set(symbols)) < len(symbols) or symbols == tuple(elements):
            continue
        charge = sum(charge * amounts[old] for (_, charge, _), old in zip(choice, elements, strict=True))
        if abs(charge) > 1e-6:
            continue
        weight = sum(log_p for _, _, log_p in choice)
        likelihood[symbols] = max(weight, likelihood.get(symbols, -np.inf))
    names = sorted(likelihood)
    # Gumbel noise turns "the largest" into "drawn without replacement in proportion to probability".
    noise = _random(seed, prototype.label).gumbel(size=len(names))
    score = np.array([likelihood[name] for name in names]) + noise
    chosen: list[tuple[str, ...]] = []
    for index in np.argsort(-score, kind="stable"):
        amount = {new: amounts[old] for new, old in zip(names[index], elements, strict=True)}
        if not prototype.mixed or _can_be_neutral(Composition(amount).reduced_formula):
            chosen.append(names[index])
        if len(chosen) == count:
            break
    return chosen


def _random(seed: int, label: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{label}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _symmetrised(structure: Structure, spacegroup: int) -> Structure:
    """Exactly symmetric primitive cell; the tightest tolerance that finds the labelled space group is used."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    analyzers = [SpacegroupAnalyzer(structure, symprec=symprec) for symprec in (1e-3, 1e-2, 0.1)]
    for analyzer in analyzers:
        if analyzer.get_space_group_number() == spacegroup:
            return analyzer.get_primitive_standard_structure()
    return analyzers[1].get_primitive_standard_structure()


def _charges(structure: Structure) -> dict[str, int] | None:
    """One integer charge per element by bond valence, else by composition; None when neither finds one."""
    from pymatgen.analysis.bond_valence import BVAnalyzer

    if len(structure.composition.elements) == 1:
        return None
    try:
        found: dict[str, set[int]] = {}
        valences = np.asarray(BVAnalyzer().get_valences(structure), dtype=np.int64).tolist()
        for site, valence in zip(structure, valences, strict=True):
            found.setdefault(site.specie.symbol, set()).add(valence)
        if all(len(values) == 1 for values in found.values()):
            return {symbol: values.pop() for symbol, values in found.items()}
    except ValueError:  # no assignment found
        pass
    for guess in structure.composition.oxi_state_guesses():
        if all(float(charge).is_integer() for charge in guess.values()):
            return {str(symbol): int(charge) for symbol, charge in guess.items()}
    return None


@cache
def _can_be_neutral(formula: str) -> bool:
    """Whether common oxidation states add up to zero; false for a pure element and for a metal."""
    from pymatgen.core import Composition

    composition = Composition(formula)
    return len(composition) > 1 and bool(composition.oxi_state_guesses())


@cache
def _likelihoods() -> dict[tuple[tuple[str, int], tuple[str, int]], float]:
    """log p(new ion | old ion) of all pairs of tabulated ions, keyed (old, new)."""
    from pymatgen.analysis.structure_prediction.substitution_probability import SubstitutionProbability

    table = SubstitutionProbability()
    ions = sorted(table.species, key=str)
    key = {ion: (ion.element.symbol, int(ion.oxi_state)) for ion in ions}
    return {
        (key[old], key[new]): float(np.log(table.cond_prob(new, old)))
        for old in ions
        for new in ions
        if new.element.Z <= MAX_Z
    }


@cache
def _element_likelihoods() -> dict[tuple[str, str], float]:
    """The largest likelihood over the tabulated ions of two elements, keyed (old, new)."""
    best: dict[tuple[str, str], float] = {}
    for ((old, _), (new, _)), value in _likelihoods().items():
        best[old, new] = max(value, best.get((old, new), -np.inf))
    return best


def _replacements(symbol: str, charges: Mapping[str, int] | None) -> list[tuple[str, int, float]]:
    """(symbol, charge, log-likelihood) of what may take the place of an element, the likeliest first."""
    from pymatgen.core import Element

    old = None if charges is None else (symbol, charges[symbol])
    table = _likelihoods()
    if old is not None and any(key[0] == old for key in table):
        found = [(new[0], new[1], value) for (was, new), value in table.items() if was == old]
    else:
        charge = 0 if old is None else old[1]
        found = [(new, charge, value) for (was, new), value in _element_likelihoods().items() if was == symbol]
        if charge:
            found = [row for row in found if charge in Element(row[0]).common_oxidation_states]
    if not found:  # an element without data (a noble gas): it stays
        found = [(symbol, 0 if old is None else old[1], 0.0)]
    allowed = [row for row in found if Element(row[0]).Z not in AVOIDED or row[0] == symbol]
    return sorted(allowed, key=lambda row: (-row[2], row[0], row[1]))
