"""Named, versioned rules by which a set of generated crystals is judged.

A protocol fixes everything a percentage depends on: the matcher's tolerances, the energy that is compared with the
hull, the threshold and which crystals count. Two figures are comparable when their protocols' digests are equal.

What each follows, and where it deviates:
- `crystalformer-rl` (arXiv 2504.02367): E_hull < 0.1 eV/atom of the crystal as generated, pymatgen's default matcher,
  S.U.N. taken in the order stable, unique among the stable, novel. Space groups of the samples are drawn with the
  training set's weights (by whoever makes the samples).
- `mattergen` (arXiv 2312.03687): crystals are relaxed first; what is then stable (E_hull < 0.1 eV/atom), unique and
  novel is asked of the relaxed ones, matcher 0.2 / 0.3 / 5 deg. Deviation: ordered crystals only, as nothing here makes
  disordered ones.
- `lemat-genbench` (arXiv 2512.04562, and its code of February 2026): stable at E_hull <= 0 (S.U.N.), metastable above
  that and at <= 0.1 (M.S.U.N.); only valid crystals count; E_hull is the mean over an ensemble, the reward and the
  held-out judges, each on its own hull. It judges crystals as they are submitted, and whether to relax them before is
  left to who submits: here they are relaxed, by one potential, and then judged, compared and looked up.
  `lemat-genbench-as-drawn` judges what the model wrote. Deviations: another ensemble and other hulls; validity as
  CDVAE defines it; duplicates are sought among the stable ones; rates are of all crystals drawn.
- `cdvae` (arXiv 2110.06197): validity; looser matcher 0.3 / 0.5 / 10 deg, no thermodynamics.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from crystalforge.common.errors import InputError
from crystalforge.common.files import sha256_json


class MatcherSettings(BaseModel):
    """Tolerances of pymatgen's StructureMatcher; the defaults are pymatgen's own.

    >>> MatcherSettings().stol
    0.3
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ltol: float = Field(default=0.2, gt=0, description="relative tolerance of lattice lengths")
    stol: float = Field(default=0.3, gt=0, description="largest site displacement, in units of (volume per atom)^(1/3)")
    angle_tol: float = Field(default=5.0, gt=0, description="tolerance of lattice angles in degrees")
    primitive_cell: bool = Field(default=True, description="reduce both crystals to primitive cells first")
    scale: bool = Field(default=True, description="compare at equal volume")


class Protocol(BaseModel):
    """One set of rules.

    >>> PROTOCOLS["crystalformer-rl"].stable_at
    0.1
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int = Field(description="raised whenever a rule changes")
    matcher: MatcherSettings = MatcherSettings()
    energy: Literal["generated", "relaxed"] = Field(
        description="which crystal's E_hull is judged; relaxed: rates have the relaxed crystals as their denominator"
    )
    compare: Literal["generated", "relaxed"] = Field(
        default="generated", description="which crystals are compared with each other and with the known ones"
    )
    ensemble: bool = Field(default=False, description="judge the mean E_hull of the reward and the held-out judges")
    stable_at: float | None = Field(description="E_hull limit in eV/atom; None: stability is not judged")
    stable_inclusive: bool = Field(default=False, description="whether E_hull equal to the limit is stable")
    metastable_at: float | None = Field(
        default=None,
        description="a second, looser and inclusive limit in eV/atom; what is stable is not metastable as well",
    )
    valid_only: bool = Field(
        default=False, description="only crystals of valid structure and composition can be stable"
    )

    @property
    def digest(self) -> str:
        """SHA-256 of all rules."""
        return sha256_json(self.model_dump(mode="json"))


_LEMAT: dict[str, Any] = {
    "ensemble": True,
    "stable_at": 0.0,
    "stable_inclusive": True,
    "metastable_at": 0.1,
    "valid_only": True,
}
_ALL = (
    Protocol(name="crystalformer-rl", version=1, energy="generated", stable_at=0.1),
    Protocol(name="mattergen", version=2, energy="relaxed", compare="relaxed", stable_at=0.1),
    Protocol(name="lemat-genbench", version=3, energy="relaxed", compare="relaxed", **_LEMAT),
    Protocol(name="lemat-genbench-as-drawn", version=1, energy="generated", **_LEMAT),
    Protocol(
        name="cdvae",
        version=1,
        energy="generated",
        stable_at=None,
        matcher=MatcherSettings(ltol=0.3, stol=0.5, angle_tol=10.0),
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def protocol(name: str) -> Protocol:
    """The protocol of that name; raises InputError naming the known ones."""
    if name not in PROTOCOLS:
        raise InputError(
            f"there is no evaluation protocol {name!r}", remedy=f"use one of {', '.join(sorted(PROTOCOLS))}"
        )
    return PROTOCOLS[name]
