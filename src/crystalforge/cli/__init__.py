"""The command line: one verb for each stage, and the tools a chemist asks for beside them.

Imports are inside the verbs: `--help` must not wait for torch.
"""

from __future__ import annotations

import sys

# In the order of the panels that `--help` shows.
from crystalforge.cli import stages, screen, tools, platform  # isort: skip
from crystalforge.cli.common import app

__all__ = ["app", "main", "platform", "screen", "stages", "tools"]


def main() -> None:
    """Entry point: users' mistakes, and what the machine refuses, are one message and exit code 2."""
    from crystalforge.cli.ending import ending

    with ending():
        app()
    sys.exit(0)
