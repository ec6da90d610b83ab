"""What a worker draws: which space groups, once something is demanded."""

from __future__ import annotations

from pathlib import Path

from crystalforge.screening.jobs import Workbench
from crystalforge.stages.models import find_model
from tests.unit.screening.conftest import config_of


def test_groups_are_as_probable_as_the_model_finds_them():
    model = find_model(Path("mp20"))
    free = Workbench(model, config_of(), 0)._weights()
    heusler = Workbench(model, config_of(constraints={"composition": "MgAlRh2", "max_atoms": 16}), 0)._weights()
    assert free[224] / free.sum() < 0.2
    assert heusler[224] / heusler.sum() > 0.8
    assert heusler[220] / heusler.sum() < free[220] / free.sum()
