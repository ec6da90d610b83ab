"""A directory of CIF files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from crystalforge.common.errors import InputError
from crystalforge.data.cif import split_blocks
from crystalforge.data.sources.base import Record, Unusable


class CifDirectory:
    """Every data block of every file; files in the order of their names. No splits, no energies."""

    def __init__(self, root: Path, pattern: str) -> None:
        if not root.is_dir():
            raise InputError("there is no such directory", source=root, remedy="correct data.source.path")
        self._root = root
        self._files = sorted(path.relative_to(root) for path in root.glob(pattern) if path.is_file())
        if not self._files:
            raise InputError(f"no file matches {pattern!r}", source=root, remedy="correct data.source.pattern")

    def count(self) -> int:
        """Files; most hold one block."""
        return len(self._files)

    def records(self) -> Iterator[Record]:
        """One record per data block, named after its file (and its block where there are several)."""
        for file in self._files:
            name = str(file.with_suffix(""))
            text = (self._root / file).read_text(encoding="utf-8", errors="replace")
            blocks = list(split_blocks(text))
            if not blocks:
                reason = Unusable("malformed-cif", "the file has no data block", text[:80])
                yield Record(str(file), 1, name, reason)
            for number, (block, content) in enumerate(blocks, start=1):
                identity = name if len(blocks) == 1 else f"{name}#{block}"
                yield Record(str(file), number, identity, content)
