"""Examples in docstrings as code blocks: what follows `>>>` up to the next empty line."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

EXAMPLE = re.compile(r"(?m)^((?:>>> .*\n?)(?:(?:>>> |\.\.\. |\S).*\n?)*)")


class Doctests(Extension):
    """Fences every example before the docstring is read as Markdown."""

    def on_object(self, *, obj: Any, **rest: Any) -> None:
        """Called by griffe for each object it has loaded."""
        del rest
        if obj.docstring is not None:
            plain = re.sub(r"\s*# doctest: \+SKIP", "", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```python\n{found[1].rstrip()}\n```\n", plain)
