"""What people write crystals into, and whether it can be believed.

cif: CIF text; structures: POSCAR, pymatgen's dictionaries, rows of tables; text: bytes of any encoding; consistency: a
crystal against what its record says, and against itself; reasons: why a record cannot be used.
"""
