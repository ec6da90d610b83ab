"""What a pipeline step does around its stage: it refuses an input that is not the announced one, and hands over
outputs, not what serves to resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crystalforge.stages.component import execute

MADE = "ab" * 32


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What `ingest` would have handed over."""
    place = tmp_path / "artifact"
    place.mkdir()
    (place / "stage.json").write_text(json.dumps({"content": MADE}))
    return place


def test_an_input_with_another_content_than_announced_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        execute("pretrain", str(tmp_path / "w"), sections={}, inputs={"data": str(data)}, outputs=str(tmp_path / "o"),
                expected={"data": "cd" * 32})  # fmt: skip
    assert caught.value.code == 2
    assert "abababababab" in capsys.readouterr().err
    assert "cdcdcdcdcdcd" in json.loads((tmp_path / "w" / "error.json").read_text())["error"]


@pytest.mark.parametrize("announced", [MADE, ""])
def test_the_announced_one_is_taken_and_only_outputs_are_handed_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: str
) -> None:
    def stage(config: Any, data: Path, out: Path) -> dict[str, Any]:
        for name in ("store/x.npy", "shards/1.npz", "downloads/big.csv", "checkpoint-3/state"):
            (out / name).parent.mkdir(parents=True)
            (out / name).write_text("x")
        return {"content": "ef" * 32, "metrics": {"rows": 3, "name": "n", "many": [1]}}

    monkeypatch.setattr("crystalforge.stages.ingest.ingest", stage)
    metadata: dict[str, Any] = {}
    execute("ingest", str(tmp_path / "w"), sections={}, inputs={"data": str(data)}, outputs=str(tmp_path / "o"),
            metadata=[metadata], content=str(tmp_path / "deep" / "hash"), expected={"data": announced})  # fmt: skip
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["store"]
    assert (tmp_path / "deep" / "hash").read_text() == "ef" * 32
    assert metadata == {"rows": 3, "name": "n", "content": "ef" * 32}
