"""One exception for everything a user can put right."""

from __future__ import annotations


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


def missing_extra(module: str, extra: str, error: ImportError) -> InputError:
    """The error to raise when an optional dependency is absent: it names the command that installs it."""
    return InputError(f"{module} is not installed ({error})", remedy=f"pip install 'crystalforge[{extra}]'")
