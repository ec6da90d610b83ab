"""DVC: which version of its data a run read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_file, sha256_json
from crystalforge.data.sources.open import local_files

if TYPE_CHECKING:
    from crystalforge.data.config import DataConfig


def data_version(path: str | None) -> str:
    """The content hash that DVC recorded for `path`; empty for data that it does not track, or has not seen yet.

    The hash is in a `.dvc` file beside `path`, one folder up or, for a directory whose files are tracked one by one, in
    it; several hashes are made into one. It travels as a pipeline parameter, so that a step is redone when the data
    behind an unchanged path is another. Raises InputError when a `.dvc` file cannot be read.
    """
    if not path or "://" in path:
        return ""
    target = Path(os.path.abspath(path))
    found = {
        os.path.relpath(out, target): recorded
        for note in _notes(target)
        for out, recorded in _outs(note)
        if out == target or target in out.parents
    }
    if list(found) == ["."]:
        return found["."]
    return sha256_json(found)[:32] if found else ""


def source_version(data: DataConfig) -> str:
    """What tells two states of the source of crystals apart: DVC's hash where the files are what DVC recorded, else a
    hash of the files that are read. Empty for a source that is not on this machine, and for the embedded one."""
    return version_of(getattr(data.source, "path", None), local_files(data))


def version_of(path: str | None, files: Sequence[Path]) -> str:
    """`data_version` of `path` where `files`, what is read of it, are still what DVC recorded; else their own hash.

    A folder below a tracked one has no hash of its own, and files change without 'dvc add': an earlier result is only
    then taken for one of these data when it was.
    """
    recorded = data_version(path)
    if not files or (recorded and path and _as_recorded(Path(os.path.abspath(path)))):
        return recorded
    top = os.path.commonpath([file.parent for file in files])
    return f"sha256-{sha256_json({os.path.relpath(file, top): sha256_file(file) for file in files})[:32]}"


def _as_recorded(target: Path) -> bool:
    """Whether everything that DVC tracks at or in `target` has the content that it recorded."""
    for note in _notes(target):
        for out, recorded in _outs(note):
            if (out == target or target in out.parents) and recorded != _md5(out):
                return False
    return True


def _md5(path: Path) -> str:
    """DVC's hash of a file, or of a folder: that of the list of its files' hashes."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest()
    if not path.is_dir():
        return ""
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in NEVER_TRACKED]
    names = sorted(file.relative_to(path).parts for file in files)
    listed = [{"md5": _md5(path.joinpath(*name)), "relpath": "/".join(name)} for name in names]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


NEVER_TRACKED = (".gitignore", ".dvcignore", ".DS_Store")


def _notes(target: Path) -> list[Path]:
    places = [*target.parents[:2], *([target] if target.is_dir() else [])]
    return [note for place in places for note in sorted(place.glob("*.dvc")) if note.is_file()]


def _outs(note: Path) -> Iterator[tuple[Path, str]]:
    """Every path that a `.dvc` file tracks, with its hash; imports that nobody has downloaded have none yet."""
    try:
        content = yaml.safe_load(note.read_text())
        for out in content["outs"]:
            recorded = out.get("md5") or out.get("etag") or out.get("checksum")
            if recorded:
                where = note.parent / content.get("wdir", ".") / out["path"]
                yield Path(os.path.abspath(where)), str(recorded)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a DVC file ({type(error).__name__}: {error})",
            source=note,
            remedy="make it again with 'dvc add'",
        ) from None
