"""Which settings a Hermann-Mauguin symbol can mean, in the many ways in which it is written.

Names of settings are gemmi's (564, with alternative axes, origins and older symbols).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any


def normalised(symbol: str) -> str:
    """A Hermann-Mauguin symbol as the table writes it, with the origin or the axes behind a colon.

    >>> normalised("F_d_-3_m Z"), normalised("P6(3)/mmc"), normalised("R -3 m (hex)")
    ('F d -3 m:2', 'P63/mmc', 'R -3 m:H')
    """
    text = re.sub(r"</?su[bp]>|[~$\\{}]", "", symbol.strip())
    text = re.sub(r"(?<=[2346])[_(](\d)\)?", r"\1", text).replace("_", " ").strip()
    text = re.sub(r"\s*[:(,]?\s*(?:origin|o)\s*(?:choice|at)?\s*([12])\s*\)?$", r":\1", text, flags=re.IGNORECASE)
    text = re.sub(
        r"\s*[:(]\s*(?:(h)(?:ex[\w.]*)?|(r)(?:h[\w.]*)?)(?:\s*axes)?\s*\)?$", _axes, text, flags=re.IGNORECASE
    )
    text = re.sub(r"(?<=[a-z0-9])\s*([SZ])$", lambda found: ":1" if found.group(1) == "S" else ":2", text)
    if text[:1].upper() == "R":
        text = re.sub(r"(?<=[\dmc])\s*([HR])(?:S)?$", r":\1", text)
    return re.sub(r"\s*:\s*", ":", re.sub(r"\s+", " ", text))


def _axes(found: re.Match[str]) -> str:
    return ":" + ("H" if found.group(1) else "R")


@cache
def by_symbol(symbol: str) -> list[Any]:
    """Entries of gemmi's table that a symbol can mean: its own, and others where origin or axes are not said."""
    import gemmi

    text = normalised(symbol)
    name, _, extension = text.partition(":")
    short = _shortened(name) + (f":{extension}" if extension else "")
    found = gemmi.find_spacegroup_by_name(text) or gemmi.find_spacegroup_by_name(short)
    if found is not None and extension and found.ext != extension.upper():
        found = None
    if found is None:
        wanted = {squeezed(name), squeezed(_shortened(name))}
        matching = [entry for entry in gemmi.spacegroup_table() if squeezed(entry.hm) in wanted]
        if extension:
            matching = [entry for entry in matching if entry.ext == extension.upper()]
        return matching
    return [found] if extension else origins(found) + _other_axes(name, found) + _double_glides(name, found)


def origins(entry: Any) -> list[Any]:
    """All entries of one symbol: both origins, or both kinds of axes."""
    import gemmi

    return [entry, *(other for other in gemmi.spacegroup_table() if other.hm == entry.hm and other.ext != entry.ext)]


def _other_axes(name: str, entry: Any) -> list[Any]:
    """Entries with another unique axis that the same short monoclinic symbol (`P 21/c`) means."""
    import gemmi

    if not 3 <= entry.number <= 15 or squeezed(name) == name.replace(" ", "").upper() != squeezed(entry.hm):
        return []
    if name.replace(" ", "").upper() != squeezed(entry.hm):
        return []  # written in full: it names its axis
    short = squeezed(entry.hm)
    return [
        other
        for other in gemmi.spacegroup_table()
        if other.number == entry.number and other.hm != entry.hm and squeezed(other.hm) == short
    ]


def _double_glides(name: str, entry: Any) -> list[Any]:
    """Entries that a symbol with `e` means besides: `C m m e` is `C m m a` and, a quarter away, `C m m b`."""
    import gemmi

    pattern = squeezed(_shortened(name))[1:].replace("E", "[ABC]")
    if "[" not in pattern:
        return []
    return [
        other
        for other in gemmi.spacegroup_table()
        if other.number == entry.number
        and other.xhm() != entry.xhm()
        and other.hm[0] == entry.hm[0]
        and re.fullmatch(pattern, squeezed(other.hm)[1:])
    ]


def squeezed(symbol: str) -> str:
    """A symbol without the ones of its trivial directions: `P 1 21/c 1` is `P21/C`."""
    words = symbol.split()
    if len(words) == 4 and words.count("1") == 2:
        words = [word for word in words if word != "1"]
    return "".join(words).upper()


def _shortened(symbol: str) -> str:
    """A full symbol as the short one: `P 21/n 21/m 21/a` is `P n m a`, `F 41/d -3 2/m` is `F d -3 m`."""
    words = symbol.split()
    if len(words) < 3 or not any("/" in word for word in words[1:]):
        return symbol
    keep = int(words[1][:1] in "46" and words[2] not in ("3", "-3"))  # `4/m` of the uniaxial groups stays
    if words.count("1") == 2:
        return symbol
    return " ".join([words[0], *words[1 : 1 + keep], *(re.sub(r"^\d+/", "", word) for word in words[1 + keep :])])


def standard(number: int) -> Any:
    """The entry of a group's standard setting."""
    import gemmi

    return gemmi.find_spacegroup_by_number(number)
