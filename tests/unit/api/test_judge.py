"""Judges by name, configuration and function; sets of crystals by a protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import crystalforge
from crystalforge.crystal import Crystal
from crystalforge.rewards import Reward

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SALT = Crystal.of(5.69 * FCC, [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
MAGNESIA = Crystal.of(4.26 * FCC, [12, 8], [[0, 0, 0], [0.5, 0.5, 0.5]])
CRUSHED = Crystal.of(0.5 * FCC, [12, 8], [[0, 0, 0], [0.5, 0.5, 0.5]])


def light(crystals: list[Crystal]) -> list[float]:
    """Minus the mean atomic number."""
    return [-float(crystal.numbers.mean()) for crystal in crystals]


def test_a_function_of_ones_own_judges_with_guards_and_a_floor() -> None:
    judge = crystalforge.judge(light, floor=-99.0)
    assert isinstance(judge, Reward)
    found = judge([SALT, None, CRUSHED])
    assert found["reward"].tolist() == [-14.0, -99.0, -99.0]
    assert found["status"].tolist() == ["ok", "not built", "bad cell"]
    assert judge.version.name == "light"
    assert crystalforge.judge(light, floor=-99.0).version.digest == judge.version.digest
    assert crystalforge.judge(lambda crystals: [0.0] * len(crystals)).version.digest != judge.version.digest
    with pytest.raises(crystalforge.InputError, match="did you mean 'floor'"):
        crystalforge.judge(light, flor=1.0)


def test_a_configuration_and_a_file_say_the_same(tmp_path: Path) -> None:
    wish = {"kind": "descriptor", "quantity": "density"}
    settings = {"kind": "property", "source": wish, "goal": {"kind": "maximise"}}
    (tmp_path / "reward.yaml").write_text(f"reward: {settings}")
    first, second = crystalforge.judge(settings), crystalforge.judge(tmp_path / "reward.yaml")
    assert first.version.digest == second.version.digest
    assert first([SALT, MAGNESIA])["reward"][1] > first([SALT, MAGNESIA])["reward"][0]
    with pytest.raises(crystalforge.InputError, match="one of chgnet"):
        crystalforge.judge("chgnett")


def test_chgnet_and_an_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("chgnet")
    judge = crystalforge.judge("chgnet")
    judged = judge([SALT, MAGNESIA])
    assert (np.abs(judged["e_above_hull"]) < 0.1).all()
    found = crystalforge.evaluate(
        {"known": [SALT, SALT, MAGNESIA], "other": [MAGNESIA, None]}, judge=judge, known=[SALT], out=tmp_path / "e"
    )
    figures = found.to_frame()["value"]
    assert figures["Unique", "known"] == pytest.approx(2 / 3)
    assert figures["Novel", "known"] == pytest.approx(1 / 3)
    assert figures["Stable", "other"] == 0.5
    assert found.crystals["novel"].tolist() == [False, False, True, True, False]
    assert found.crystals.formulas == ["NaCl", "NaCl", "MgO", "MgO", ""]
    assert "Stable" in found._repr_html_()
    assert (tmp_path / "e" / "crystals.parquet").exists()
    with pytest.raises(crystalforge.InputError, match="unknown protocol"):
        crystalforge.evaluate([SALT], protocol="mine", judge=judge)
