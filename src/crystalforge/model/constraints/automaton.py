"""What may still happen: per space group, the table of states from which the constraints can be met.

A crystal's state is its number of sites i, its last letter, and a ledger: a cell of a small box whose axes count
what the constraints need to know (atoms of each element of a composition, atoms in all, which required elements have
appeared, which element each template site that others must copy has). `reachable` is found from the last site back:
a state is good when stopping is allowed in it, or some next site leads to a good state. Masks made from it never
forbid everything and never allow a step into a dead end, for any combination of constraints.

Atoms are counted per primitive cell, so the box is small also for centred groups.

Shapes: S + 1 numbers of sites, W letters of the group (0 = none yet), E classes of elements, C cells of the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int64

from crystalforge.common.errors import InputError
from crystalforge.crystal import wyckoff
from crystalforge.model.constraints.constraints import DEFAULT_MAX_ATOMS, Constraints
from crystalforge.model.constraints.elements import atomic_number

MAX_CELLS = 100_000  # of a ledger; 5 elements of 8 atoms each take 59,049


@dataclass(frozen=True, eq=False)
class Automaton:
    """The states of one space group.

    reachable[i, w, c]: constraints can be met after i sites, the last with letter w, in ledger cell c.
    site[i, w, c]: they can be met when the next site (number i + 1) has letter w.
    stop[i, c]: the crystal may end here. step[w, e, c]: the cell after a site of letter w and an element of class e,
    -1 if there is none; what ties add is in `Plan`.
    """

    reachable: Bool[np.ndarray, "S W C"]
    site: Bool[np.ndarray, "S W C"]
    stop: Bool[np.ndarray, "S C"]
    step: Int64[np.ndarray, "W E C"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What constraints demand whatever the space group.

    Classes of elements: one for each required element, or a single one when none is required. Ties are the fastest
    axes of the ledger. `tie_stride[i]` is the stride of the tie axis that site i writes (0: none), `tie_read[i]` that
    of the one it must agree with (0: none).
    """

    max_sites: int
    class_of: Int64[np.ndarray, " A"]  # -1: not allowed
    n_classes: int
    site_elements: Bool[np.ndarray, "S A"]
    site_classes: Bool[np.ndarray, "S E"]
    site_letters: tuple[tuple[int, ...] | None, ...]
    min_sites: int
    tie_stride: tuple[int, ...]
    tie_read: tuple[int, ...]
    tie_cells: int
    leader: tuple[int, ...]  # site whose element each site repeats, -1: none


def plan(constraints: Constraints, slots: int) -> Plan:
    """Resolve a user's demands for a model with `slots` slots; InputError when they contradict each other."""
    template, most = constraints.sites, slots - 1
    if len(template) > most or (constraints.max_sites or 0) > most:
        asked = max(len(template), constraints.max_sites or 0)
        raise InputError(f"{asked} sites are more than the {most} that the model can place")
    limit = min(most, constraints.max_sites or most)
    if len(template) > limit:
        raise InputError(f"the template has {len(template)} sites, max_sites allows {limit}")
    if template and not constraints.further_sites:
        limit = len(template)
    required = [atomic_number(symbol) for symbol in constraints.required_elements()]
    allowed = constraints.allowed_elements()
    class_of = np.where(allowed, 0, -1).astype(np.int64)
    for number, element in enumerate(required):
        class_of[element] = number
    n_classes = max(1, len(required))

    leader = _leaders(constraints, limit)
    elements = np.repeat(allowed[None], limit, axis=0)
    for site, wish in enumerate(template):
        if wish.elements is not None:
            listed = np.zeros_like(allowed)
            listed[[atomic_number(symbol) for symbol in wish.elements]] = True
            elements[site] &= listed
    for site, first in enumerate(leader):  # tied sites share what each of them allows
        if first >= 0:
            elements[first] &= elements[site]
    for site, first in enumerate(leader):
        if first >= 0:
            elements[site] = elements[first]
        if not elements[site].any():
            raise InputError(f"site {site + 1} of the template allows no element", remedy="widen one of its lists")
    classes = np.stack([(elements & (class_of == number)[None]).any(axis=1) for number in range(n_classes)], axis=1)

    # Only where elements are told apart must the ledger remember which one a leader took.
    leaders = sorted({first for first in leader if first >= 0}) if required else []
    stride = {first: n_classes**order for order, first in enumerate(leaders)}
    return Plan(
        max_sites=limit,
        class_of=class_of,
        n_classes=n_classes,
        site_elements=elements,
        site_classes=classes,
        site_letters=tuple(
            tuple(wyckoff.letter_index(letter) for letter in wish.wyckoff) if wish.wyckoff else None
            for wish in template
        )
        + (None,) * (limit - len(template)),
        min_sites=max(1, len(template)),
        tie_stride=tuple(stride.get(site, 0) for site in range(limit)),
        tie_read=tuple(stride.get(first, 0) for first in leader),
        tie_cells=n_classes ** len(leaders),
        leader=leader,
    )


def _leaders(constraints: Constraints, limit: int) -> tuple[int, ...]:
    """The first site of the chain that each site's `same_element_as` belongs to; -1 where it stands alone."""
    leader = [-1] * limit
    for site, wish in enumerate(constraints.sites):
        if wish.same_element_as is not None:
            earlier = wish.same_element_as - 1
            leader[site] = earlier if leader[earlier] < 0 else leader[earlier]
    return tuple(leader)


class _Ledger:
    """The box of counts of one group: its cells, the steps between them, and where a crystal may end."""

    def __init__(self, constraints: Constraints, group: int, tie_cells: int) -> None:
        centring = len(wyckoff.centring(group))
        letters = int(wyckoff.n_letters()[group - 1])
        self.atoms = wyckoff.multiplicity()[group - 1, : letters + 1] // centring  # of the primitive cell, by letter
        most = constraints.max_atoms
        if most is not None and constraints.max_atoms_cell == "conventional":
            most //= centring
        composition = constraints.composition
        self.n_classes = max(1, len(constraints.required_elements()))
        self.tie_cells = tie_cells
        self.units: list[int] = []
        if composition is not None:
            per_unit = sum(composition.values())
            if constraints.formula_units is not None:
                units, rest = divmod(constraints.formula_units, centring)
                self.units = [units] if not rest and (most is None or units * per_unit <= most) else []
            else:
                self.units = list(
                    range(1, (max(DEFAULT_MAX_ATOMS, per_unit) if most is None else most) // per_unit + 1)
                )
            sizes = [max(self.units, default=0) * count + 1 for count in composition.values()]
        else:
            sizes = [2] * len(constraints.chemical_system or ()) + ([most + 1] if most is not None else [])
        self.counts_elements = composition is not None
        self.counts_total = composition is None and most is not None
        self.sizes = (*sizes, tie_cells)
        self.cells = int(np.prod(self.sizes, dtype=np.int64))
        if self.cells > MAX_CELLS:
            raise InputError(
                f"the constraints make {self.cells} states in space group {group}, more than the {MAX_CELLS} allowed",
                remedy="lower max_atoms or formula_units, or ask for fewer elements or ties",
            )
        self.at = np.stack(np.unravel_index(np.arange(self.cells), self.sizes))  # axis, cell -> coordinate
        self.composition = tuple(composition.values()) if composition is not None else ()

    def step(self) -> Int64[np.ndarray, "W E C"]:
        """The cell after a site of letter w and an element of class e; -1 where a count would be exceeded."""
        result = np.full((len(self.atoms), self.n_classes, self.cells), -1, dtype=np.int64)
        limits = np.array(self.sizes)[:, None] - 1
        for letter in range(1, len(self.atoms)):
            for kind in range(self.n_classes):
                after = self.at.copy()
                if self.counts_elements:
                    after[kind] += self.atoms[letter]
                elif len(self.sizes) > 1 + self.counts_total:  # required elements: has it appeared?
                    after[kind] = 1
                if self.counts_total:
                    after[-2] += self.atoms[letter]
                fits = (after <= limits).all(axis=0)
                result[letter, kind, fits] = np.ravel_multi_index(tuple(after[:, fits]), self.sizes)
        return result

    def complete(self) -> Bool[np.ndarray, " C"]:
        """Cells in which the counts are as demanded."""
        if self.counts_elements:
            counts = self.at[:-1].T[:, None, :]
            wanted = np.array(self.units, dtype=np.int64)[:, None] * np.array(self.composition)
            return (counts == wanted).all(axis=-1).any(axis=-1)
        seen = self.at[: len(self.sizes) - 1 - self.counts_total]
        return (seen == 1).all(axis=0)


@lru_cache(maxsize=512)
def automaton_from_json(constraints: str, group: int, slots: int) -> Automaton:
    """`automaton` of constraints given as JSON, remembered: fine-tuning asks for the same ones again and again."""
    demands = Constraints.model_validate_json(constraints)
    return automaton(demands, plan(demands, slots), group)


def automaton(constraints: Constraints, plan: Plan, group: int) -> Automaton:
    """The good states of one space group; InputError saying why when there are none."""
    letters = _check_template(plan, group)
    ledger = _Ledger(constraints, group, plan.tie_cells)
    step, complete = ledger.step(), ledger.complete()
    sites, cells = plan.max_sites, ledger.cells
    width = len(ledger.atoms)
    once = wyckoff.is_fixed()[group - 1, :width]
    number = np.arange(sites + 1)[:, None]
    stop = complete & (number >= plan.min_sites)
    reachable = np.zeros((sites + 1, width, cells), dtype=bool)
    site = np.zeros_like(reachable)
    reachable[sites] = stop[sites]
    cell = np.arange(cells)
    for i in range(sites - 1, -1, -1):
        for kind in np.flatnonzero(plan.site_classes[i]):
            agrees = _agrees(plan, i, int(kind), cell)
            after = step[letters[i], kind]
            # Cells whose tie axis is written twice are never reached; the clip only keeps their index legal.
            tied = (after + kind * plan.tie_stride[i]).clip(0, cells - 1)
            good = reachable[i + 1, letters[i][:, None], tied]
            site[i, letters[i]] |= (after >= 0) & agrees & good
        # Letters ascend; one without free coordinates is not repeated.
        onwards = np.logical_or.accumulate(site[i, ::-1], axis=0)[::-1]  # some letter >= w
        beyond = np.concatenate([onwards[1:], np.zeros((1, cells), dtype=bool)])
        reachable[i] = stop[i] | np.where(once[:, None], beyond, onwards)
    if not reachable[0, 0, 0]:
        raise _infeasible(constraints, ledger, group, sites)
    return Automaton(reachable, site, stop, step)


def _agrees(plan: Plan, site: int, kind: int, cell: Int64[np.ndarray, " C"]) -> Bool[np.ndarray, " C"] | bool:
    """Whether an element of class `kind` is the one that the site's leader took."""
    read = plan.tie_read[site]
    return (cell % plan.tie_cells) // read % plan.n_classes == kind if read else True


def _check_template(plan: Plan, group: int) -> list[np.ndarray]:
    """Letters that each site may have, from the template alone; InputError for letters out of order or unknown."""
    last_letter, once = int(wyckoff.n_letters()[group - 1]), wyckoff.is_fixed()[group - 1]
    result, lowest = [], 1
    for number, wish in enumerate(plan.site_letters, start=1):
        if wish is None:
            result.append(np.arange(1, last_letter + 1))
            # An unnamed site takes at least the lowest letter that is left.
            lowest = min(lowest + int(once[min(lowest, last_letter)]), last_letter)
            continue
        names = "".join(wyckoff.letter_name(letter) for letter in wish)
        where = f"site {number} of the template ({names!r}) in space group {group}"
        known = [letter for letter in wish if letter <= last_letter]
        if not known:
            raise InputError(
                f"{where}: there is no such Wyckoff letter",
                remedy=f"use letters from 'a' to {wyckoff.letter_name(last_letter)!r}",
            )
        usable = [letter for letter in known if letter >= lowest]
        if not usable:
            raise InputError(
                f"{where} violates the order of sites: the next letter is {wyckoff.letter_name(lowest)!r} or later",
                remedy="list sites by ascending letter, and positions without free coordinates only once",
            )
        lowest = min(usable) + int(once[min(usable)])
        result.append(np.array(usable))
    return result


def _infeasible(constraints: Constraints, ledger: _Ledger, group: int, sites: int) -> InputError:
    """The error for constraints that no crystal of the group can meet."""
    wish = constraints.model_dump(exclude_defaults=True)
    if constraints.composition is not None:
        wish["composition"] = "".join(f"{s}{n if n > 1 else ''}" for s, n in constraints.composition.items())
    orbits = sorted({int(count) for count in ledger.atoms[1:]})
    described = ", ".join(f"{name} = {value}" for name, value in wish.items())
    limit = f" and at most {max(ledger.units) * sum(ledger.composition)} atoms" if ledger.units else ""
    return InputError(
        f"no crystal of space group {group} meets {described}: its orbits have {orbits} atoms per primitive cell "
        f"({len(wyckoff.centring(group))} to the conventional one), with at most {sites} sites{limit}",
        remedy="choose another space group (feasible_spacegroups lists them), or raise max_atoms or formula_units",
    )


def feasible_spacegroups(constraints: Constraints, *, slots: int = 21) -> list[int]:
    """The space groups in which some crystal meets the constraints.

    >>> 221 in feasible_spacegroups(Constraints(composition="CaTiO3", max_atoms=5))
    True
    """
    demands, result = plan(constraints, slots), []
    for group in range(1, wyckoff.N_GROUPS + 1):
        try:
            automaton(constraints, demands, group)
        except InputError:
            continue
        result.append(group)
    return result
