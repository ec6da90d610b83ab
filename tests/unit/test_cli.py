from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from typer.main import get_command

from crystalforge.cli import app

HELP_SECONDS = 1.0
VERBS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "crystalforge.cli", *arguments], capture_output=True, text=True)


def test_help_does_not_wait_for_the_slow_packages() -> None:
    call("--help")  # warms the file cache
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert call("--help").returncode == 0
        times.append(time.perf_counter() - began)
    assert min(times) < HELP_SECONDS, f"--help took {min(times):.2f} s"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_names_it(verb: str) -> None:
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert command.help
    assert f"crystalforge {verb}" in (command.epilog or "")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("finetune.stepz=3", "did you mean 'steps'"),
        ("finetune.steps=many", "finetune.steps = 'many'"),
        ("reward.kind=beauty", "beauty"),
        ("seed", "--set section.key=value"),
    ],
)
def test_wrong_parameters_are_one_message_and_exit_code_2(assignment: str, said: str, tmp_path) -> None:
    done = call("ingest", "--out", str(tmp_path / "out"), "--set", assignment)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_input_names_the_path_and_the_remedy(tmp_path) -> None:
    done = call("pretrain", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Remedy" in done.stderr


UNTRACKED = ("--set", "tracking.enabled=false")


def ingest_directory(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    source = ("--set", "data.source.kind=cif-dir", "--set", f"data.source.path={folder}")
    return call("ingest", "--out", str(out), *source, *UNTRACKED)


def test_unusable_records_are_counted_and_listed_but_not_fatal(tmp_path: Path) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    salt.to(str(folder / "salt.cif"))
    (folder / "torn.cif").write_text((folder / "salt.cif").read_text()[:150])
    generator = np.random.default_rng(0)
    crowd = Structure(Lattice.from_parameters(9, 10, 11, 80, 85, 95), ["C"] * 22, generator.random((22, 3)))
    crowd.to(str(folder / "crowd.cif"))
    done = ingest_directory(folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {Path(reject["file"]).name for reject in rejects} == {"torn.cif", "crowd.cif"}
    for reject in rejects:
        assert reject["reason"]
        assert reject["remedy"]
    (crowded,) = [reject for reject in rejects if "crowd" in reject["file"]]
    assert "22" in json.dumps(crowded)


def test_a_data_set_without_a_usable_record_is_an_error_that_names_the_rejects(tmp_path: Path) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    assert ingest_directory(folder, tmp_path / "none").returncode == 2
    (folder / "torn.cif").write_text("data_x\n_cell_length_a 3\n")
    done = ingest_directory(folder, tmp_path / "out")
    assert done.returncode == 2
    assert "rejects.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "rejects.jsonl").exists()


def test_a_missing_checkpoint_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    for place in ("data", "base"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "stage.json").write_text('{"content": "x", "key": "x"}')
    arguments = ("--data", str(tmp_path / "data"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "out"))
    done = call("finetune", *arguments, *UNTRACKED)
    assert done.returncode == 2
    assert "Remedy" in done.stderr
    missing = call("sample", "--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "s"), "--spacegroup", "1")
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr
