"""Guards: a status for every ill, and nothing hostile gets through."""

from __future__ import annotations

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.model.constraints.constraints import Constraints
from crystalforge.rewards import build, parse
from crystalforge.rewards.base import value_settings
from crystalforge.rewards.config import Guards
from crystalforge.rewards.guards import check, meets
from crystalforge.rewards.protocol import Status

KNOWN = frozenset(range(1, 95))
FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SALT = Crystal.of(5.69 * FCC, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


def status_of(crystal: Crystal | None, **options) -> Status:
    return Status(int(check([crystal], Guards(**options), KNOWN)[0]))


@pytest.mark.parametrize(
    ("crystal", "options", "status"),
    [
        (SALT, {}, Status.OK),
        (None, {}, Status.NOT_BUILT),
        (Crystal.of(np.eye(3), [], []), {}, Status.NOT_BUILT),
        (SALT, {"max_atoms": 1}, Status.TOO_LARGE),
        (Crystal.of(np.full((3, 3), np.nan), [8], [[0, 0, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(4 * np.eye(3), [8], [[np.inf, 0, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(np.zeros((3, 3)), [8], [[0, 0, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(1e200 * np.eye(3), [8], [[0, 0, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(np.diag([300, 1, 1.0]), [8], [[0, 0, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(np.diag([0.5, 8, 8.0]), [8], [[0, 0, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(np.ones((3, 3)), [8], [[0, 0, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(SALT.lattice, [11, 95], SALT.frac), {}, Status.UNKNOWN_ELEMENT),
        (Crystal.of(SALT.lattice, [11, 0], SALT.frac), {}, Status.UNKNOWN_ELEMENT),
        (Crystal.of(SALT.lattice, [11, -7], SALT.frac), {}, Status.UNKNOWN_ELEMENT),
        (SALT, {"elements": (11, 8)}, Status.UNKNOWN_ELEMENT),
        (Crystal.of(SALT.lattice, [11, 11], SALT.frac), {"min_elements": 2}, Status.EXCLUDED),
        (Crystal.of(SALT.lattice, [11, 17], [[0, 0, 0], [0.01, 0, 0]]), {}, Status.TOO_CLOSE),
        (Crystal.of(SALT.lattice, [11, 17], [[0, 0, 0], [1, -1, 2]]), {}, Status.TOO_CLOSE),
        (SALT, {"min_distance": 3.0}, Status.TOO_CLOSE),
        # what is just allowed
        (SALT, {"max_atoms": 2, "min_elements": 2, "elements": (11, 17)}, Status.OK),
        (Crystal.of(4 * np.eye(3), [29], [[1e6, -1e6, 0]]), {}, Status.OK),
        (Crystal.of(4 * np.eye(3), [29], [[0.5, 1e6 + 0.5, 0]]), {}, Status.BAD_CELL),
        (Crystal.of(4 * np.eye(3), [29], [[0.5, 0.5, np.nan]]), {}, Status.BAD_CELL),
        (Crystal.of(np.diag([4, 4, np.inf]), [29], [[0, 0, 0]]), {}, Status.BAD_CELL),
        # the first that applies
        (Crystal.of(np.zeros((3, 3)), [8, 95], [[0, 0, 0]] * 2), {"max_atoms": 1}, Status.TOO_LARGE),
        (Crystal.of(np.zeros((3, 3)), [8, 95], [[0, 0, 0]] * 2), {}, Status.BAD_CELL),
        (Crystal.of(SALT.lattice, [95, 95], [[0, 0, 0]] * 2), {"min_elements": 2}, Status.UNKNOWN_ELEMENT),
        (Crystal.of(SALT.lattice, [11, 11], [[0, 0, 0]] * 2), {"min_elements": 2}, Status.EXCLUDED),
    ],
)
def test_statuses(crystal, options, status):
    assert status_of(crystal, **options) == status


def test_a_model_that_knows_all_elements_knows_no_others():
    everything = [Crystal.of(4 * np.eye(3), [z], [[0, 0, 0]]) for z in (0, 1, 118, 119)]
    wanted = [Status.UNKNOWN_ELEMENT, Status.OK, Status.OK, Status.UNKNOWN_ELEMENT]
    assert check(everything, Guards(), None).tolist() == wanted
    # What is allowed is allowed by both.
    assert check(everything, Guards(elements=(1, 119)), None).tolist() == [
        Status.UNKNOWN_ELEMENT, Status.OK, Status.UNKNOWN_ELEMENT, Status.UNKNOWN_ELEMENT,
    ]  # fmt: skip


def test_every_ill_in_one_batch_has_its_own_row():
    batch = {
        Status.NOT_BUILT: None,
        Status.TOO_CLOSE: Crystal.of(SALT.lattice, [11, 17], [[0, 0, 0], [0.01, 0, 0]]),
        Status.EXCLUDED: Crystal.of(SALT.lattice, [11, 11], SALT.frac),
        Status.BAD_CELL: Crystal.of(0.1 * SALT.lattice, [11, 17], SALT.frac),
        Status.UNKNOWN_ELEMENT: Crystal.of(SALT.lattice, [11, 95], SALT.frac),
        Status.TOO_LARGE: Crystal.of(SALT.lattice, [11, 17, 17], [*SALT.frac, [0.25, 0.25, 0.25]]),
        Status.OK: SALT,
    }
    for order in (list(batch), list(reversed(batch))):
        found = check([batch[status] for status in order], Guards(max_atoms=2, min_elements=2), KNOWN)
        assert found.tolist() == order


def test_self_images_count():
    chain = Crystal.of(np.diag([1.2, 8, 8]), [8], [[0, 0, 0]])
    assert status_of(chain, min_distance=1.1) == Status.OK
    assert status_of(chain, min_distance=1.3) == Status.TOO_CLOSE


def test_overlapping_atoms_are_too_close_where_bonds_are_asked_for():
    squeezed = Crystal.of(0.6 * SALT.lattice, SALT.numbers, SALT.frac)  # 1.7 Å apart: far beyond min_distance
    batch = [SALT, None, squeezed, SALT]
    found = check(batch, Guards(min_bond=0.7), KNOWN).tolist()
    assert found == [Status.OK, Status.NOT_BUILT, Status.TOO_CLOSE, Status.OK]
    assert check(batch, Guards(), KNOWN)[2] == Status.OK
    assert check([squeezed], Guards(min_bond=0.7), KNOWN).tolist() == [Status.TOO_CLOSE]


def test_each_crystal_is_judged_alone():
    batch = [SALT, None, Crystal.of(np.zeros((3, 3)), [8], [[0, 0, 0]]), SALT]
    assert check(batch, Guards(), KNOWN).tolist() == [
        Status.OK, Status.NOT_BUILT, Status.BAD_CELL, Status.OK,
    ]  # fmt: skip
    assert check([], Guards(), KNOWN).tolist() == []


TITANATE = Crystal.of(
    np.eye(3) * 3.9,
    [20, 22, 8, 8, 8],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
)
DENSITY = {"kind": "descriptor", "quantity": "density"}
LEAD = Crystal(TITANATE.lattice, np.where(TITANATE.numbers == 20, 82, TITANATE.numbers), TITANATE.frac)


@pytest.mark.parametrize(
    ("wish", "calcium", "lead"),
    [
        ({"exclude": ["toxic", "radioactive", "rare"]}, True, False),
        ({"forbidden_elements": "Ca"}, False, True),
        ({"elements": "Ca Sr Ba Ti O"}, True, False),
        ({"chemical_system": "Ca-Ti-O"}, True, False),
        ({"chemical_system": "Ca-Ti"}, False, False),
        ({"chemical_system": "Ca-Ti-O-N"}, False, False),
        ({"composition": "Ca2Ti2O6"}, True, False),
        ({"composition": "CaTiO2"}, False, False),
        ({"composition": {"Pb": 1, "Ti": 1, "O": 3}}, False, True),
        ({"composition": "Ca2TiO3"}, False, False),
        ({"composition": "PbTiO6"}, False, False),
        ({"exclude": "toxic", "composition": "CaTiO3"}, True, False),
    ],
)
def test_a_chemistry_that_is_not_wanted_is_excluded(wish, calcium, lead):
    guards = {"chemistry": wish}
    expected = [Status.OK if allowed else Status.EXCLUDED for allowed in (calcium, lead)]
    assert [status_of(crystal, **guards) for crystal in (TITANATE, LEAD)] == expected
    # what the sampler is kept from drawing is what the reward does not pay for
    constraints = Constraints.model_validate(wish)
    assert [meets(crystal, constraints) for crystal in (TITANATE, LEAD)] == [calcium, lead]


def test_a_formula_is_met_by_any_number_of_its_units():
    wish = Constraints.model_validate({"composition": "Ca2Ti2O6"})
    twice = Crystal.of(TITANATE.lattice, [20, 20, 22, 22, *[8] * 6], np.linspace(0, 0.9, 30).reshape(10, 3))
    odd = Crystal.of(TITANATE.lattice, [20, 20, 22, 22, *[8] * 5], np.linspace(0, 0.9, 27).reshape(9, 3))
    assert [meets(crystal, wish) for crystal in (TITANATE, twice, odd, SALT)] == [True, True, False, False]
    assert status_of(odd, chemistry={"elements": "Ca Ti O"}, min_distance=0) == Status.OK


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"exclude": "poisonous"}, "no named set"),
        ({"chemical_system": "Xx-O"}, "no element 'Xx'"),
        ({"chemical_system": "Pb-O", "exclude": "toxic"}, "required and excluded at once: Pb"),
    ],
)
def test_a_chemistry_that_makes_no_sense_says_why(wish, says):
    with pytest.raises((ValueError, InputError), match=says):
        Guards(chemistry=wish)


def test_only_a_chemistry_that_is_asked_for_changes_the_version():
    def digest(**guards):
        return build(parse({"kind": "property", "source": DENSITY, "guards": guards})).version.digest

    assert "chemistry" not in value_settings(Guards().model_dump(mode="json"))
    assert digest() == digest(chemistry=None)
    assert digest() != digest(chemistry={"exclude": ["toxic"]})
