"""The workflow engine's local runner, and what it must be kept from.

It replaces `python3` in every word of a step's command by the interpreter's path, parameters included: a folder such as
`lib/python3.11` would become another one, and an interpreter's path with a space two words. Its steps are processes of
their own, which learn of SIGTERM through us.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from crystalforge.common import termination
from crystalforge.common.environment import environment
from crystalforge.common.errors import InputError
from crystalforge.platform.pipeline_output import StepOutput
from crystalforge.stages.base import ERROR, PIPELINE_VARIABLE

PARAMETERS = "--executor_input"  # what follows this word of a command is no program text
STEPS_END_S = 20.0  # how long steps that were told to end are waited for
STEP = "kfp.dsl.executor_main"  # in the command line of every step


def execute(pipeline: Callable[..., Any], values: Mapping[str, Any], place: Path) -> None:
    """Run a pipeline by KFP's local runner in `place`; a step's own error message becomes ours.

    On SIGTERM the steps under way get it too, and have ended when `termination.Terminated` is raised here.
    """
    from kfp import local

    began, plain = time.time(), builtins.print
    with (
        environment({PIPELINE_VARIABLE: str(os.getpid())}),
        warnings.catch_warnings(),
        _parameters_untouched(),
        termination.telling(_pass_on),
    ):
        warnings.filterwarnings("ignore", module="kfp")
        logging.getLogger("kfp").setLevel(logging.WARNING)
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(place / "pipeline"),
            raise_on_error=True,
            enable_caching=True,
        )
        try:
            with (
                (place / "pipeline.log").open("a", encoding="utf-8") as log,
                redirect_stdout(StepOutput(sys.stdout, log)),
                termination.whole_steps(STEPS_END_S),
            ):
                pipeline(**values)
        except RuntimeError:
            if termination.asked():
                raise termination.Terminated from None
            # Variants of a sweep have folders of their own below ours; notes of earlier attempts tell nothing.
            for note in sorted(place.rglob(ERROR)):
                if note.stat().st_mtime >= began:
                    raise InputError(json.loads(note.read_text())["error"]) from None
            raise
        finally:
            builtins.print = plain  # the engine indents what its steps print, and after parallel ones forgets to stop
    if termination.asked():
        raise termination.Terminated


@contextmanager
def _parameters_untouched() -> Iterator[None]:
    from kfp.local import subprocess_task_handler as handler

    original = handler.replace_python_executable

    def in_program_alone(command: Sequence[str], executable: str) -> list[str]:
        words = list(command)
        at = words.index(PARAMETERS) if PARAMETERS in words else len(words)
        return [*original(words[:at], shlex.quote(executable)), *words[at:]]

    handler.replace_python_executable = in_program_alone
    try:
        yield
    finally:
        handler.replace_python_executable = original


def _pass_on() -> None:
    """SIGTERM to every step of ours: they write what they have and end."""
    for pid in _steps():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _steps() -> list[int]:
    """Processes below this one whose command is a step's, the steps alone and not the shells around them."""
    below: dict[int, list[int]] = {}
    commands: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                below.setdefault(parent, []).append(int(entry.name))
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    found, waiting = [], [os.getpid()]
    while waiting:
        pid = waiting.pop()
        waiting += below.get(pid, [])
        if STEP in commands.get(pid, []):
            found.append(pid)
    return found
