"""Why a record cannot be used, in a form that survives the way between processes."""

from __future__ import annotations

REMEDIES = {
    "malformed-cif": "export the structure again as CIF",
    "malformed-record": "correct the record or leave it out",
    "unreadable-file": "correct the file or leave it out",
    "contradiction": "correct whichever of the two statements is wrong",
    "ambiguous-symmetry": "give the symmetry operations, or the full symbol with origin or axes (such as F d -3 m :2)",
    "overlap": "remove the duplicated atom, or correct cell and coordinates",
    "degenerate-cell": "correct the cell",
    "too-sparse": "give lengths in Å",
    "partial-occupancy": "give an ordered structure",
    "unknown-element": "give chemical elements only",
    "too-many-sites": "give a smaller or more symmetric structure; the model has 20 sites",
    "too-many-atoms": "raise data.max_atoms or leave the record out",
    "above-hull": "raise data.max_e_above_hull or leave the record out",
    "heavy-element": "raise data.max_atomic_number or leave the record out",
    "duplicate": "nothing to do: a matching structure is kept",
}


class Unusable(ValueError):
    """Why one record cannot be used: a short code, the value seen and a sentence."""

    def __init__(self, reason: str, message: str, value: object = "") -> None:
        super().__init__(message)
        self.reason, self.value = reason, str(value)[:200]

    def __reduce__(self) -> tuple[object, ...]:
        # Records go to worker processes with the reasons that reading found; two arguments do not survive by default.
        return (type(self), (self.reason, str(self), self.value))

    @property
    def remedy(self) -> str:
        """What can be done about it."""
        return REMEDIES.get(self.reason, "correct the structure or leave it out")
