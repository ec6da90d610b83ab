"""A stage that many processes make up is recorded by one, and its means are not part of what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from crystalforge.config import from_sections
from crystalforge.stages.base import KEY, RECORD, Stage, StaleOutputs, leads


def stage(out: Path, **pretrain: object) -> Stage:
    config = from_sections(pretrain=pretrain, tracking={"enabled": False})
    return Stage("pretrain", config, out, sections=("seed", "model", "pretrain"))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), ({"WORLD_SIZE": "1", "RANK": "3"}, True), ({"WORLD_SIZE": "4", "RANK": "0"}, True),
     ({"WORLD_SIZE": "4", "RANK": "3"}, False)],
)  # fmt: skip
def test_who_records(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert leads() is expected


def test_only_the_first_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with stage(tmp_path / rank) as running:
            assert running.finished is None
            running.finish("content", {"nll": 1.0})
        assert running.outcome["content"] == "content"
    assert not (tmp_path / "1").exists()
    assert {path.name for path in (tmp_path / "0").iterdir()} == {KEY, RECORD}
    for rank, said in (("1", ""), ("0", "done before")):
        monkeypatch.setenv("RANK", rank)
        with stage(tmp_path / "0") as again:
            assert again.finished == again.outcome != {}
        assert said in capsys.readouterr().err


def test_a_run_goes_on_by_other_means_but_not_with_other_settings(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), stage(tmp_path):
        raise RuntimeError("killed")
    other = {"engine": {"name": "deepspeed", "zero_stage": 2}, "accumulation": 4}
    with stage(tmp_path, **other) as running:
        running.finish("content", {})
    with pytest.raises(StaleOutputs), stage(tmp_path, batch_size=7):
        pass
