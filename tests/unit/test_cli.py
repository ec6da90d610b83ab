from __future__ import annotations

import subprocess
import sys
import time

import pytest
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
