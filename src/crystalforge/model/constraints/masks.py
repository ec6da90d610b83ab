"""Constraints as masks on the next token, for a batch of crystals of any groups.

Shapes: B crystals, W letters, A elements, E classes of elements, S + 1 numbers of sites, C cells of a ledger.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from crystalforge.crystal import ATOM_TYPES, WYCKOFF_TYPES
from crystalforge.model.constraints.automaton import automaton_from_json, plan
from crystalforge.model.constraints.constraints import Constraints


class Masks:
    """The tables of all groups of a run, end to end on one device. A crystal's state is one number, its cell.

    InputError when a group cannot meet the constraints. Each table [..., C] of group g starts at its own offset; the
    lookups below are gathers at offset + flat position.
    """

    def __init__(self, constraints: Constraints, groups: Iterable[int], slots: int, device: torch.device | str) -> None:
        self._plan = plan(constraints, slots)
        wish = constraints.model_dump_json()
        parts = {group: automaton_from_json(wish, group, slots) for group in sorted(set(groups))}
        self._letters = self._by_group({group: part.step.shape[0] for group, part in parts.items()}, device)
        self._cells = self._by_group({group: part.step.shape[2] for group, part in parts.items()}, device)
        self._reachable = _Flat({group: part.reachable for group, part in parts.items()}, device)
        self._site = _Flat({group: part.site for group, part in parts.items()}, device)
        self._stop = _Flat({group: part.stop for group, part in parts.items()}, device)
        self._step = _Flat({group: part.step for group, part in parts.items()}, device)
        self._class_of = torch.tensor(self._plan.class_of, device=device)
        self._site_elements = torch.tensor(self._plan.site_elements, device=device)
        self._site_classes = torch.tensor(self._plan.site_classes, device=device)

    def start(self, index: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """The cells of crystals without a site."""
        return torch.zeros_like(index)

    def letters(self, slot: int, spacegroup: Int64[Tensor, " B"], cell: Int64[Tensor, " B"]) -> Bool[Tensor, "B 28"]:
        """Which letters (0: the pad) may stand at `slot`. That they ascend is the law's business."""
        count, cells = self._letters[spacegroup], self._cells[spacegroup]
        letter = torch.arange(WYCKOFF_TYPES, device=cell.device)
        exists = letter < count[:, None]
        row = slot * count[:, None] + torch.where(exists, letter, 0)
        allowed = self._site(spacegroup[:, None], row * cells[:, None] + cell[:, None]) & exists
        allowed[:, 0] = self._stop(spacegroup, slot * cells + cell)
        return allowed

    def elements(
        self,
        slot: int,
        spacegroup: Int64[Tensor, " B"],
        letter: Int64[Tensor, " B"],
        cell: Int64[Tensor, " B"],
        earlier: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B A"]:
        """Which elements may stand on the site at `slot`; `earlier` holds those of the sites before it."""
        kinds = torch.arange(self._plan.n_classes, device=cell.device)
        after = self._after(slot, spacegroup[:, None], letter[:, None], kinds, cell[:, None])
        count, cells = self._letters[spacegroup, None], self._cells[spacegroup, None]
        position = ((slot + 1) * count + letter[:, None]) * cells + after.clamp(min=0)
        good = (after >= 0) & self._reachable(spacegroup[:, None], position) & self._site_classes[slot]
        read = self._plan.tie_read[slot]
        if read:
            good &= (cell % self._plan.tie_cells)[:, None] // read % self._plan.n_classes == kinds
        allowed = good[:, self._class_of.clamp(min=0)] & self._site_elements[slot]
        leader = self._plan.leader[slot]
        if leader >= 0:
            allowed &= torch.arange(ATOM_TYPES, device=cell.device) == earlier[:, leader, None]
        return allowed

    def advance(
        self,
        slot: int,
        spacegroup: Int64[Tensor, " B"],
        letter: Int64[Tensor, " B"],
        element: Int64[Tensor, " B"],
        cell: Int64[Tensor, " B"],
    ) -> Int64[Tensor, " B"]:
        """The cells after a site of these letters and elements."""
        return self._after(slot, spacegroup, letter, self._class_of[element], cell)

    def _after(self, slot: int, spacegroup: Tensor, letter: Tensor, kind: Tensor, cell: Tensor) -> Tensor:
        row = letter * self._plan.n_classes + kind
        after = self._step(spacegroup, row * self._cells[spacegroup] + cell)
        return torch.where(after >= 0, after + kind * self._plan.tie_stride[slot], after)

    @staticmethod
    def _by_group(values: dict[int, int], device: torch.device | str) -> Int64[Tensor, 231]:
        table = torch.zeros(231, dtype=torch.int64, device=device)
        for group, value in values.items():
            table[group] = value
        return table


class _Flat:
    """Arrays of several groups laid end to end; a lookup takes the group and the flat position in its array."""

    def __init__(self, arrays: dict[int, np.ndarray], device: torch.device | str) -> None:
        offset, begin = torch.zeros(231, dtype=torch.int64), 0
        for group, array in arrays.items():
            offset[group], begin = begin, begin + array.size
        self._offset = offset.to(device)
        self._values = torch.from_numpy(np.concatenate([array.ravel() for array in arrays.values()])).to(device)

    def __call__(self, spacegroup: Tensor, position: Tensor) -> Tensor:
        return self._values[self._offset[spacegroup] + position]
