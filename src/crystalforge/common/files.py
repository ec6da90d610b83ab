"""Files that are either whole or absent, and hashes of what is in them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crystalforge.common.errors import InputError

LOCK = ".lock"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        fsync(temporary)
        share(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success make it durable and put it in place of `path`.

    An existing directory is moved aside first and removed last, so that at every instant either the old or the new
    one can be found (the old one under `.<name>.old` in the worst case, where `recover_directory` finds it).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        for item in temporary.rglob("*"):
            if not item.is_symlink():
                share(item)
            if item.is_file():
                fsync(item)
        fsync(temporary)
        share(temporary)
        old = path.with_name(f".{path.name}.old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
        fsync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold `directory` (made if need be) for this process alone; InputError when another process holds it.

    The hold ends with the process, however that ends. A directory that is still empty afterwards is removed.
    """
    new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another process is writing here", source=directory, remedy="wait for it, or give another directory"
            ) from error
        except OSError:  # a file system without locks: there is nobody to ask
            pass
        try:
            yield
        finally:
            if new and not any(item.name != LOCK for item in directory.iterdir()):
                path.unlink(missing_ok=True)
                with suppress(OSError):
                    directory.rmdir()


def recover_directory(path: Path) -> None:
    """Undo an interrupted `atomic_directory`: put the old directory back when the new one never arrived."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.replace(old, path)


def share(path: Path) -> None:
    """Give a file or directory the mode that the user's umask means it to have.

    Temporary files are private, and some writers (safetensors) leave what they write private: of what one step hands
    over, another user's step could read a part.
    """
    mode = path.stat().st_mode & 0o7777
    wanted = (mode | (0o777 if path.is_dir() else 0o666)) & ~umask()
    if wanted != mode:
        path.chmod(wanted)


def umask() -> int:
    """This process's, asked without changing it where the system tells (Linux)."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("Umask:")[2].split()[0], 8)
    except (OSError, IndexError, ValueError):
        found = os.umask(0o022)
        os.umask(found)
        return found


def fsync(path: Path) -> None:
    """Ask the operating system to put `path` (a file or a directory) on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
