"""Two runs at once, and the workflow engine kept from what it would do to paths."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crystalforge.common.environment import environment, one_thread_each
from crystalforge.config import Config
from crystalforge.platform import engine
from crystalforge.platform.run import _new_place, _point_latest, _unfinished


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: _new_place(Config(), tmp_path), range(24)))
        list(pool.map(lambda place: _point_latest(tmp_path, place), places))
    assert len({place.name for place in places}) == 24
    assert all((place / "config.yaml").read_text() == (places[0] / "config.yaml").read_text() for place in places)
    assert any(re.fullmatch(r"\d{8}-\d{6}-\w{6}-\d+", place.name) for place in places)
    assert (tmp_path / "latest").resolve().parent == tmp_path.resolve()
    assert _unfinished(Config(), tmp_path) in places
    assert _unfinished(Config(seed=1), tmp_path) is None


def test_the_engine_replaces_its_program_and_no_parameter() -> None:
    from kfp.local import subprocess_task_handler as handler

    original = handler.replace_python_executable
    command = ["sh", "-ec", "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main", "code", "--executor_input",
               '{"path": "/opt/lib/python3.11/site-packages"}', "--function_to_execute", "fetch"]  # fmt: skip
    with engine._parameters_untouched():
        found = handler.replace_python_executable(command, "/my place/bin/python")
    assert found[2] == "_KFP_RUNTIME=true '/my place/bin/python' -m kfp.dsl.executor_main"
    assert found[3:] == command[3:]
    assert handler.replace_python_executable is original


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)

    def inside() -> None:
        with environment({"GIVEN": "2", "NEW": "3"}), one_thread_each():
            assert (os.environ["GIVEN"], os.environ["NEW"]) == ("2", "3")
            assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("3", "1")
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert dict(os.environ) == before


def test_its_log_holds_no_secret(tmp_path: Path) -> None:
    import io

    from crystalforge.platform.pipeline_output import StepOutput

    log = io.StringIO()
    StepOutput(io.StringIO(), log).write("    uri: http://svc:" + "hunter2@host/x\n    token=hunter2?token=hunter2\n")
    assert "svc" not in log.getvalue()
    assert log.getvalue().count("hunter2") == 1, "what is no address stays"
