"""How every verb ends: with its result, with one message and an exit code, or, by a mistake of ours, with a traceback.

2: a user's mistake, a service that is away, or what the system says of a file, a disk, a port. 130: interrupted.
143: told to end (SIGTERM). 1: our mistake. No secret is in any of the texts.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from crystalforge.common import termination
from crystalforge.common.errors import InputError, redacted
from crystalforge.common.system import of_the_system

TRACEBACK = "CRYSTALFORGE_TRACEBACK"  # set: the system's errors with their traceback


@contextmanager
def ending() -> Iterator[None]:
    """Around a verb: turns exceptions into messages and exit codes."""
    try:
        with termination.handled():
            yield
    except InputError as error:
        _leave(str(error), 2)
    except termination.Terminated:
        print("\nterminated; what was computed is kept, the same command goes on", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Every block has been left. The interpreter's own end waits for the threads of others, and the pod is killed.
        os._exit(termination.EXIT_CODE)
    except KeyboardInterrupt:
        print("\ninterrupted; what was computed is kept, the same command goes on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has left, as `| head` does. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        said = of_the_system(error)
        if said is None or os.environ.get(TRACEBACK):
            print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
            sys.exit(1 if said is None else 2)
        _leave(said, 2)


def _leave(text: str, code: int) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)
