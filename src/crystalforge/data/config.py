"""Where the crystals come from and how they become tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crystalforge.common.names import Address

SPLITS = ("train", "val", "test")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrototypesSource(_Section):
    """The data set that ships with the package: structure types decorated by substitution, labelled by CHGNet."""

    kind: Literal["prototypes"] = "prototypes"


class _Files(_Section):
    path: Address = Field(description="file, directory, or URL (https://..., s3://...) of one, without a password")
    checksums: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 by file name; a file with another content is refused"
    )


class Alex20Source(_Files):
    """Alex-20: {train,val,test}.csv with a column `cif`, as published, or the .lmdb that CrystalFormer makes of them.

    Published at https://huggingface.co/datasets/zdcao/alex-20, directory alex20 (1.34 million rows); `path` may be
    https://huggingface.co/datasets/zdcao/alex-20/resolve/main/alex20 or a local copy.
    """

    kind: Literal["alex20"] = "alex20"


class MP20Source(_Files):
    """MP-20 in CDVAE's layout: {train,val,test}.csv with material_id, cif, formation_energy_per_atom, ..."""

    kind: Literal["mp20"] = "mp20"


class CifDirSource(_Files):
    """A directory of CIF files; each data block is a record."""

    kind: Literal["cif-dir"] = "cif-dir"
    pattern: str = Field(default="**/*.cif", description="which files of the directory, whatever their capitals")


class FilesSource(_Files):
    """A directory of structures in files of several kinds, told apart by their names.

    CIF, POSCAR and CONTCAR (also *.vasp), pymatgen's JSON, and through ASE *.xyz (extended), *.xsf, *.res,
    *.gen; each data block or frame is a record.
    """

    kind: Literal["files"] = "files"
    pattern: str = Field(default="**/*", description="which files of the directory, whatever their capitals")


class ParquetSource(_Files):
    """Parquet with lattice (9 floats), atomic_numbers, frac_coords (flattened); optional id, energies, split."""

    kind: Literal["parquet"] = "parquet"
    split_column: str = Field(default="split", description="column with the given splits, where there is one")


SourceConfig = Annotated[
    PrototypesSource | Alex20Source | MP20Source | CifDirSource | FilesSource | ParquetSource,
    Field(discriminator="kind"),
]


class SplitConfig(_Section):
    """Shares of the splits. New splits follow a hash of (seed, reduced formula).

    All polymorphs of a formula share a split, so no two matching structures are ever on different sides, and a
    row's split does not depend on which other rows there are.
    """

    mode: Literal["auto", "given", "formula"] = Field(
        default="auto", description="given: the source's own; formula: new ones; auto: given where the source has them"
    )
    train: float = Field(default=0.8, gt=0, le=1)
    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, description="changes the assignment by formula")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares train + val + test must sum to 1, got {total:g}")
        return self


class DataConfig(_Section):
    """One data set: its source, what is accepted, how it is split.

    >>> DataConfig.model_validate({"source": {"kind": "mp20", "path": "mp_20/"}}).source.kind
    'mp20'
    """

    source: SourceConfig = Field(default_factory=PrototypesSource)
    symprec: float = Field(default=0.01, gt=0, description="symmetry tolerance of the tokeniser in Å")
    max_sites: int = Field(
        default=20, ge=1, le=20, description="symmetry-inequivalent sites at most; others are rejected"
    )
    max_atoms: int | None = Field(
        default=None, ge=1, description="atoms of the primitive cell at most; others are rejected"
    )
    max_atomic_number: int = Field(default=118, ge=1, le=118, description="crystals with heavier elements are rejected")
    max_e_above_hull: float | None = Field(
        default=None, description="eV/atom; records that state a larger energy above the hull are rejected"
    )
    limit: int | None = Field(default=None, ge=1, description="read this many records at most (for trials)")
    deduplicate: bool = Field(default=True, description="keep one of each set of matching structures")
    split: SplitConfig = Field(default_factory=SplitConfig)
    shard_size: int = Field(
        default=4096, ge=1, description="records of one unit of work; unchanged units are not redone"
    )
