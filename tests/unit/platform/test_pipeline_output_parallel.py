"""Steps of a ParallelFor are indented twice by the engine: their lines are shown all the same."""

from __future__ import annotations

import io

from crystalforge.platform.pipeline_output import StepOutput

ENGINE = """08:41:35.204 - INFO - Executing task \x1b[96m'finetune'\x1b[0m
        [KFP Executor 2026-11-21 08:41:35,509 INFO]: Got executor_input:
        {
            "inputs": {
                "seed": 0
            }
        }
        finetune  1/2 step
        [KFP Executor 2026-11-21 08:41:36,509 INFO]: Wrote executor output file
"""


def test_lines_of_parallel_steps_are_shown_without_the_engines_input() -> None:
    terminal = io.StringIO()
    StepOutput(terminal, io.StringIO()).write(ENGINE)
    assert terminal.getvalue() == "\nfinetune\nfinetune  1/2 step\n"
