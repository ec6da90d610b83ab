"""Rewards on predicted properties: one property with a goal, and the figure of merit of a dielectric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from crystalforge.crystal import Crystal
from crystalforge.potentials.base import PropertyModel, Values
from crystalforge.rewards.base import Judgement, failed_status
from crystalforge.rewards.config import Descriptor, DielectricReward, Goal, Maximise, PropertyReward, Target
from crystalforge.rewards.protocol import Status

AMU_PER_A3 = 1.66053906660
"""g/cm^3 of one atomic mass unit per Å^3 (CODATA 2018)."""


class DescriptorModel:
    """Properties that are read off the structure, exactly."""

    elements = frozenset(range(1, 119))

    def __init__(self, config: Descriptor) -> None:
        self.name = config.quantity
        self.digest = f"descriptor:{config.quantity}"

    def predict_values(self, crystals: Sequence[Crystal]) -> Values:
        """See `PropertyModel.predict_values`."""
        rows = [[self._value(crystal)] for crystal in crystals]
        return Values(np.array(rows, dtype=np.float64).reshape(-1, 1), (None,) * len(crystals))

    def _value(self, crystal: Crystal) -> float:
        match self.name:
            case "density":
                from ase.data import atomic_masses

                return float(atomic_masses[crystal.numbers].sum() / crystal.volume * AMU_PER_A3)
            case "volume_per_atom":
                return crystal.volume / len(crystal)
            case "n_elements":
                return float(len(set(crystal.numbers.tolist())))
            case _:
                return float(len(crystal))


def reach(goal: Goal, values: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
    """How well values meet a goal; see the goal's class for the formula."""
    if isinstance(goal, Maximise):
        return goal.scale * values
    if isinstance(goal, Target):
        return -np.abs(values - goal.value) / goal.width
    return -np.maximum(np.maximum(goal.low - values, values - goal.high), 0.0) / goal.width


class PropertyJudge:
    """One output of a property model, driven to a goal."""

    def __init__(self, config: PropertyReward, model: PropertyModel) -> None:
        self._config, self._model = config, model
        self.elements: frozenset[int] | None = model.elements
        self.component_names = ("property",)
        self.digests = {"model": model.digest}

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        answer = self._model.predict_values(crystals)
        width = answer.values.shape[1]
        known = self._config.column < width
        # A batch in which the model failed everywhere has one column of NaN, whatever the model's width.
        assert known or np.isnan(answer.values).all(), f"column {self._config.column} of {width}"
        values = answer.values[:, self._config.column] if known else answer.values[:, 0]
        status = failed_status(answer.problems, values)
        if self._config.bounds is not None:
            low, high = self._config.bounds
            status[(status == Status.OK) & ~((values >= low) & (values <= high))] = Status.OUT_OF_BOUNDS
        return Judgement(reach(self._config.goal, values), status, {"property": values})


class DielectricJudge:
    """Total dielectric constant x band gap; see `DielectricReward`."""

    component_names = ("dielectric_constant", "band_gap", "disagreement")

    def __init__(self, config: DielectricReward, tensors: Sequence[PropertyModel], gap: PropertyModel) -> None:
        self._config, self._tensors, self._gap = config, list(tensors), gap
        self.elements: frozenset[int] | None = frozenset.intersection(*(model.elements for model in (*tensors, gap)))
        names = ["tensor", *(f"tensor{place}" for place in range(2, len(self._tensors) + 1))]
        self.digests = {name: model.digest for name, model in zip(names, tensors, strict=True)} | {"gap": gap.digest}

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        config = self._config
        gaps = self._gap.predict_values(crystals)
        gap = gaps.values[:, 0]
        status = failed_status(gaps.problems, gap)
        low, high = config.gap_bounds
        status[(status == Status.OK) & ~((gap >= low) & (gap <= high))] = Status.OUT_OF_BOUNDS
        low, high = config.constant_bounds
        answers = []
        for model in self._tensors:
            answer = model.predict_values(crystals)
            constant = mean_eigenvalue(answer.values, config.order)
            found = failed_status(answer.problems, constant)
            found[(found == Status.OK) & ~((constant >= low) & (constant <= high))] = Status.OUT_OF_BOUNDS
            status = np.where(status == Status.OK, found, status).astype(np.int32)
            answers.append(constant)
        if config.even_electrons:
            odd = np.array([crystal.numbers.sum() % 2 == 1 for crystal in crystals], dtype=bool)
            status[(status == Status.OK) & odd] = Status.EXCLUDED
        mean, spread = np.mean(answers, axis=0), np.std(answers, axis=0)
        cautious = np.maximum(mean - config.k * spread, 0.0)
        return Judgement(
            cautious * np.maximum(gap, 0.0),
            status,
            {"dielectric_constant": cautious, "band_gap": gap, "disagreement": spread},
        )


def mean_eigenvalue(components: Float64[np.ndarray, "B K"], order: Sequence[str]) -> Float64[np.ndarray, " B"]:
    """Mean eigenvalue of symmetric 3 x 3 tensors: a third of the trace, whatever the frame.

    components: the six independent ones in `order`, or one column that is the mean already.
    """
    if components.shape[1] == 1:
        return components[:, 0]
    assert components.shape[1] == 6, f"a symmetric tensor has 6 components, the model gives {components.shape[1]}"
    return components[:, [order.index(name) for name in ("xx", "yy", "zz")]].mean(axis=1)
