"""What is to be recorded, held back while the tracking server is away, and told of when it could not be recorded.

The outputs of a stage are worth more than the record of their making: a server that is away, a run that somebody
deleted, a store that takes no files cost the record, never the result.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crystalforge.common.errors import InputError, redacted

PAUSE_S = 30.0  # before a server that was away is asked again
# A request gives up within half a minute: 10 s to connect, 10 s to answer, and once more. MLflow's own patience is
# four minutes, for servers that limit their clients' rates; whoever has one sets these variables.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
VENDORS = {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "alembic", "psycopg", "boto3", "botocore"} | {
    "s3transfer"
}
# Answers that asking again does not change.
REFUSALS = {
    "BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED", "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND", "NOT_FOUND",
}  # fmt: skip


def is_fault(error: BaseException) -> bool:
    """Whether an exception is the tracking server's, its store's or the network's."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in VENDORS


def reason(error: BaseException) -> str:
    """The first line of what an exception says, without secrets."""
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return redacted(str(text).strip().splitlines()[0][:300])


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """Inside, what the tracking server at `uri` refuses, or does not answer, is an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_fault(error):
            raise
        remedy = "start it, correct MLFLOW_TRACKING_URI or tracking.uri, or set tracking.enabled=false"
        if strangers(error):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that it knows"
        raise InputError(
            f"the tracking server refused or did not answer: {reason(error)}", source=uri, remedy=remedy
        ) from None


def strangers(error: BaseException) -> bool:
    """Whether the server refuses because it does not know us, or because our account may not do that."""
    if getattr(error, "error_code", None) in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return True
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None) in (401, 403) or bool(re.search(r"\b40[13]\b", reason(error)))


@dataclass
class _Due:
    what: str
    send: Callable[[], object]
    files: bool


class Recorder:
    """Sends what is given to it, in order; what fails waits, is sent again later, and is reported in the end.

    whose: as messages call what is recorded. Files and everything else wait separately: they go to two stores.
    """

    def __init__(self, whose: str, uri: str) -> None:
        self._whose, self._uri = whose, uri
        self._due: list[_Due] = []
        self._not_before = {True: 0.0, False: 0.0}
        self._lost: dict[str, str] = {}  # what was refused for good: why
        self._why: dict[str, str] = {}  # of what waits
        self._told = False

    def send(self, what: str, call: Callable[[], object], *, files: bool = False) -> None:
        """Make the call now, or as soon as the server answers. Raises nothing of the server's."""
        if not any(due.what == what and due.send == call for due in self._due):
            self._due.append(_Due(what, call, files))
        if time.monotonic() >= self._not_before[files]:
            self._drain(files)

    def close(self, outputs: object) -> None:
        """Send what still waits; say what could not be recorded of the finished work in `outputs`."""
        for files in (False, True):
            if not self._drain(files):
                break  # a server that does not answer takes no files either
        missing = {due.what: self._why.get(due.what, "the server did not answer") for due in self._due} | self._lost
        if missing:
            said = "; ".join(f"{what} ({why})" for what, why in missing.items())
            self._print(f"not recorded at {redacted(self._uri)}: {said}.\n  What was computed is whole, in {outputs}.")

    def _drain(self, files: bool) -> bool:
        """Whether the server answered to all that waits."""
        for due in [due for due in self._due if due.files is files]:
            try:
                due.send()
            except Exception as error:
                if not is_fault(error):
                    raise
                if getattr(error, "error_code", None) in REFUSALS:
                    self._lost[due.what] = reason(error)
                    self._due.remove(due)
                    self._tell(due.what, error)
                    continue
                self._why[due.what] = reason(error)
                self._not_before[files] = time.monotonic() + PAUSE_S
                self._tell(due.what, error)
                return False
            self._due.remove(due)
        return True

    def _tell(self, what: str, error: BaseException) -> None:
        if not self._told:
            self._told = True
            self._print(f"{what} cannot be recorded at {redacted(self._uri)} ({reason(error)}); the work goes on")

    def _print(self, text: str) -> None:
        print(f"warning: {self._whose}: {text}", file=sys.stderr, flush=True)


def impatient() -> None:
    """Let MLflow's client give up soon, unless the environment says otherwise."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
