"""The loop from a run's crystals back to a predictor: the how-to's commands as written, and the rules of choice."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from crystalforge.cli import app
from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.tools.export import ExportSettings, export_training_set, limits, pick

pytest.importorskip("matgl")
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "active-learning.md"
FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
TINY = {"epochs": 1, "units": 8, "blocks": 1, "batch_size": 16}


def salt(a: float, cation: int, anion: int) -> Crystal:
    return Crystal.of(a * FCC, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def write_known(path: Path) -> None:
    """Rock salts of 40 compositions whose constant follows from the cell."""
    rng = np.random.default_rng(0)
    rows = []
    for cation in (3, 4, 11, 12, 19, 20, 37, 38, 55, 56):
        for anion in (8, 9, 16, 17):
            a = float(rng.uniform(4.2, 6.0))
            structure = {
                "lattice": (a * FCC).ravel().tolist(),
                "atomic_numbers": [cation, anion],
                "frac_coords": [0.0, 0, 0, 0.5, 0.5, 0.5],
            }
            rows.append(structure | {"eps_total": 2 * a})
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_run(out: Path) -> None:
    """A real evaluation of a handful of crystals: one not built, one of overlapping atoms, one twice."""
    from crystalforge.evaluation.config import EvaluateConfig
    from crystalforge.evaluation.drawing.samples import SampleSet
    from crystalforge.evaluation.evaluate import evaluate_samples
    from crystalforge.evaluation.matching.reference import Reference
    from crystalforge.rewards import build, parse

    crystals = [salt(5.7, 11, 17), salt(4.3, 12, 8), None, salt(1.0, 11, 17), salt(5.7, 11, 17), salt(5.7, 20, 16)]
    known = salt(4.0, 3, 9)
    evaluate_samples(
        [SampleSet.of("tuned", crystals)],
        build(parse({"kind": "ehull"})),
        Reference.from_crystals([known], ["LiF"]),
        EvaluateConfig(samples=len(crystals)),
        out=out,
        quiet=True,
    )


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The guide's commands, run in a folder that has what they need; their records."""
    folder = tmp_path_factory.mktemp("loop")
    text = GUIDE.read_text()
    settings = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[0])
    settings["predictor"] |= TINY
    (folder / "predictor.yaml").write_text(yaml.safe_dump(settings | {"tracking": {"enabled": False}}))
    write_known(folder / "dielectric.parquet")
    write_run(folder / "runs" / "latest" / "evaluate")
    records = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)[0].splitlines():
            program, *arguments = shlex.split(line)
            assert program == "crystalforge"
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert done.exit_code == 0, done.output
            records.append(json.loads(done.stdout))
    return folder, records


def test_the_guide_closes_the_loop(walked: tuple[Path, list[dict]]) -> None:
    folder, (first, second, exported, third) = walked
    assert (exported["rows"], exported["candidates"]) == (6, 3), "not built, overlapping and repeated ones are left out"
    rows = pq.read_table(folder / "work" / "disputed.parquet").to_pylist()
    assert len(rows) == exported["exported"] == 3
    for row in rows:
        answers = [row["judge_first"], row["judge_second"]]
        assert row["eps_total"] == pytest.approx(np.mean(answers))
        assert row["disagreement"] == pytest.approx(abs(answers[0] - answers[1]) / 2)
        assert row["relaxed"]
        assert row["converged"]
    volumes = {row["formula"]: Crystal.of(row["lattice"], [1, 1], row["frac_coords"]).volume for row in rows}
    assert volumes["MgO"] != pytest.approx(salt(4.3, 12, 8).volume, rel=1e-4), "it was relaxed"
    assert not (folder / "work" / "disputed.relaxed.jsonl").exists()
    for part in ("train", "val", "test"):
        extra = third["metrics"]["n_extra"] if part == "train" else 0
        assert third["metrics"][f"n_{part}"] == first["metrics"][f"n_{part}"] + extra
    assert third["metrics"]["n_extra"] + third["metrics"]["n_in_val_or_test"] == 3
    assert third["metrics"]["n_extra"] > 0
    assert second["content"] != first["content"] != third["content"]


def test_judges_may_be_columns_and_one_may_teach(walked: tuple[Path, list[dict]], tmp_path: Path) -> None:
    folder, _ = walked
    table = folder / "runs" / "latest" / "evaluate" / "crystals.parquet"
    model = folder / "work" / "first" / "predictor" / "model"
    settings = ExportSettings(label="e", teacher="e_above_hull")
    record = export_training_set(
        table, tmp_path / "out.parquet", settings, predictors={"m": model}, columns=["e_above_hull"]
    )
    assert record["label_by"] == "e_above_hull"
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["e"] for row in rows] == [row["judge_e_above_hull"] for row in rows]
    assert not any(row["relaxed"] for row in rows)
    spread = [row["disagreement"] for row in rows]
    assert spread == sorted(spread, reverse=True)
    least = sorted(row["e"] for row in rows)[1]
    some = export_training_set(
        table, tmp_path / "some.parquet", settings.model_copy(update={"at_least": {"e_above_hull": least}}),
        predictors={"m": model}, columns=["e_above_hull"],
    )  # fmt: skip
    assert some["candidates"] == record["candidates"] - 1
    for options, problem in (
        ({"columns": ["nonsense", "e_above_hull"], "predictors": {}}, "has no column nonsense"),
        ({"columns": ["e_above_hull"], "predictors": {}}, "judges: e_above_hull"),
        ({"columns": ["reward", "status"], "predictors": {}}, "is no judge"),
    ):
        with pytest.raises(InputError, match=problem):
            export_training_set(table, tmp_path / "no.parquet", settings, **options)
    assert not (tmp_path / "no.parquet").exists()


def test_an_interrupted_relaxation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crystalforge.potentials import relax as module
    from crystalforge.tools import export

    calls = []

    class Still:
        digest = "still"

    def relax(potential, crystals, **options):
        calls.append(crystals[0].volume)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return module.Relaxed(list(crystals), np.zeros(1), np.ones(1, bool), np.ones(1, np.int32), (None,))

    monkeypatch.setattr(module, "relax", relax)
    crystals = [salt(a, 11, 17) for a in (5.0, 5.5, 6.0)]
    with pytest.raises(KeyboardInterrupt):
        export._relax(Still(), crystals, tmp_path / "j.jsonl")  # type: ignore[arg-type]
    with (tmp_path / "j.jsonl").open("a") as stream:
        stream.write('{"key": "cut sho')
    found, converged = export._relax(Still(), crystals, tmp_path / "j.jsonl")  # type: ignore[arg-type]
    assert [crystal.volume for crystal in found if crystal] == [crystal.volume for crystal in crystals]
    assert converged.all()
    assert len(calls) == 4, "the first one was not relaxed again"


def test_limits_are_columns_and_numbers() -> None:
    assert limits(["band_gap=0.5", "n_atoms=2"]) == {"band_gap": 0.5, "n_atoms": 2.0}
    with pytest.raises(InputError, match="'band_gap' is not of the form"):
        limits(["band_gap"])


def test_no_composition_and_no_system_is_taken_too_often() -> None:
    compositions = [{"Na": 1, "Cl": 1}, {"Cl": 1, "Na": 1}, {"Na": 2, "Cl": 1}, {"Na": 1, "Cl": 2}, {"K": 1}, {"Rb": 1}]
    spread = np.array([5.0, 6.0, 4.0, 3.0, np.nan, 1.0])
    assert pick(compositions, spread, ExportSettings(per_system=2)).tolist() == [1, 2, 5]
    assert pick(compositions, spread, ExportSettings(per_composition=2, per_system=2)).tolist() == [1, 0, 5]
    assert pick(compositions, spread, ExportSettings(number=2)).tolist() == [1, 2]
