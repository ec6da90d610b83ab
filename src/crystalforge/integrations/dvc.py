"""DVC: which version of its data a run read."""

from __future__ import annotations

from pathlib import Path

import yaml

from crystalforge.common.errors import InputError


def data_version(path: str | None) -> str:
    """The content hash that DVC recorded for `path` in the `.dvc` file beside it; empty for data it does not track.

    Travels as a pipeline parameter, so that a step is redone when the data behind an unchanged path is another.
    Raises InputError when the `.dvc` file cannot be read.
    """
    if not path:
        return ""
    note = Path(f"{path.rstrip('/')}.dvc")
    if not note.exists():
        return ""
    try:
        out = yaml.safe_load(note.read_text())["outs"][0]
        return str(out.get("md5") or out["hash"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a DVC file ({type(error).__name__}: {error})",
            source=note,
            remedy="make it again with 'dvc add'",
        ) from None
