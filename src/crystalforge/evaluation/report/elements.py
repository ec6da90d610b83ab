"""What the report must know of each element: its place in the periodic table, a colour, a size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

DEFAULT_RADIUS = 1.5  # Å, for the elements beyond the table of covalent radii (Cordero et al. 2008)
DEFAULT_COLOR = (150, 150, 160)


@dataclass(frozen=True)
class ElementStyle:
    """row, column: in the 18-column table, lanthanides and actinides in rows 8 and 9. radius: covalent, Å."""

    number: int
    symbol: str
    name: str
    row: int
    column: int
    color: tuple[int, int, int]
    radius: float
    metal: bool


class _Elements(Mapping[int, ElementStyle]):
    """All elements by atomic number; built at first use, because pymatgen is slow to import."""

    def __getitem__(self, number: int) -> ElementStyle:
        return _styles()[number]

    def __iter__(self) -> Iterator[int]:
        return iter(_styles())

    def __len__(self) -> int:
        return len(_styles())


ELEMENTS = _Elements()


@cache
def _styles() -> dict[int, ElementStyle]:
    from pathlib import Path

    import pymatgen.vis
    import yaml
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from pymatgen.core.periodic_table import Element

    colors: dict[str, list[int]] = {}
    for folder in pymatgen.vis.__path__:
        file = Path(folder) / "ElementColorSchemes.yaml"
        if file.exists():
            colors = yaml.safe_load(file.read_text())["VESTA"]
    styles = {}
    for z in range(1, 119):
        element = Element.from_Z(z)
        row, column = element.row, element.group
        if 57 <= z <= 71 or 89 <= z <= 103:
            row, column = (8, z - 57 + 3) if z <= 71 else (9, z - 89 + 3)
        color = colors.get(element.symbol, DEFAULT_COLOR)
        styles[z] = ElementStyle(
            number=z,
            symbol=element.symbol,
            name=element.long_name,
            row=int(row),
            column=int(column),
            color=(int(color[0]), int(color[1]), int(color[2])),
            radius=float(CovalentRadius.radius.get(element.symbol, DEFAULT_RADIUS)),
            metal=bool(element.is_metal),
        )
    return styles
