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
    ],
)
def test_statuses(crystal, options, status):
    assert status_of(crystal, **options) == status


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
    ],
)
def test_a_chemistry_that_is_not_wanted_is_excluded(wish, calcium, lead):
    guards = {"chemistry": wish}
    expected = [Status.OK if allowed else Status.EXCLUDED for allowed in (calcium, lead)]
    assert [status_of(crystal, **guards) for crystal in (TITANATE, LEAD)] == expected
    # what the sampler is kept from drawing is what the reward does not pay for
    constraints = Constraints.model_validate(wish)
    assert [meets(crystal, constraints) for crystal in (TITANATE, LEAD)] == [calcium, lead]


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
