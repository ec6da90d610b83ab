"""How crystals look in a notebook: a table with pictures, and one crystal in the report's own viewer."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from crystalforge.crystal.crystal import Crystal

MOST_ROWS, MOST_ATOMS, PIXELS = 20, 200, 84
TILT = np.array([[0.86, -0.16], [-0.50, -0.28], [0.0, 0.95]])  # Cartesian axes on the picture's, x right and y up
DEPTH = np.array([0.47, 0.82, 0.33])  # towards the eye
BALL = 0.42  # Å per square root of the covalent radius, as in the viewer
CORNERS = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=np.float64)


def table(
    crystals: Sequence[Crystal | None], formulas: Sequence[str], columns: Mapping[str, np.ndarray], *, more: int = 0
) -> str:
    """HTML rows: picture, formula, number of atoms, and the columns. more: how many are not shown."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", "", "formula", "atoms", *columns))
    rows = []
    for number, (crystal, formula) in enumerate(zip(crystals, formulas, strict=True)):
        cells = [
            str(number), "" if crystal is None else picture(crystal), html.escape(formula) or "&ndash;",
            "" if crystal is None else str(len(crystal)),
            *(html.escape(_text(values[number])) for values in columns.values()),
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    rest = f"<p>and {more} more</p>" if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{rest}"


def picture(crystal: Crystal) -> str:
    """A small drawing (SVG) of the cell and its atoms, those in front last."""
    if not np.isfinite(crystal.lattice).all() or not np.isfinite(crystal.frac).all():
        return ""
    from crystalforge.evaluation.report.elements import ELEMENTS

    middle = crystal.lattice.sum(axis=0) / 2
    corners = (CORNERS @ crystal.lattice - middle) @ TILT
    atoms = (crystal.frac % 1) @ crystal.lattice - middle
    order = np.argsort(atoms @ DEPTH)[-MOST_ATOMS:]
    flat = atoms @ TILT
    reach = max(float(np.abs(corners).max(initial=0)), 1.0) + 0.6
    edges = [
        f"M{corners[i][0]:.2f} {-corners[i][1]:.2f}L{corners[i | bit][0]:.2f} {-corners[i | bit][1]:.2f}"
        for i in range(8)
        for bit in (1, 2, 4)
        if not i & bit
    ]
    circles = []
    for k in order:
        style = ELEMENTS[int(crystal.numbers[k])]
        circles.append(
            f'<circle cx="{flat[k][0]:.2f}" cy="{-flat[k][1]:.2f}" r="{BALL * style.radius**0.5:.2f}" '
            f'fill="rgb{style.color}" stroke="#333" stroke-width="{reach / 150:.3f}"/>'
        )
    return (
        f'<svg width="{PIXELS}" height="{PIXELS}" viewBox="{-reach:.2f} {-reach:.2f} {2 * reach:.2f} {2 * reach:.2f}">'
        f'<path d="{"".join(edges)}" fill="none" stroke="#888" stroke-width="{reach / 120:.3f}"/>'
        f"{''.join(circles)}</svg>"
    )


@dataclass(frozen=True)
class View:
    """One crystal in a frame of its own, so that its script meets no other one's."""

    page: str

    @classmethod
    def of(cls, crystal: Crystal) -> View:
        """The conventional cell, as in the report."""
        from pymatgen.symmetry.groups import sg_symbol_from_int_number

        from crystalforge.evaluation.report.cif import symmetrised
        from crystalforge.evaluation.report.elements import ELEMENTS

        group, cell, _ = symmetrised(crystal)
        drawn = {
            "formula": cell.to_structure().composition.reduced_formula,
            "symbol": sg_symbol_from_int_number(group),
            "lattice": cell.lattice.ravel().round(5).tolist(),
            "numbers": cell.numbers.tolist(),
            "frac": cell.frac.ravel().round(5).tolist(),
        }
        styles = {
            int(z): {"symbol": s.symbol, "name": s.name, "color": s.color, "radius": s.radius, "metal": s.metal}
            for z in np.unique(cell.numbers)
            for s in [ELEMENTS[int(z)]]
        }
        script = (resources.files("crystalforge") / "evaluation" / "report" / "viewer.js").read_text()
        data = json.dumps([drawn, styles]).replace("</", "<\\/")
        style = "body{margin:0;font:14px sans-serif}canvas{width:100%;height:320px}"
        caption = html.escape(f"{drawn['formula']}, {drawn['symbol']}")
        return cls(
            f"<!doctype html><meta charset='utf-8'><style>{style}</style><canvas></canvas><div>{caption}</div>"
            f"<script>{script}\nconst [crystal, elements] = {data};"
            "new CrystalView(document.querySelector('canvas'), crystal, elements).draw();</script>"
        )

    def _repr_html_(self) -> str:
        frame = html.escape(self.page, quote=True)
        return f'<iframe srcdoc="{frame}" width="460" height="345" style="border:0" title="crystal"></iframe>'


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
