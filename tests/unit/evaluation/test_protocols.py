"""The protocols that judge relaxed crystals, with a real relaxation by a potential small enough to be solved by hand.

No published table can be reproduced from the structures at hand (each needs its own generated crystals), so these are
the definitions' worked examples: where the crystals come to rest, how far that is and what lies on which side of which
limit is known beforehand.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.config import EvaluateConfig, RelaxSettings
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.evaluate import evaluate_samples
from crystalforge.evaluation.judging.relaxing import PotentialRelaxer
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.summary import summarise
from crystalforge.potentials.base import Prediction, Scale
from crystalforge.rewards.protocol import RewardVersion, Scores, Status

PROTOCOLS = ("crystalformer-rl", "mattergen", "lemat-genbench", "lemat-genbench-as-drawn")
ROOT = Path(__file__).parents[3]
PLACES = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])  # of rest, fractional
STIFFNESS = 4.0  # eV/Å^2 that pulls an atom to its place
SIDE = 4.0  # Å: cubes of two atoms


class Springs:
    """Each atom hangs on a spring at its place in the CsCl arrangement; the cell is left alone."""

    name, digest = "springs", "springs"
    scale: Scale = "mp2020"
    elements = frozenset(range(1, 119))

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        moves = [(c.frac - PLACES - np.round(c.frac - PLACES)) @ c.lattice for c in crystals]
        return Prediction(
            np.array([STIFFNESS / 2 * float((m**2).sum()) for m in moves]),
            [-STIFFNESS * m for m in moves],
            np.zeros((len(crystals), 3, 3)),
        )


class Displacement:
    """E_hull: an offset by the first element, and what the springs still hold, per atom. `shift`: another opinion."""

    def __init__(self, name: str, shift: float = 0.0) -> None:
        self.version, self.shift = RewardVersion(name, name), shift

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        offset = {3: -0.02, 11: 0.05, 19: 0.15, 37: 0.05}
        strain = [np.nan if c is None else Springs().predict([c]).energy[0] / 2 for c in crystals]
        energy = (
            np.array([np.nan if c is None else offset[int(c.numbers.min())] for c in crystals]) + strain + self.shift
        )
        status = np.where(np.isnan(energy), Status.NOT_BUILT, Status.OK).astype(np.int32)
        return Scores(-np.nan_to_num(energy, nan=5.0), status, {"e_above_hull": energy})


def cube(first: int, second: int, move: float = 0.0) -> Crystal:
    """CsCl arrangement with the second atom `move` Å along x from its place."""
    return Crystal.of(SIDE * np.eye(3), [first, second], PLACES + [[0, 0, 0], [move / SIDE, 0, 0]])


# Strain energy of a move d is 4/2 d^2 / 2 = d^2 eV/atom: 0.5 Å lifts a crystal by 0.25 eV/atom until it is relaxed.
SAMPLES = [
    cube(3, 9, 0.5),  # LiF: -0.02 when relaxed: stable by both limits, new
    cube(3, 9, 0.4),  # the same when relaxed
    cube(11, 17, 0.5),  # NaCl: 0.05: stable for mattergen, metastable for lemat, known
    cube(19, 35, 0.5),  # KBr: 0.15: stable for neither
    cube(37, 53, 0.5),  # RbI: 0.05, new
    cube(3, 35, 0.2),  # LiBr: -0.02 when relaxed, 0.02 as generated: there metastable by lemat, stable for mattergen
    None,
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory):
    return evaluate_samples(
        [SampleSet.of("mine", SAMPLES)], Displacement("reward"), Reference.from_crystals([cube(11, 17)], ["salt"]),
        EvaluateConfig(protocols=PROTOCOLS, relax=RelaxSettings()),
        out=tmp_path_factory.mktemp("protocols"), held_out=[Displacement("other", shift=0.03)],
        relaxer=PotentialRelaxer(Springs(), fmax=1e-3, steps=500), quiet=True,
    )  # fmt: skip


def test_crystals_come_to_rest_where_the_springs_pull_them(table) -> None:
    rows = table.to_pylist()
    assert [row["relaxed_converged"] for row in rows] == [True] * 6 + [False]
    energies = [row["relaxed_e_above_hull"] for row in rows]
    assert energies[:6] == pytest.approx([-0.02, -0.02, 0.05, 0.15, 0.05, -0.02], abs=1e-4)
    assert np.isnan(energies[6])
    # The cell is free to shift: moving one of two atoms by d displaces each by d/2, in Å.
    assert [row["relaxed_rmsd"] for row in rows[:3]] == pytest.approx([0.25, 0.2, 0.25], abs=2e-3)


def test_mattergen_judges_what_was_relaxed(table) -> None:
    rows = table.to_pylist()
    assert [row["stable"] for row in rows] == [False] * 5 + [True, False], "as generated, the strain hides all but one"
    assert [row["stable:mattergen"] for row in rows] == [True, True, True, False, True, True, False]
    assert [row["sun:mattergen"] for row in rows] == [True, False, False, False, True, True, False]
    found = summarise(table, protocol="mattergen")["models"]["mine"]["metrics"]
    assert found["sun_rate"]["value"] == 3 / 7
    assert found["mean_relaxed_rmsd"]["value"] == pytest.approx((4 * 0.25 + 0.2 + 0.1) / 6, abs=2e-3)


def test_lemat_judges_the_mean_of_its_ensemble(table) -> None:
    """Means over the two judges: LiF and LiBr -0.005, NaCl and RbI 0.065, KBr 0.165 eV/atom."""
    rows = table.to_pylist()
    assert [row["stable:lemat-genbench"] for row in rows] == [True, True, False, False, False, True, False]
    assert [row["metastable:lemat-genbench"] for row in rows] == [False, False, True, False, True, False, False]
    found = summarise(table, protocol="lemat-genbench")["models"]["mine"]["metrics"]
    assert found["sun_rate"]["value"] == 2 / 7, "LiF once, and LiBr"
    assert found["msun_rate"]["value"] == 1 / 7, "RbI; NaCl is known"


def test_lemat_as_drawn_judges_what_the_model_wrote(table) -> None:
    """LiBr is at 0.035 eV/atom for the mean of the judges as it was drawn; the strain puts all others above 0.1."""
    rows = table.to_pylist()
    assert not any(row["stable:lemat-genbench-as-drawn"] for row in rows)
    assert [row["msun:lemat-genbench-as-drawn"] for row in rows] == [False] * 5 + [True, False]


def test_the_table_of_the_recipe_says_what_each_judge_says(table) -> None:
    """The other judge sees everything 0.03 eV/atom higher: LiF and LiBr at 0.01, RbI at 0.08."""
    spec = importlib.util.spec_from_file_location("protocols_recipe", ROOT / "recipes" / "protocols.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    found = recipe.figures(table, "crystalformer-rl")
    assert found["crystals"] == "7"
    part = {name: text.split(" [")[0] for name, text in found.items()}
    assert (
        part["`lemat-genbench`, relaxed: S.U.N."] == part["`lemat-genbench`, relaxed, CHGNet alone: S.U.N."] == "28.6"
    )
    assert part["`lemat-genbench`, relaxed, CHGNet alone: M.S.U.N."] == "14.3", "RbI"
    assert part["`lemat-genbench`, relaxed, SevenNet-0 alone: S.U.N."] == "0.0"
    assert part["`lemat-genbench`, relaxed, SevenNet-0 alone: M.S.U.N."] == "42.9", "LiF, LiBr and RbI"
    assert part["`mattergen`, both: S.U.N."] == "42.9"
    assert part["`mattergen`, SevenNet-0: stable"] == "71.4", "LiF twice, NaCl, RbI, LiBr"
    assert part["`lemat-genbench`, as drawn: M.S.U.N."] == "14.3"
