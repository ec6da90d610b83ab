"""Which crystals are already known, and which came before: the matcher's answers, a composition at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from crystalforge.crystal import Crystal
from crystalforge.crystal.keys import composition_key
from crystalforge.evaluation.matching.matcher import Matcher, Reduced
from crystalforge.evaluation.matching.reference import Nearest, Reference
from crystalforge.evaluation.protocols import MatcherSettings
from crystalforge.evaluation.validity import reduced_composition


@cache
def open_reference(further: Path | None) -> Reference:
    """The embedded crystals and those of a parquet file; records that are no crystals are passed over."""
    from crystalforge.crystal.reading.reasons import Unusable
    from crystalforge.data.sources.tables import ParquetRecords, embedded

    crystals: list[Crystal] = []
    names: list[str] = []
    for source in [embedded(), *([ParquetRecords(further, splits=False)] if further is not None else [])]:
        for record in source.records():
            try:
                crystals.append(record.crystal())
                names.append(record.id)
            except Unusable:
                continue
    return Reference.from_crystals(crystals, names)


@dataclass
class Seen:
    """What has come by so far, of one kind: as generated, or as relaxed."""

    reference: Reference
    settings: MatcherSettings
    before: dict[tuple[tuple[int, int], ...], list[Reduced]] = field(default_factory=dict)

    def verdict(self, crystal: Crystal) -> str:
        """`new`, and from then on it has been seen; else `known`, `duplicate`, or `unmatchable`."""
        matcher = Matcher(self.settings)  # its memory of answers is of one composition
        composition = reduced_composition(crystal)
        earlier = self.before.get(composition, [])
        rows = self.reference.rows_of(composition_key(composition))
        reduced = matcher.reduce(crystal)
        if reduced is None:
            return "unmatchable"
        if any(matcher.fit(other, reduced) for other in earlier):
            return "duplicate"
        for known in self.reference.crystals(rows) if len(rows) else []:
            other = matcher.reduce(known)
            if other is not None and matcher.fit(other, reduced):
                return "known"
        self.before.setdefault(composition, []).append(reduced)
        return "new"


def nearest(reference: Reference, crystals: Sequence[Crystal]) -> list[Nearest | None]:
    """The known crystal that each is most like; none matches, or it would not be on a list."""
    if not len(reference):
        return [None] * len(crystals)
    compositions = [reduced_composition(crystal) for crystal in crystals]
    found = [reference.nearest_by_chemistry(composition, None) for composition in compositions]
    others = [row for row, relative in enumerate(found) if relative is None]
    # Together: each look-up goes through all known compositions.
    for row, relative in zip(others, reference.similar([compositions[row] for row in others]), strict=True):
        found[row] = relative
    return found


def volume_change(before: Crystal, after: Crystal) -> float:
    """Relative change of the volume per atom."""
    return (after.volume / len(after)) / (before.volume / len(before)) - 1


def moved(settings: MatcherSettings, before: Crystal, after: Crystal) -> float:
    """Å of rms displacement by relaxing; infinity where it has become another structure."""
    matcher = Matcher(settings)
    first, second = matcher.reduce(before), matcher.reduce(after)
    if first is None or second is None:
        return float("inf")
    distance = matcher.rms(first, second)
    # The matcher brings both cells to the geometric mean of their volumes before it measures.
    return float(distance * (before.volume * after.volume) ** (1 / 6) / len(before) ** (1 / 3))
