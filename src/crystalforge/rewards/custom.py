"""A user's own function as a reward."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import Prediction, predict_isolated
from crystalforge.rewards.base import Judgement, failed_status
from crystalforge.rewards.config import CustomReward

ENTRY_POINTS = "crystalforge.rewards"

CALL_ATOMS = 100_000
"""Atoms in one call of the function: in practice the whole batch."""


class CustomJudge:
    """Calls the function with the crystals that passed the guards.

    When it raises for a batch, the batch is halved until the crystal that it raises for is alone: that one gets the
    floor and the status FAILED. A function that raises for everything thus floors everything, which the golden
    crystals bring to light at start-up.
    """

    component_names = ("value",)
    elements: frozenset[int] | None = None

    def __init__(self, config: CustomReward) -> None:
        self._function = find(config.function)
        self._options = config.options
        self.digests = {"function": _digest(self._function)}

    @classmethod
    def of(cls, function: Callable[..., Any], source: bytes, options: Mapping[str, Any]) -> CustomJudge:
        """A function at hand; `source` is what tells it from another one."""
        judge = cls.__new__(cls)
        judge._function, judge._options = function, dict(options)
        judge.digests = {"function": hashlib.sha256(source).hexdigest()}
        return judge

    def judge(self, crystals: Sequence[Crystal]) -> Judgement:
        """See `Judge.judge`."""
        answer = predict_isolated(
            crystals, self._call, elements=frozenset(range(1, 119)), max_atoms=CALL_ATOMS, forces=False, stress=False
        )
        status = failed_status(answer.problems, answer.energy)
        return Judgement(answer.energy, status, {"value": answer.energy})

    def _call(self, crystals: Sequence[Crystal]) -> Prediction:
        values = np.asarray(self._function(list(crystals), **self._options), dtype=np.float64)
        if values.shape != (len(crystals),):
            raise ValueError(f"the function answered shape {values.shape} for {len(crystals)} crystals")
        return Prediction(values)


def find(name: str) -> Callable[..., Any]:
    """The function of `package.module:function` or of an entry point; InputError says what is missing."""
    if ":" not in name:
        found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if name not in found:
            raise InputError(
                f"no entry point {name!r} in the group {ENTRY_POINTS!r} (there: {', '.join(found) or 'none'})",
                remedy="write `package.module:function`, or install the package that declares it",
            )
        return found[name].load()
    module_name, function_name = name.split(":", 1)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{module_name!r} cannot be imported ({error})",
            source=name,
            remedy="install it, or add its folder to PYTHONPATH",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{module_name!r} has no function {function_name!r}", source=name)
    return function


def _digest(function: Callable[..., Any]) -> str:
    """Of the file that defines the function: editing it makes another reward. Its imports are not covered."""
    try:
        source = Path(inspect.getfile(function)).read_bytes()
    except (TypeError, OSError):
        source = repr(function).encode()
    return hashlib.sha256(source).hexdigest()
