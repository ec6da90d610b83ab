"""Convex hulls of reference phases, corrections, and where reference phases come from."""

from crystalforge.thermo.entries import Entries, read_entries
from crystalforge.thermo.hull import HullAnswer, HullStore

__all__ = ["Entries", "HullAnswer", "HullStore", "read_entries"]
