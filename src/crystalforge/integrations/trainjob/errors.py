"""Which failures of an API server pass, and what it says of those that do not."""

from __future__ import annotations

import json
from typing import Any


def network_errors() -> tuple[type[Exception], ...]:
    """What a connection that breaks off, or an answer that was cut short, raises."""
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError, json.JSONDecodeError)


def passing(status: int | None) -> bool:
    """Whether an HTTP status may be another one in a moment; 0: no answer at all."""
    return status in (None, 0, 429) or status >= 500


def message(error: Any) -> str:
    """The API server's own words in an ApiException."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
