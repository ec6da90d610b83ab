"""A funnel without processes: jobs are done here, in any order, by rules instead of networks."""

from __future__ import annotations

import json
import queue
import random
from pathlib import Path

import numpy as np
import pytest

from crystalforge.crystal import Crystal
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.screening.config import ScreenConfig
from crystalforge.screening.funnel import Funnel
from crystalforge.screening.jobs import crystal_of, plain
from crystalforge.screening.pool import Job
from crystalforge.thermo import HullStore

FACE_CENTRED = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
METALS = [11, 12, 19, 20, 37, 38, 55, 56, 3, 4]
ANIONS = [8, 9, 16, 17, 34, 35, 52, 53]


def crystal_number(index: int) -> Crystal:
    """Rock salts of all pairs, again and again; every third is a copy of an earlier one."""
    pair = index % (len(METALS) * len(ANIONS))
    metal, anion = METALS[pair // len(ANIONS)], ANIONS[pair % len(ANIONS)]
    return Crystal.of((5.6 + pair / 100) * FACE_CENTRED, [metal, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


class Rules:
    """What the workers would compute."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def do(self, name: str, kind: str, payload: dict) -> dict:
        self.asked.append(name)
        return getattr(self, kind)(**payload) | {"seconds": 0.1}

    def draw(self, first: int, count: int) -> dict:
        rows = [
            {"index": i, "spacegroup": 225, "log_prob": -float(i), "remembered": i % 17 == 0}
            | {"crystal": plain(crystal_number(i))}
            for i in range(first, first + count)
            if i % 5  # every fifth is unsound
        ]
        return {"drawn": count, "status": {"ok": len(rows), "too_close": count - len(rows)}, "crystals": rows}

    def score(self, judge: str, crystals: list) -> dict:
        numbers = [sum(value["numbers"]) for value in crystals]
        bias = {"one": 0.0, "two": 0.03, "three": 0.05, "wish": 0.0}[judge]
        fallen = [0.02 * (crystal_of(value).frac[1, 0] == 0.25) for value in crystals]
        energy = [
            None if n % 13 == 0 else (n % 29) / 50 - 0.15 + bias - lower
            for n, lower in zip(numbers, fallen, strict=True)
        ]
        return {"e_above_hull": energy, "energy_per_atom": energy, "reward": energy, "status": [0] * len(numbers)}

    def relax(self, crystals: list, fmax: float, steps: int, keep_symmetry: bool) -> dict:
        moved = [crystal_of(value) for value in crystals]
        after = [Crystal(c.lattice * 1.01, c.numbers, c.frac) for c in moved]
        return {
            "crystals": [None if int(c.numbers.sum()) % 11 == 0 else plain(c) for c in after],
            "energy": [-4.0] * len(after),
            "converged": [int(c.numbers.sum()) % 4 != 2 for c in after],
            "steps": [3] * len(after),
        }

    def shake(self, crystals: list, indices: list, shake: float, fmax: float, steps: int) -> dict:
        """Every fifth falls, from rock salt to zincblende; the others end a little higher."""
        before = [crystal_of(value) for value in crystals]
        falls = [index % 5 == 1 for index in indices]
        after = [
            Crystal(c.lattice, c.numbers, c.frac / (2 if fall else 1)) for c, fall in zip(before, falls, strict=True)
        ]
        return {
            "crystals": [plain(c) for c in after],
            "energy": [-4.02 if fall else -3.999 for fall in falls],
            "converged": [True] * len(after),
            "steps": [2] * len(after),
        }


class Here:
    """Stands in for the pool: `done.get` does one of the waiting jobs, in an order that a seed decides."""

    def __init__(self, folder: Path, rules: Rules, seed: int, die_after: int | None = None) -> None:
        self.folder, self.rules, self.order, self.die_after = folder, rules, random.Random(seed), die_after
        self.waiting: list[Job] = []
        self.done = self
        self.found: list[Job] = []

    def ask(self, urgency, name, kind, payload) -> None:
        self.waiting.append(Job(urgency, 0, name, kind, json.loads(json.dumps(payload))))

    def put(self, item) -> None:
        self.found.append(item[0])

    def get(self, timeout=None):
        if self.found:
            return self.found.pop(self.order.randrange(len(self.found))), None
        if not self.waiting:
            raise queue.Empty
        if self.die_after is not None:
            if self.die_after == 0:
                raise Killed
            self.die_after -= 1
        job = self.waiting.pop(self.order.randrange(len(self.waiting)))
        (self.folder / f"{job.name}.json").write_text(json.dumps(self.rules.do(job.name, job.kind, job.payload)))
        return job, None

    def forget(self) -> None:
        self.waiting.clear()


class Killed(BaseException):
    """SIGKILL, as far as one process can do it to itself."""


def config_of(**settings) -> ScreenConfig:
    judges = [{"kind": "ehull", "name": "one"}, {"kind": "ehull", "name": "two"}]
    values = {"judges": judges, "confirm": [{"kind": "ehull", "name": "three"}], "round": 16, "piece": 4, "top": 6}
    return ScreenConfig.model_validate(values | settings)


@pytest.fixture(scope="session")
def hull() -> HullStore:
    return HullStore.open("embedded")


@pytest.fixture
def make_funnel(tmp_path, hull):
    """Makes a funnel in tmp_path whose jobs are done in an order that `order` decides."""

    def make(config: ScreenConfig, *, order: int = 0, rules: Rules | None = None, folder=tmp_path, die_after=None):
        folder.mkdir(exist_ok=True)
        pool = Here(folder, rules or Rules(), order, die_after)
        known = Reference.from_crystals([crystal_number(4)], ["known"])
        return Funnel(folder, config, pool, known, hull, on_progress=lambda funnel: None), pool

    return make
