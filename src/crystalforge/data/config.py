"""Where the crystals come from and how they become tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SourceName = Literal["prototypes", "alex20", "mp20", "cif-dir", "parquet"]
SPLITS = ("train", "val", "test")


class SplitConfig(BaseModel):
    """Shares of the splits. Rows are assigned by a hash of (seed, reduced formula).

    All polymorphs of a formula share a split, so no two matching structures are ever on different sides, and a
    row's split does not depend on which other rows there are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["auto", "given", "formula"] = Field(
        "auto",
        description="'given' uses the source's own splits, 'formula' makes new ones, 'auto' takes what is given",
    )
    train: float = Field(0.8, gt=0, le=1)
    val: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0, description="changes the assignment by formula")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares train + val + test must sum to 1, got {total:g}")
        return self


class DataConfig(BaseModel):
    """One data set: its source, what is accepted, how it is split.

    >>> DataConfig(source="mp20", path="mp_20/").source
    'mp20'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: SourceName = Field(
        "prototypes", description="layout of the data; 'prototypes' ships with the package"
    )
    path: str | None = Field(
        None, description="file, directory or URL (https://, s3://) of the data; not needed for 'prototypes'"
    )
    checksums: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 by file name; a download that differs is refused"
    )
    symprec: float = Field(0.01, gt=0, description="symmetry tolerance of the tokeniser in Å")
    max_sites: int = Field(
        20, ge=1, le=20, description="symmetry-inequivalent sites at most; the others are rejected"
    )
    max_atoms: int = Field(
        20, ge=1, description="atoms of the primitive cell at most; the others are rejected"
    )
    max_atomic_number: int = Field(118, ge=1, le=118, description="heavier elements are rejected")
    max_e_above_hull: float | None = Field(
        None, description="eV/atom; rows that state a larger energy above the hull are rejected"
    )
    limit: int | None = Field(None, ge=1, description="read this many records at most (for trials)")
    deduplicate: bool = Field(True, description="keep one of each set of matching structures")
    split: SplitConfig = Field(default_factory=SplitConfig)
    shard_size: int = Field(
        4096, ge=1, description="records of one unit of work; unchanged units are not redone"
    )

    @model_validator(mode="after")
    def _path_is_there(self) -> DataConfig:
        if self.source != "prototypes" and self.path is None:
            raise ValueError(f"source {self.source!r} needs a path: a file, a directory or a URL")
        return self
