from __future__ import annotations

import io

from crystalforge.platform.pipeline_output import StepOutput

ENGINE = """08:41:35.204 - INFO - Executing task \x1b[96m'ingest'\x1b[0m
08:41:35.204 - INFO - Streamed logs:

    [KFP Executor 2026-11-21 08:41:35,509 INFO]: Got executor_input:
    {
        "inputs": {
            "seed": 0
        }
    }
    tokenise  1/2 crystals
    [KFP Executor 2026-11-21 08:41:36,509 INFO]: Wrote executor output file

08:43:31.386 - INFO - Task \x1b[96m'ingest'\x1b[0m finished with status SUCCESS
08:43:31.387 - INFO - Task \x1b[96m'ingest'\x1b[0m outputs:
    dataset: Artifact( name='dataset',
08:43:31.387 - ERROR - Task failed
"""


def test_the_terminal_gets_the_stages_lines_and_the_log_gets_everything() -> None:
    terminal, log = io.StringIO(), io.StringIO()
    stream = StepOutput(terminal, log)
    for start in range(0, len(ENGINE), 7):  # the engine prints in pieces
        stream.write(ENGINE[start : start + 7])
    assert log.getvalue() == ENGINE
    shown = terminal.getvalue().splitlines()
    assert shown[:3] == ["", "ingest", "tokenise  1/2 crystals"]
    assert shown[-1] == "error: Task failed"
    assert not any("KFP" in line or "seed" in line or "Artifact" in line for line in shown)
