"""The workflow engine's local runner tells everything; a person at a terminal wants the stages' own lines.

All of it goes to a log file, the stages' lines and the engine's warnings to the terminal.
"""

from __future__ import annotations

import io
import re
from typing import TextIO

from crystalforge.common.errors import redacted

ENGINE_LINE = re.compile(r"^\d\d:\d\d:\d\d\.\d+ - (?P<level>[A-Z]+) - (?P<text>.*)$")
TASK = re.compile(r"Executing task \S*'(?P<name>[\w-]+)'")
COLORS = re.compile(r"\x1b\[[0-9;]*m")
INDENT = "    "  # before every line that a step printed
EXECUTOR = "[KFP Executor"
INPUT_FOLLOWS = "Got executor_input"  # and then an indented JSON object


class StepOutput(io.TextIOBase):
    """A text stream to put in place of stdout while the pipeline runs.

    >>> import io, sys
    >>> stream = StepOutput(sys.stdout, io.StringIO())
    >>> _ = stream.write("08:00:00.000 - INFO - Executing task 'ingest'\\n    tokenise 10/10\\n")
    <BLANKLINE>
    ingest
    tokenise 10/10
    """

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal, self._log = terminal, log
        self._rest = ""
        self._object_ends: str | None = None  # the line that closes the object that is being told
        self._in_outputs = False

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in map(redacted, lines):
            self._log.write(line + "\n")
            shown = self._shown(line)
            if shown is not None:
                self._terminal.write(shown + "\n")  # not print(): the engine replaces it to indent
                self._terminal.flush()
        self._log.flush()
        return len(text)

    def _shown(self, line: str) -> str | None:
        """What of a line the terminal gets."""
        engine = ENGINE_LINE.match(COLORS.sub("", line))
        if engine is not None:
            self._in_outputs = engine["text"].endswith("outputs:")
            task = TASK.search(engine["text"])
            if task is not None:
                return f"\n{task['name']}"
            return None if engine["level"] == "INFO" else f"{engine['level'].lower()}: {engine['text']}"
        if self._in_outputs or not line.startswith(INDENT):
            return None
        if EXECUTOR in line:
            # Steps that run side by side are indented more than once.
            depth = len(line) - len(line.lstrip())
            self._object_ends = depth * " " + "}" if INPUT_FOLLOWS in line else None
            return None
        if self._object_ends is not None:
            self._object_ends = None if line == self._object_ends else self._object_ends
            return None
        return line.strip() or None
