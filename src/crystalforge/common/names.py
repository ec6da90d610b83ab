"""Names that other systems must take: what they refuse is refused when a configuration is read, not hours later."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from crystalforge.common.errors import InputError, redacted

LONGEST_NAME, LONGEST_ALIAS, LONGEST_EXPERIMENT = 250, 250, 500


def registered_name(text: str) -> str:
    """`text`, which a registry of models takes as a name. ValueError says what it does not take.

    MLflow refuses '/' and ':' and what a path would change; '@' parts name and alias in an address, and quotes end a
    search.

    >>> registered_name("my generator 2")
    'my generator 2'
    """
    bad = re.search(r"[/:@'\"`\\\x00-\x1f]", text)
    if bad:
        raise ValueError(f"the registry takes no {bad[0]!r} in a name: use letters, digits, '-', '_', '.' and spaces")
    if not text.strip() or text != text.strip() or text in (".", ".."):
        raise ValueError("is no name that the registry takes: begin and end with a letter or a digit")
    return _short(text, LONGEST_NAME)


def registered_alias(text: str) -> str:
    """`text`, which the registry takes as an alias of a version. ValueError says what it does not take.

    `latest` and `v1` are words of the registry's own: the newest version, and version 1.

    >>> registered_alias("production-eu")
    'production-eu'
    """
    if text.lower() == "latest" or re.fullmatch(r"[vV]\d+", text):
        raise ValueError(f"the registry keeps {text!r} for itself: choose a word such as 'candidate'")
    if not re.fullmatch(r"[\w-]+", text):
        raise ValueError("the registry takes letters, digits, '-' and '_' in an alias, and at least one of them")
    return _short(text, LONGEST_ALIAS)


def experiment_name(text: str) -> str:
    """`text`, which the tracking server takes as an experiment's name."""
    if not text.strip() or "\x00" in text:
        raise ValueError("is no name of an experiment")
    return _short(text, LONGEST_EXPERIMENT)


def without_password(text: str) -> str:
    """An address without user and password: what stands in a configuration is recorded, shown and archived."""
    if redacted(text) != text and "@" in text:
        raise ValueError(
            "user and password in an address would be recorded with the run: leave them out, and give them by the "
            "environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_URI, or ~/.netrc)"
        )
    return text


def checked(rule: str, text: str, *, source: str) -> str:
    """`text` by one of the rules above, for options of the command line; InputError where it breaks it."""
    try:
        return {"name": registered_name, "alias": registered_alias}[rule](text)
    except ValueError as error:
        raise InputError(f"{text!r}: {error}", source=source, remedy="give another name") from None


def _short(text: str, longest: int) -> str:
    if len(text.encode()) > longest:
        raise ValueError(f"has {len(text.encode())} bytes, {longest} are the most")
    return text


RegisteredName = Annotated[str, AfterValidator(registered_name)]
RegisteredAlias = Annotated[str, AfterValidator(registered_alias)]
ExperimentName = Annotated[str, AfterValidator(experiment_name)]
Address = Annotated[str, AfterValidator(without_password)]
