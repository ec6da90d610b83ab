"""From a wish to a ranked list: the funnel of `crystalforge screen`, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystalforge.api.crystals import Crystals


def screen(
    model: str | Path = "mp20",
    *,
    out: str | Path,
    top: int = 20,
    formula: str | None = None,
    elements: str | Sequence[str] | None = None,
    chemical_system: str | None = None,
    spacegroup: int | Sequence[int] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Crystals:
    """Draw, judge, relax and judge again until `top` crystals convince every judge; the relaxed ones, best first.

    model: as a directory of a model, or the name of a shipped one. out: directory of the list, its CIFs and its page; a
    further call with the same arguments goes on there. settings: those of the section `screen`, such as budget, judges,
    limit. Columns: those of `shortlist.parquet`. Raises InputError for a wish that no crystal can meet.

    >>> screen(chemical_system="Li-P-S", top=5, out="wish")["worst"]      # doctest: +SKIP
    """
    import pandas as pd

    from crystalforge.config import from_sections
    from crystalforge.stages.screen import SHORTLIST
    from crystalforge.stages.screen import screen as execute

    wish = {"composition": formula, "elements": elements, "chemical_system": chemical_system}
    wish = {name: value for name, value in wish.items() if value is not None}
    section: dict[str, Any] = {"top": top, **settings}
    if wish:
        section["constraints"] = {**(section.get("constraints") or {}), **wish}
    if spacegroup is not None:
        section["spacegroups"] = [spacegroup] if isinstance(spacegroup, int) else list(spacegroup)
    execute(from_sections(seed=seed, screen=section, tracking={"enabled": False}), Path(out), model=Path(model))
    frame = pd.read_parquet(Path(out) / SHORTLIST)
    return Crystals.of(frame) if len(frame) else Crystals([])
