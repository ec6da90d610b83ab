"""An agent's interface: `crystalforge mcp` serves sample, score, judge and screen by the Model Context Protocol.

Thin: each tool is a call of the public API. Bounded: so many crystals and so many seconds a call (what is done by then
is returned, and said), and files only of one folder, to read and to write in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import crystalforge
from crystalforge.common.errors import InputError, missing_extra
from crystalforge.common.files import sha256_json
from crystalforge.stages.screen import FUNNEL

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from crystalforge.api.crystals import Crystals
    from crystalforge.api.generator import Generator
    from crystalforge.api.judge import Judge

PIECE = 8  # crystals between two looks at the clock
ROUND = 16  # crystals that a screening draws at a time: what it is asked for is met in whole rounds
SHOWN = ("rank", "fulfils", "formula", "spacegroup", "n_atoms", "nearest_formula", "nearest_kind", "nearest_distance")
LONGEST_TEXT = 1_000_000  # characters of CIF in one call
INSTRUCTIONS = (
    "crystalforge writes crystals with a trained generator and judges them. Crystals go in and out as CIF text, or as "
    "names of files in the server's folder. Energies are in eV/atom; e_above_hull below 0.1 counts as stable. Values "
    "come from machine-learned potentials: they are hypotheses, not measurements."
)


class Workbench:
    """What the tools work with: models loaded once, limits, and the only folder whose files are touched."""

    def __init__(self, folder: Path, *, most: int = 100, seconds: float = 120.0) -> None:
        self.folder, self.most, self.seconds = folder.resolve(), most, seconds
        if not self.folder.is_dir():
            raise InputError("there is no such folder", source=folder, remedy="make it, or give another one")

    @cache  # noqa: B019  # one workbench a process
    def generator(self, model: str) -> Generator:
        """A shipped model, or one in the folder."""
        return crystalforge.load(self.model(model))

    def model(self, name: str) -> str | Path:
        """Where a model is that may be used: a shipped one's name, or a directory in the folder."""
        from crystalforge.stages.models import shipped

        return name if name in shipped() else self.inside(name)

    @cache  # noqa: B019
    def judge(self, potential: str) -> Judge:
        """A potential by name, on the embedded hull."""
        return crystalforge.judge(potential)

    def inside(self, name: str) -> Path:
        """A path in the folder. Raises InputError when `name` leads out of it."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise InputError("is outside the server's folder", source=name, remedy=f"give a name within {self.folder}")
        return path

    def read(self, crystals: list[str]) -> Crystals:
        """CIF texts or names of files in the folder, at most `most` crystals."""
        if sum(map(len, crystals)) > LONGEST_TEXT:
            raise InputError(f"more than {LONGEST_TEXT:,} characters", remedy="give fewer crystals, or names of files")
        found = crystalforge.read(
            [text if "\n" in text or text.startswith("data_") else self.inside(text) for text in crystals]
        )
        if len(found) > self.most:
            raise InputError(f"{len(found)} crystals, {self.most} are allowed in one call", remedy="give fewer")
        return found

    def pieces(self, n: int, size: int = PIECE) -> Iterator[range]:
        """0..n-1 in pieces, until the time is over; the first one always."""
        began = time.monotonic()
        for start in range(0, n, size):
            if start and time.monotonic() - began > self.seconds:
                return
            yield range(start, min(start + size, n))


def serve(folder: Path, *, most: int = 100, seconds: float = 120.0) -> None:
    """Serve on standard input and output until the client leaves."""
    server(Workbench(folder, most=most, seconds=seconds)).run("stdio")


def server(bench: Workbench) -> MCPServer:
    """The server with its tools. Raises InputError when the extra `mcp` is not installed."""
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise missing_extra("mcp", "mcp", error) from error

    def told(tool: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """The tool, whose client hears what was wrong with the input; of anything else it hears nothing."""

        @wraps(tool)
        def call(*args: Any, **options: Any) -> dict[str, Any]:
            try:
                return tool(*args, **options)
            except InputError as error:
                raise ToolError(str(error)) from error

        return call

    found = MCPServer("crystalforge", instructions=INSTRUCTIONS, version=crystalforge.__version__)
    for tool in _tools(bench):
        found.tool()(told(tool))
    return found


def _tools(bench: Workbench) -> list[Callable[..., dict[str, Any]]]:
    def sample(
        n: int = 10,
        model: str = "mp20",
        spacegroup: int | None = None,
        formula: str | None = None,
        elements: str | None = None,
        valid: bool = True,
        seed: int = 0,
        save: bool = False,
    ) -> dict[str, Any]:
        """Draw new crystals. spacegroup: 1 to 230; formula: composition up to a factor, such as CaTiO3; elements: only
        these, such as "Li O Ti"; valid: only crystals with possible distances and cells; save: also as CIF files in the
        folder. Crystal i depends on (seed, i) alone. Returns CIF, space group and log-probability (nats) of each."""
        _within(n, bench.most)
        generator = bench.generator(model)
        rows: list[dict[str, Any]] = []
        for piece in bench.pieces(n, 4 * PIECE):
            drawn = generator.sample(
                len(piece), first=piece.start, spacegroup=spacegroup, formula=formula, elements=elements, valid=valid,
                seed=seed,
            )  # fmt: skip
            rows += _rows(drawn)
            if save:
                drawn.to_cifs(bench.folder / f"sample-{seed}-{piece.start:05d}")
        return _answer(rows, n)

    def score(crystals: list[str], model: str = "mp20") -> dict[str, Any]:
        """What the generator thinks of crystals: log-probability in nats, whole and by factor. crystals: CIF texts, or
        names of CIF files in the folder."""
        found = bench.read(crystals)
        rows: list[dict[str, Any]] = []
        for piece in bench.pieces(len(found)):
            frame = bench.generator(model).log_prob(found[piece.start : piece.stop])
            rows += [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]
        return _answer(rows, len(found))

    def judge(crystals: list[str], potential: str = "chgnet") -> dict[str, Any]:
        """Energy per atom and distance to the convex hull of known phases (eV/atom), with a status for each crystal.
        crystals: CIF texts, or names of CIF files in the folder."""
        found = bench.read(crystals)
        rows: list[dict[str, Any]] = []
        for piece in bench.pieces(len(found)):
            rows += _rows(bench.judge(potential)(found[piece.start : piece.stop]), cif=False)
        return _answer(rows, len(found))

    def screen(
        n: int = 64,
        best: int = 5,
        model: str = "mp20",
        potential: str = "chgnet",
        spacegroup: int | None = None,
        formula: str | None = None,
        elements: str | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Draw up to n crystals, judge them, relax the promising ones, drop those that are known, judge again, until
        `best` are found stable; returns the relaxed ones, the most credible first. Ends earlier when the time is over:
        `ended` says why. List, CIFs, page and what each crystal fell at stay in the folder; asked for more, it goes on
        from there."""
        _within(n, bench.most)
        _within(best, n, "best")
        wish = {"formula": formula, "elements": elements, "spacegroup": spacegroup, "seed": seed}
        place = bench.folder / f"screen-{sha256_json([wish, model, potential])[:12]}"
        listed = crystalforge.screen(
            bench.model(model), out=place, top=best, **wish,
            judges=[{"kind": "ehull", "name": potential, "potential": {"kind": potential}}], confirm=[],
            relaxer={"kind": potential}, round=ROUND, piece=PIECE // 2,
            budget={"crystals": n, "seconds": bench.seconds},
        )  # fmt: skip
        told = json.loads((place / FUNNEL).read_text())
        rows = [{name: row[name] for name in (*SHOWN, f"{potential}_e_above_hull", "cif")} for row in _rows(listed)]
        return {
            "asked": n,
            "done": told["counts"].get("drawn", 0),
            "in_time": "seconds" not in told["ended"],
            "ended": told["ended"],
            "folder": place.name,
            "crystals": rows,
        }

    return [sample, score, judge, screen]


def _within(n: int, most: int, name: str = "n") -> None:
    if not 1 <= n <= most:
        raise InputError(
            f"{name} is {n}, 1 to {most} are allowed in one call", remedy="ask for fewer, or several times"
        )


def _rows(crystals: Crystals, *, cif: bool = True) -> list[dict[str, Any]]:
    from crystalforge.evaluation.report.cif import symmetrised

    rows = []
    for number, (crystal, formula) in enumerate(zip(crystals, crystals.formulas, strict=True)):
        row = {"formula": formula, **{name: _plain(values[number]) for name, values in crystals.columns.items()}}
        rows.append(row | ({"cif": symmetrised(crystal)[2]} if cif and crystal is not None else {}))
    return rows


def _answer(rows: list[dict[str, Any]], asked: int) -> dict[str, Any]:
    """done: how many of those asked for were worked on before the time was over."""
    return {"asked": asked, "done": len(rows), "in_time": len(rows) == asked, "crystals": rows}


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
