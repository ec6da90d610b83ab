"""A study: every variant with every seed, one evaluation, one table; interrupted and asked for again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections, load
from crystalforge.evaluation.metrics.statistics import Estimate
from crystalforge.platform.recipes import CHECKOUT, find_recipe
from crystalforge.studies.study import study, variants, write_table

RECIPES = CHECKOUT / "recipes"

LOOSE = {"min_distance": 0.0, "volume_per_atom": [1e-6, 1e6], "min_height": 1e-3}  # a hardly trained model's cells
SETTINGS: dict[str, Any] = {
    "data": {"source": {"kind": "prototypes"}, "limit": 150},
    "model": {"layers": 1, "heads": 2, "head_size": 8, "width": 16, "embedding": 8, "first_wyckoff_hidden": 8},
    "pretrain": {"epochs": 1, "batch_size": 64},
    "reward": {"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}, "guards": LOOSE},
    "service": {"mode": "in-process"},
    "finetune": {"steps": 2, "batch_size": 8, "monitor": {"every": 10, "max_kl": 7.0}},
    "evaluate": {"samples": 16, "nearest": False, "gallery": 1, "candidates": 5},
    "tracking": {"enabled": False},
    "study": [
        {"name": "ppo", "seeds": [0, 1]},
        {"name": "strict", "finetune": {"tau": 0.5, "monitor": {"min_unique": None}}},
    ],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("study")
    return out, study(from_sections(**SETTINGS), out)


def test_every_model_and_seed_has_a_line_with_intervals(done: tuple[Path, dict[str, Any]]) -> None:
    out, found = done
    assert list(found["models"]) == ["base", "ppo, 1", "ppo, 2", "strict"]
    lines = (out / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(found["models"])
    assert all("[" in line for line in lines[2:])
    csv = (out / "table.csv").read_text().splitlines()
    assert {line.count(",") for line in csv} == {csv[0].count(",")}
    assert Path(found["report"]).stat().st_size > 100_000


def test_seeds_are_different_models_and_different_crystals(done: tuple[Path, dict[str, Any]]) -> None:
    models = done[1]["models"]
    assert models["ppo, 1"]["mean_reward"] != models["ppo, 2"]["mean_reward"]


def test_a_study_that_is_done_is_not_done_again(done: tuple[Path, dict[str, Any]]) -> None:
    out, found = done
    stages = [*out.rglob("stage.json")]
    assert len(stages) == 1 + 1 + 3 + 1
    before = {path: path.stat().st_mtime_ns for path in stages}
    assert study(from_sections(**SETTINGS), out) == found
    assert {path: path.stat().st_mtime_ns for path in stages} == before


def test_a_variant_changes_what_it_names_and_nothing_else() -> None:
    found = [settings for _, settings in variants(from_sections(**SETTINGS))]
    assert [(item.seed, item.finetune.tau) for item in found] == [(0, 0.1), (1, 0.1), (0, 0.5)]
    assert [item.finetune.monitor.max_kl for item in found] == [7.0, 7.0, 7.0]
    assert [item.finetune.monitor.min_unique for item in found] == [0.5, 0.5, None]


def test_wrong_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    wrong = from_sections(**SETTINGS | {"study": [{"name": "typo", "finetune": {"taau": 1}}]})
    with pytest.raises(InputError, match="taau"):
        study(wrong, tmp_path / "out")
    with pytest.raises(InputError, match="no variants"):
        study(Config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_figure_that_was_not_measured_leaves_its_cell_empty(tmp_path: Path) -> None:
    nan = float("nan")
    known = {"stable_rate": Estimate(0.25, 0.2, 0.3, 9), "mean_e_above_hull": Estimate(0.1, 0.05, 0.15, 9)}
    write_table(tmp_path, [("a", None, known), ("b", None, {"stable_rate": Estimate(nan, nan, nan, 0)})])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2:] == ["| a | 0.100 [0.050, 0.150] | 25.0 [20.0, 30.0] |", "| b |  |  |"]
    assert (tmp_path / "table.csv").read_text().splitlines()[2] == "b,,,,,,,"


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_is_a_valid_configuration(file: Path) -> None:
    config = load(file)
    assert len(list(variants(config))) == sum(len(variant.seeds) for variant in config.study)


def test_recipes_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("stability") == RECIPES / "stability.yaml"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "stability.yaml").write_text("seed: 1\n")
    assert find_recipe("stability").read_text() == "seed: 1\n"
    with pytest.raises(InputError, match=r"mp20-pretrain, .*stability"):
        find_recipe("nonsense")
