"""What a crystal is: space groups, Wyckoff positions, tokens, and the way between structures and tokens."""

from crystalforge.crystal.crystal import Crystal, PackedCrystals
from crystalforge.crystal.tokens import ATOM_TYPES, MAX_SITES, WYCKOFF_TYPES, Tokens

__all__ = ["ATOM_TYPES", "MAX_SITES", "WYCKOFF_TYPES", "Crystal", "PackedCrystals", "Tokens"]
