"""DVC: which version of its data a run read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_json

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
    places = [*target.parents[:2], *([target] if target.is_dir() else [])]
    notes = [note for place in places for note in sorted(place.glob("*.dvc")) if note.is_file()]
    found = {
        os.path.relpath(out, target): recorded
        for note in notes
        for out, recorded in _outs(note)
        if out == target or target in out.parents
    }
    if list(found) == ["."]:
        return found["."]
    return sha256_json(found)[:32] if found else ""


def source_version(data: DataConfig) -> str:
    """`data_version` of the source of crystals; empty for one without a path, such as the embedded one."""
    return data_version(getattr(data.source, "path", None))


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
