"""The paper's figures and tables from finished evaluations, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystalforge.common.files import atomic_file

FORMATS = ("png", "svg")
DPI = 200  # of the bitmaps: sharp in print at the page's width


def figures(runs: Sequence[str], out: Path) -> dict[str, Any]:
    """Draw figures 2 to 6 and write tables S2 and S3 of all `runs` together into `out`.

    runs: directories of evaluations, runs or studies; `name=directory` calls what was tuned there `name`, and several
    of one name are seeds of one method. Returns which files were written and what could not be drawn. Raises
    InputError when a run holds no table of crystals.
    """
    from crystalforge.evaluation.paper import figures as drawn
    from crystalforge.evaluation.paper import tables
    from crystalforge.evaluation.paper.runs import gather

    found = gather([_named(run) for run in runs])
    written: list[str] = []
    missing: list[str] = []
    for name, draw in (
        ("figure-2-energies", drawn.energies),
        ("figure-3-training", drawn.courses),
        ("figure-4-spacegroups", drawn.spacegroups),
        ("figure-5-sun", drawn.uniqueness),
        ("figure-6-pareto", drawn.pareto),
    ):
        figure = draw(found)
        if figure is None:
            missing.append(name)
            continue
        for kind in FORMATS:
            with atomic_file(out / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, dpi=DPI)
            written.append(f"{name}.{kind}")
    for name, rows in (
        ("headline", tables.headline(found)),
        ("table-4-spacegroups", tables.spacegroups(found)),
        ("table-s2-candidates", tables.candidates(found)),
        ("table-s3-retrieval", tables.retrieval(found)),
    ):
        for kind, text in (("csv", tables.as_csv(rows)), ("md", tables.as_markdown(rows))):
            with atomic_file(out / f"{name}.{kind}") as temporary:
                temporary.write_text(text)
            written.append(f"{name}.{kind}")
    return {"models": found.labels, "crystals": len(found.table), "files": written, "without data": missing}


def _named(run: str) -> tuple[str | None, Path]:
    """`name=directory`, or a directory, which may have an equals sign in its path if it exists."""
    name, separator, path = run.partition("=")
    if not separator or Path(run).exists():
        return None, Path(run)
    return name, Path(path)
