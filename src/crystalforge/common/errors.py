"""One exception for everything a user can put right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Bad input from outside: a file, a configuration, a server that is not there.

    The command line prints the message without a traceback and exits with code 2. Say what was seen, what was
    expected and what to do about it.

    >>> raise InputError("element 'Xx' is not in the periodic table", source="wish.yaml", record=3,
    ...                  remedy="use a symbol such as 'Ti'")
    Traceback (most recent call last):
    ...
    crystalforge.common.errors.InputError: wish.yaml, record 3: element 'Xx' is not in the periodic table.
      Remedy: use a symbol such as 'Ti'.
    """

    def __init__(
        self, problem: str, *, source: object = None, record: object = None, remedy: str | None = None
    ) -> None:
        problem = redacted(_without_empty_list(problem))
        source = redacted(str(source)) if source is not None else None
        remedy = redacted(_without_empty_list(remedy)) if remedy is not None else None
        self.problem, self.source, self.record, self.remedy = problem, source, record, remedy
        where = ", ".join(
            part
            for part in (
                str(source) if source is not None else "",
                f"record {record}" if record is not None else "",
            )
            if part
        )
        text = f"{where}: {problem}" if where else problem
        if remedy:
            text = f"{text.rstrip('.')}.\n  Remedy: {remedy.rstrip('.')}."
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries in the parallel tokeniser; keyword arguments need help to survive that.
        return (_rebuild, (self.problem, self.source, self.record, self.remedy))


def _rebuild(problem: str, source: object, record: object, remedy: str | None) -> InputError:
    return InputError(problem, source=source, record=record, remedy=remedy)


USER = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:token|secret|password|passwd|signature|credential)|sig|api[_-]?key|access[_-]?key)=)[^&#\s'\"]+",
    re.IGNORECASE,
)
HEADER = re.compile(r"\b(bearer|basic)(\s+)[\w.~+/=-]{6,}", re.IGNORECASE)
HIDDEN = "***"


def redacted(text: str) -> str:
    """`text` without what opens a door: user and password of an address, tokens and signatures in its query, what
    follows Bearer. For every message, log, tag and artifact.

    >>> redacted("https://" + "me:sesame@host/path?page=1&token=abc is away")
    'https://***@host/path?page=1&token=*** is away'
    """
    text = USER.sub(f"{HIDDEN}@", text)
    return HEADER.sub(rf"\1\2{HIDDEN}", QUERY.sub(rf"\1{HIDDEN}", text))


def without_secrets(value: Any) -> Any:
    """A copy of JSON-like `value` with every text `redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    return [without_secrets(item) for item in value] if isinstance(value, (list, tuple)) else value


def _without_empty_list(text: str) -> str:
    """A sentence that was to end with a list, and had nothing to list, says so.

    >>> _without_empty_list("choose one of: ")
    'choose one of: (there are none)'
    """
    return f"{text.rstrip()} (there are none)" if EMPTY.search(text) else text


EMPTY = re.compile(r"(?:[:,]|\b(?:one of|it has))\s*\.?\s*$")


def one_of(what: str, names: Iterable[str], *, nothing: str) -> str:
    """A remedy that lists what there is: `what`: a, b, c; `nothing` where there is nothing to list.

    >>> one_of("choose one of", ["b", "a"], nothing="there are none")
    'choose one of: b, a'
    >>> one_of("choose one of", [], nothing="there are none")
    'there are none'
    """
    listed = ", ".join(names)
    return f"{what}: {listed}" if listed else nothing


def missing_extra(module: str, extra: str, error: ImportError) -> InputError:
    """The error to raise when an optional dependency is absent: it names the command that installs it."""
    return InputError(f"{module} is not installed ({error})", remedy=f"pip install 'crystalforge[{extra}]'")
