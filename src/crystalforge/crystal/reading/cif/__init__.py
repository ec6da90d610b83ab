"""CIF text to crystals.

syntax: text -> data blocks (gemmi); species: which element a site is; symmetry: which operations the block asks for;
read: all of it, and whether the block agrees with itself. Files that list all atoms and files with symmetry take the
same way: some thousand a second, and some hundred where operations are applied.
"""

from crystalforge.crystal.reading.cif.read import parse_cif
from crystalforge.crystal.reading.cif.syntax import split_blocks

__all__ = ["parse_cif", "split_blocks"]
