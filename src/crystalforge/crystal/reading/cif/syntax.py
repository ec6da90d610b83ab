"""Text -> data blocks. gemmi knows the grammar; here are the names of items, which differ between dictionaries.

`_cell.length_a` (the present core dictionary) and `_cell_length_a` (the one before) are one item, in any case. `?` and
`.` are no values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from crystalforge.crystal.reading.reasons import Unusable

NULL = ("?", ".")
HEADING = re.compile(r"\s*data_(\S*)", re.IGNORECASE)
SITES = re.compile(r"_atom_site[_.](fract|cartn)_", re.IGNORECASE)
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Block:
    """One data block: single values and columns of loops, by the item's name in lower case with underscores."""

    name: str
    values: dict[str, str]
    loops: list[dict[str, list[str]]]

    def get(self, *names: str) -> str | None:
        """The first of these items that has a value; a loop of one row counts as values."""
        for name in names:
            found = self.values.get(name)
            if found is None:
                found = next((loop[name][0] for loop in self.loops if name in loop and len(loop[name]) == 1), None)
            if found is not None and found not in NULL:
                return found
        return None

    def table(self, *names: str) -> dict[str, list[str]]:
        """The loop that has one of these columns; values outside loops make a table of one row; empty if none."""
        for loop in self.loops:
            if any(name in loop for name in names):
                return loop
        if any(name in self.values for name in names):
            return {name: [value] for name, value in self.values.items()}
        return {}


def split_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each data block that has atoms; of the only one even when it has none.

    A heading inside a text field (between two lines that begin with a semicolon) is no heading.
    """
    text = _lines(text)
    starts: list[tuple[int, str]] = []
    place, inside = 0, False
    for line in text.split("\n"):
        if line.startswith(";"):
            inside = not inside
        elif not inside and (heading := HEADING.match(line)):
            starts.append((place, heading.group(1)))
        place += len(line) + 1
    ends = [*(start for start, _ in starts), len(text)][1:]
    for (first, name), last in zip(starts, ends, strict=True):
        block = text[first:last]
        if SITES.search(block) or len(starts) == 1:
            yield name, block


def read_block(text: str) -> Block:
    """The first block with atoms of a CIF (else its first). Raises Unusable when it is no CIF."""
    import gemmi

    content = _lines(text)
    try:
        document = gemmi.cif.read_string(content)
    except (ValueError, RuntimeError) as error:
        raise Unusable("malformed-cif", f"is no CIF ({_said(error)}){_guess(content)}", content[:80]) from error
    blocks = [_block(block) for block in document]
    if not blocks:
        raise Unusable("malformed-cif", f"the text holds no data block{_guess(content)}", content[:80])
    return next((block for block in blocks if block.table("_atom_site_fract_x", "_atom_site_cartn_x")), blocks[0])


def _block(block: object) -> Block:
    from gemmi import cif

    values: dict[str, str] = {}
    loops: list[dict[str, list[str]]] = []
    for item in block:  # type: ignore[attr-defined]
        if item.pair is not None:
            values[_name(item.pair[0])] = cif.as_string(item.pair[1]) or item.pair[1]
        elif item.loop is not None:
            width = item.loop.width()
            cells = [value if value in NULL else cif.as_string(value) for value in item.loop.values]
            loops.append({_name(tag): cells[column::width] for column, tag in enumerate(item.loop.tags)})
    return Block(block.name, values, loops)  # type: ignore[attr-defined]


def _lines(text: str) -> str:
    """Text with one kind of line end, and without a byte-order mark."""
    text = text.removeprefix(BYTE_ORDER_MARK)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _name(tag: str) -> str:
    return tag.lower().replace(".", "_", 1)


def _said(error: Exception) -> str:
    return str(error).partition("\n")[0].removeprefix("string:")[:160]


def _guess(text: str) -> str:
    """What a text that is no CIF looks like."""
    if not text.strip():
        return ": the file is empty"
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return ": it is a page of HTML or XML"
    if text.startswith("version https://git-lfs"):
        return ": it is a pointer of Git LFS, not the file"
    lines = text.splitlines()
    if len(lines) > 7 and all(len(line.split()) == 3 and _numeric(line) for line in lines[2:5]):
        return ": it reads like a POSCAR; name it POSCAR or *.vasp"
    if text.lstrip().startswith("{"):
        return ": it reads like JSON"
    return ""


def _numeric(line: str) -> bool:
    try:
        return bool([float(word) for word in line.split()])
    except ValueError:
        return False
