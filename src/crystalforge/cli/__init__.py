"""The command line: one verb for each stage, and the tools a chemist asks for beside them.

Imports are inside the verbs: `--help` must not wait for torch.
"""

from __future__ import annotations

import sys

# In the order of the panels that `--help` shows.
from crystalforge.cli import stages, tools, platform  # isort: skip
from crystalforge.cli.common import app

__all__ = ["app", "main", "platform", "stages", "tools"]


def main() -> None:
    """Entry point: users' mistakes are one message and exit code 2, never a traceback."""
    from crystalforge.common.errors import InputError

    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; what was computed is kept, the same command goes on", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        # The class stands above the rewards package, which is not imported for commands that do not need it.
        if type(error).__name__ != "RewardUnavailable":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
