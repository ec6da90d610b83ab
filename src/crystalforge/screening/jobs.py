"""What the workers do: draw, score, relax. Each job is a function of its payload and of the settings alone, so that it
may be done anywhere, any number of times, with one result.

Crystals travel as plain lists; JSON keeps every bit of a float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.rewards.protocol import Reward, Status
from crystalforge.screening.config import ScreenConfig

Plain = dict[str, Any]


def plain(crystal: Crystal) -> Plain:
    """A crystal as JSON has it."""
    return {
        "lattice": crystal.lattice.ravel().tolist(),
        "numbers": crystal.numbers.tolist(),
        "frac": crystal.frac.ravel().tolist(),
    }


def crystal_of(value: Plain) -> Crystal:
    """The crystal again, bit by bit."""
    return Crystal.of(value["lattice"], value["numbers"], value["frac"])


class Workbench:
    """What one worker has loaded; everything is loaded when it is first needed."""

    def __init__(self, model: Path, config: ScreenConfig, seed: int) -> None:
        self._model_path, self._config, self._seed = model, config, seed
        self._loaded: dict[str, Any] = {}

    def do(self, kind: str, payload: Plain) -> Plain:
        """The result of one job."""
        return getattr(self, f"_{kind}")(**payload)

    def _draw(self, first: int, count: int) -> Plain:
        """Crystals first .. first + count - 1: how many fell at what, and the sound ones."""
        from crystalforge.crystal.convert import to_crystals
        from crystalforge.data.fingerprint import fingerprints, orbit_codes
        from crystalforge.model.sampling.sampler import draw_spacegroups, sample
        from crystalforge.rewards.guards import check

        config = self._config
        loaded = self._once("model", self._load_model)
        if config.spacegroups is not None:
            groups = np.resize(np.asarray(config.spacegroups, dtype=np.int64), first + count)[first:]
        else:
            weights = self._once("weights", self._weights)
            groups = draw_spacegroups(weights, count, seed=self._seed, first_index=first)
        samples = sample(
            loaded.model, groups, seed=self._seed, first_index=first, constraints=config.constraints,
            temperature=config.temperature, top_p=config.top_p,
        )  # fmt: skip
        crystals = to_crystals(samples.tokens, primitive=True)
        known_elements = self._once("elements", self._elements)
        status = check(crystals, config.geometry, known_elements)
        codes = orbit_codes(fingerprints(samples.tokens))
        remembered = np.isin(codes, self._once("fingerprints", self._fingerprints))
        counts = {Status(code).name.lower(): int(n) for code, n in enumerate(np.bincount(status)) if n}
        return {
            "drawn": count,
            "status": counts,
            "crystals": [
                {
                    "index": int(samples.index[row]),
                    "spacegroup": int(samples.tokens.spacegroup[row]),
                    "log_prob": float(samples.total_log_prob[row]),
                    "remembered": bool(remembered[row]),
                    "crystal": plain(crystal),
                }
                for row in np.flatnonzero(status == Status.OK).tolist()
                if (crystal := crystals[row]) is not None
            ],
        }

    def _score(self, judge: str, crystals: Sequence[Plain]) -> Plain:
        """What one judge says: E_hull and energy in eV/atom, None where it has no answer; the value of a wish."""
        from crystalforge.evaluation.judging.scoring import judged_by

        reward: Reward = self._once(f"judge {judge}", lambda: self._judge(judge))
        said = {name: values.to_pylist() for name, values in judged_by(reward, list(map(crystal_of, crystals))).items()}
        answered = [status == Status.OK for status in said["status"]]
        return {
            name: [_finite(value) if ok else None for value, ok in zip(said[name], answered, strict=True)]
            for name in ("reward", "e_above_hull", "energy_per_atom")
            if name in said
        } | {"status": said["status"]}

    def _relax(self, crystals: Sequence[Plain], fmax: float, steps: int, keep_symmetry: bool) -> Plain:
        """Where the crystals come to rest, and with which energy (eV/atom); None where one does not."""
        from crystalforge.potentials.relax import relax

        potential = self._once("relaxer", self._relaxer)
        found = relax(potential, list(map(crystal_of, crystals)), fmax=fmax, steps=steps, fix_symmetry=keep_symmetry)
        return {
            "crystals": [
                plain(crystal) if problem is None else None
                for crystal, problem in zip(found.crystals, found.problems, strict=True)
            ],
            "energy": [_finite(e / len(crystal)) for e, crystal in zip(found.energy, found.crystals, strict=True)],
            "converged": found.converged.tolist(),
            "steps": found.steps.tolist(),
        }

    def _shake(self, crystals: Sequence[Plain], indices: Sequence[int], shake: float, fmax: float, steps: int) -> Plain:
        """Where crystals come to rest that are moved a little, without any symmetry."""
        from crystalforge.screening.shaking import shaken

        moved = [
            plain(shaken(crystal_of(crystal), shake, seed=self._seed, index=index))
            for crystal, index in zip(crystals, indices, strict=True)
        ]
        return self._relax(moved, fmax, steps, keep_symmetry=False)

    # ---- what is loaded

    def _once(self, name: str, make: Any) -> Any:
        if name not in self._loaded:
            self._loaded[name] = make()
        return self._loaded[name]

    def _load_model(self) -> Any:
        from crystalforge.model.checkpoint import load_model

        return load_model(self._model_path)

    def _weights(self) -> np.ndarray:
        """How often each space group is drawn: as in training or, where something is demanded, as the model has it."""
        from crystalforge.common.errors import InputError
        from crystalforge.model.sampling.groups import spacegroup_law

        loaded = self._once("model", self._load_model)
        shares = loaded.info.get("spacegroup_weights")
        if shares is None:
            raise InputError(
                "the model does not say how often each space group occurred in its training set",
                source=self._model_path,
                remedy="give --spacegroup",
            )
        weights = np.array(shares, dtype=np.float64)
        return spacegroup_law(loaded.model, weights, self._config.constraints, seed=self._seed)

    def _fingerprints(self) -> np.ndarray:
        """Of the training set, as they lie beside a model's weights (`data.fingerprint`); empty where they do not."""
        file = self._model_path / "fingerprints.npy"
        return np.load(file, allow_pickle=False) if file.is_file() else np.zeros(0, np.uint64)

    def _elements(self) -> frozenset[int]:
        """What the first judge knows."""
        return self._first().judge.elements

    def _first(self) -> Any:
        name = self._config.judge_names[0]
        return self._once(f"judge {name}", lambda: self._judge(name))

    def _judge(self, name: str) -> Reward:
        from crystalforge.rewards import build

        config = self._config
        named = dict(zip([*config.judge_names, *config.confirm_names], [*config.judges, *config.confirm], strict=True))
        if name == WISH:
            assert config.wish is not None
            return build(config.wish.reward)
        return build(named[name])

    def _relaxer(self) -> Any:
        from crystalforge.potentials import load

        if self._config.judges[0].potential == self._config.relaxer:  # one copy of the weights
            return self._first().judge.potential
        return load(self._config.relaxer)


WISH = "wish"
"""Name of the reward that values the property wished for."""


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
