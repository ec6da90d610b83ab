"""What the system says of a file, a disk, an address or a port, as one message: the rule for all verbs and steps.

Whole or absent (`common.files`) is the other half of it: what was written before a disk was full stays as it was.
"""

from __future__ import annotations

import errno
import os
import re
import sys

from crystalforge.common.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_HERE = (errno.EACCES, errno.EPERM, errno.EROFS)
WHOLE = "what was whole before is whole"


def told(error: Exception) -> int:
    """Print one message for an error that is not ours, and give the exit code 2; ours is raised again."""
    said = of_the_system(error)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr, flush=True)
    return 2


def of_the_system(error: BaseException) -> str | None:
    """What to say of an error that is not a mistake of ours; None for one that is.

    >>> of_the_system(FileNotFoundError(2, "No such file or directory", "x"))
    'x: no such file or directory.\\n  Remedy: correct the path.'
    >>> of_the_system(KeyError("x")) is None
    True
    """
    # The class stands above this module, and is not imported for verbs that do not need it.
    if isinstance(error, InputError) or type(error).__name__ == "RewardUnavailable":
        return str(error)
    if type(error).__module__.split(".")[0] in ("mlflow", "sqlalchemy"):
        text = str(getattr(error, "message", error)).strip().splitlines()[0]
        return str(InputError(text, source="tracking server", remedy="check MLFLOW_TRACKING_URI or tracking.uri"))
    number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    if number is None:
        # Writers in other languages pass the system's words on in their own exceptions; Rust's with the number.
        found = [int(n) for n in re.findall(r"\(os error (\d+)\)", str(error))]
        found += [n for n in (*FULL, *NOT_HERE, errno.EIO) if os.strerror(n) in str(error)]
        if not found:
            return None
        number, text = found[0], os.strerror(found[0])
    assert number is not None
    file = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if isinstance(file, bytes):
        file = os.fsdecode(file)
    text = text or os.strerror(number)
    where = file if isinstance(file, str) else None
    return str(InputError(text[0].lower() + text[1:], source=where, remedy=_remedy(number)))


def _remedy(number: int) -> str:
    if number in FULL:
        return f"make room, or write elsewhere; {WHOLE}, and the same command goes on"
    if number in NOT_HERE:
        return f"give a place that you may write to (and read from); {WHOLE}"
    return {
        errno.EISDIR: "give a file, this is a folder",
        errno.ENOTDIR: "give a folder; a part of this path is a file",
        errno.EEXIST: "give another path: there is something else of this name",
        errno.ENOTEMPTY: "give another path: there is something else of this name",
        errno.ENOENT: "correct the path",
        errno.ENAMETOOLONG: "give a shorter name",
        errno.EADDRINUSE: "give another port, or end what listens there",
        errno.EADDRNOTAVAIL: "give an address that this machine has",
        errno.ECONNREFUSED: "check the address, and that the service runs",
        errno.EIO: f"check the disk; {WHOLE}",
        errno.EMFILE: "allow more open files (ulimit -n)",
        errno.ENOMEM: "free memory, or give this machine more",
    }.get(number, "mend what the system names")
