"""Tokens as tensors: the batch that the network, the likelihood and the sampler share.

Shapes: B crystals, S site slots (pads at the end).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crystalforge.crystal import MAX_SITES
from crystalforge.crystal.tokens import Tokens
from crystalforge.model.tables import tables


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """A batch of tokenised crystals on one device.

    spacegroup: 1..230. wyckoff: 0 = pad, a = 1, ... element: atomic number, 0 = pad. coords: fractional, in
    [0, 1). lattice: (a, b, c)/N^(1/3) in Å, then angles in radians. See `crystalforge.crystal.tokens.Tokens`.
    """

    spacegroup: Int64[Tensor, " B"]
    wyckoff: Int64[Tensor, "B S"]
    element: Int64[Tensor, "B S"]
    coords: Float[Tensor, "B S 3"]
    lattice: Float[Tensor, "B 6"]

    @classmethod
    def from_tokens(
        cls, tokens: Tokens, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> TokenBatch:
        """Copy `tokens` to `device`; coordinates and lattice become `dtype` (None: torch's default, float32)."""
        dtype = dtype or torch.get_default_dtype()
        return cls(
            torch.as_tensor(tokens.spacegroup, dtype=torch.int64).to(device),
            torch.as_tensor(tokens.wyckoff, dtype=torch.int64).to(device),
            torch.as_tensor(tokens.element, dtype=torch.int64).to(device),
            torch.as_tensor(tokens.coords, dtype=dtype).to(device),
            torch.as_tensor(tokens.lattice, dtype=dtype).to(device),
        )

    def to_tokens(self) -> Tokens:
        """Copy to NumPy (float64 coordinates and lattice)."""

        def integers(tensor: Tensor) -> Any:
            return tensor.to(torch.int32).cpu().numpy()

        def reals(tensor: Tensor) -> Any:
            return tensor.detach().to("cpu", torch.float64).numpy()

        return Tokens(
            integers(self.spacegroup),
            integers(self.wyckoff),
            integers(self.element),
            reals(self.coords),
            reals(self.lattice),
        )

    @property
    def is_site(self) -> Bool[Tensor, "B S"]:
        """True where a slot holds a site."""
        return self.wyckoff > 0

    @property
    def n_sites(self) -> Int64[Tensor, " B"]:
        """Symmetry-inequivalent sites of each crystal."""
        return self.is_site.sum(dim=1)

    @property
    def multiplicity(self) -> Int64[Tensor, "B S"]:
        """Atoms of each site's orbit in the conventional cell; 0 for pads."""
        return tables(self.device).multiplicity[self.spacegroup[:, None] - 1, self.wyckoff]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.wyckoff.device

    @property
    def slots(self) -> int:
        """Site slots S."""
        return self.wyckoff.shape[1]

    def __len__(self) -> int:
        return len(self.spacegroup)

    def __getitem__(self, rows: Any) -> TokenBatch:
        """Rows by slice, mask or index array; an integer gives a batch of one."""
        if isinstance(rows, int):
            rows = [rows]
        return TokenBatch(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def with_slots(self, slots: int) -> TokenBatch:
        """The same crystals in `slots` slots; slots that hold a site are never cut off."""
        assert slots >= int(self.n_sites.max()) if len(self) else True, "a slot that holds a site would be lost"
        if slots <= self.slots:
            return replace(
                self,
                wyckoff=self.wyckoff[:, :slots],
                element=self.element[:, :slots],
                coords=self.coords[:, :slots],
            )
        grow = slots - self.slots
        pad = torch.nn.functional.pad
        return replace(
            self,
            wyckoff=pad(self.wyckoff, (0, grow)),
            element=pad(self.element, (0, grow)),
            coords=pad(self.coords, (0, 0, 0, grow)),
        )

    def truncated(self) -> TokenBatch:
        """Only the slots that matter: the longest crystal's sites and the pad at which its lattice is read.

        All that follows the first pad is deterministic, so no likelihood changes.
        """
        longest = int(self.n_sites.max()) if len(self) else 0
        return self.with_slots(min(longest + 1, max(self.slots, MAX_SITES)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TokenBatch:
        """The batch on `device`; `dtype`, when given, is that of coordinates and lattice."""
        return TokenBatch(
            self.spacegroup.to(device),
            self.wyckoff.to(device),
            self.element.to(device),
            self.coords.to(device, dtype),
            self.lattice.to(device, dtype),
        )
