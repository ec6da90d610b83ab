"""The network one token at a time, for crystals that all stand at the same position.

The same function as `CrystalFormer.backbone`, rearranged for decoding; a test holds the two together.
- A value is an affine map of its token's normalised input (D channels instead of H·d), and attention weights sum
  to 1. So the inputs are kept instead of the values, and value and output maps become one: H·D -> D.
- All rows stand at one position, so the rotation is applied to the query and key weights once, not to every row. The
  two channels of a rotated pair are then neighbours: their order does not matter to a scalar product.
- Keys lie in pages of `PAGE` positions, [B·H, PAGE, d]: a batch of small products over a page runs at the speed of
  memory, over a slice of a longer buffer at a fraction of it.
- In bfloat16 the products and inputs are bfloat16; the residual stream, norms, softmax and (on a CPU, whose
  small bfloat16 products are slower than reading float32) the keys are float32.

Shapes: B rows, D width, H heads, d channels of a head, I = H·d, O = 2·I (query and key), M = H·D (mixed inputs).
Of the maps to be rotated: R = 2·H (query and key heads), half = d/2, E = D + 1 (the bias is the last column).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from crystalforge.common.errors import InputError
from crystalforge.model.network import RMS_EPSILON, Block, CrystalFormer, activated

PAGE = 10  # positions: two sites
PRECISIONS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.float32, torch.bfloat16),
    "float64": (torch.float64, torch.float64),
}  # of the residual stream and heads, and of the products


@dataclass(frozen=True, eq=False)
class PackedBlock:
    """A block's weights in the order in which decoding reads them."""

    attention_norm: tuple[Tensor, Tensor | None]
    rotated: Complex[Tensor, "E R half"]  # query (scaled by 1/√d) and key maps; a pair of channels is one number
    mixed_out: Float[Tensor, "D M"]
    mixed_bias: Float[Tensor, " D"]
    mlp_norm: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    gated: bool

    @classmethod
    def pack(cls, block: Block, stream: torch.dtype, product: torch.dtype) -> PackedBlock:
        """From a block in any precision."""
        h, d = block.heads, block.head_size
        weight, bias = block.qkv.weight.double(), block.qkv.bias.double()
        query, key, value = torch.cat([weight, bias[:, None]], dim=1).chunk(3)
        pairs = torch.cat([query / math.sqrt(d), key]).reshape(2 * h, 2, d // 2, -1)
        out = block.out.weight.double().unflatten(1, (h, d))  # D H d
        value_weight, value_bias = value[:, :-1].unflatten(0, (h, d)), value[:, -1].unflatten(0, (h, d))

        def pair(module: torch.nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            return module.weight.to(dtype), module.bias.to(dtype)

        def norm(module: torch.nn.LayerNorm | torch.nn.RMSNorm) -> tuple[Tensor, Tensor | None]:
            bias = None if isinstance(module, torch.nn.RMSNorm) else module.bias.to(stream)
            return module.weight.to(stream), bias

        return cls(
            attention_norm=norm(block.attention_norm),
            rotated=torch.complex(pairs[:, 0].to(stream), pairs[:, 1].to(stream)).permute(2, 0, 1).contiguous(),
            mixed_out=torch.einsum("ohd,hdi->ohi", out, value_weight).flatten(1).to(product),
            mixed_bias=(torch.einsum("ohd,hd->o", out, value_bias) + block.out.bias.double()).to(product),
            mlp_norm=norm(block.mlp_norm),
            up=pair(block.up, product),
            down=pair(block.down, product),
            gated=block.gated,
        )

    def query_key(
        self, rotation: Complex[Tensor, " half"], product: torch.dtype
    ) -> tuple[Float[Tensor, " O"], Float[Tensor, "D O"]]:
        """Bias and weight of the query and key map at the position of this rotation."""
        turned = torch.view_as_real(self.rotated * rotation).flatten(1).to(product)
        return turned[-1], turned[:-1]


class CloseRanks:
    """Bring the kept rows of any tensor to its front, in place, and return that front.

    Only rows from the end move, into the holes: as few as can be. The order of rows changes.

    >>> CloseRanks(torch.tensor([True, False, True, True]))(torch.tensor([10, 11, 12, 13])).tolist()
    [10, 13, 12]
    """

    def __init__(self, kept: Bool[Tensor, " B"]) -> None:
        self.rows = int(kept.sum())
        self._target = (~kept[: self.rows]).nonzero().squeeze(1)
        self._source = kept[self.rows :].nonzero().squeeze(1) + self.rows

    def __call__(self, tensor: Tensor) -> Tensor:
        if len(self._target):
            tensor[self._target] = tensor[self._source]
        return tensor[: self.rows]


class Memory:
    """What one block keeps of the positions seen so far: keys in pages, inputs in one buffer.

    Buffers outlive a batch: to touch fresh memory costs more than to write it.
    """

    def __init__(self, heads: int, capacity: int, page: int) -> None:
        self.heads, self.capacity, self.page = heads, capacity, page
        self._buffers: list[Tensor] = []
        self.restart(0)

    def restart(self, rows: int) -> None:
        """Forget everything, for a batch of `rows`."""
        self.rows = rows
        self.keys: list[Tensor] = []
        self.inputs: Tensor | None = None

    def append(
        self, position: int, key: Float[Tensor, "B I"], entry: Float[Tensor, "B D"], key_dtype: torch.dtype
    ) -> None:
        """Keep the key and the normalised input of `position`."""
        number, place = divmod(position, self.page)
        if number == len(self.keys):
            self.keys.append(self._new_page(number, key.shape[1] // self.heads, key_dtype, key.device))
        shape = (self.rows, self.heads)
        self.keys[number].unflatten(0, shape)[:, :, place] = key.unflatten(1, (self.heads, -1))
        if self.inputs is None:
            self.inputs = entry.new_empty((self.rows, self.capacity, entry.shape[1]))
        self.inputs[:, position] = entry

    def _new_page(self, number: int, size: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "BH page d"]:
        shape = (self.rows * self.heads, self.page, size)
        needed = math.prod(shape)
        if number == len(self._buffers):
            self._buffers.append(torch.empty(needed, dtype=dtype, device=device))
        elif len(self._buffers[number]) < needed:
            self._buffers[number] = torch.empty(needed, dtype=dtype, device=device)
        return self._buffers[number][:needed].view(shape)

    def attend(self, position: int, query: Float[Tensor, "B I"]) -> Float[Tensor, "B M"]:
        """Each head's average input under its attention weights, over positions 0..position."""
        assert self.inputs is not None
        # A transposed row: bmm takes a column that is contiguous down a path four times slower.
        column = query.reshape(self.rows * self.heads, 1, -1).transpose(1, 2)
        pages = [torch.bmm(page, column) for page in self.keys]
        scores = (pages[0] if len(pages) == 1 else torch.cat(pages, dim=1)).view(self.rows, self.heads, -1)
        seen = position + 1
        # Over the first axis: softmax over a short last one is five times slower than to transpose twice.
        weights = scores[:, :, :seen].permute(2, 0, 1).contiguous().softmax(dim=0).permute(1, 2, 0)
        return torch.bmm(weights.to(self.inputs.dtype).contiguous(), self.inputs[:, :seen]).flatten(1)

    def close_ranks(self, move: CloseRanks) -> None:
        """Let go of the rows that `move` does not keep."""
        shape = (self.rows, self.heads)
        self.keys = [move(page.unflatten(0, shape)).flatten(0, 1) for page in self.keys]
        if self.inputs is not None:
            self.inputs = move(self.inputs)
        self.rows = move.rows


class Decoder:
    """The model's weights packed for decoding in one precision; `start` gives a batch's memory.

    >>> decoder = Decoder(model, "float32")                                       # doctest: +SKIP
    >>> memory = decoder.start(rows=2)                                            # doctest: +SKIP
    >>> hidden = decoder.step(decoder.network.embed_wyckoff(g, w), memory, 0)     # doctest: +SKIP
    """

    def __init__(self, model: CrystalFormer, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}", remedy=f"use one of {', '.join(sorted(PRECISIONS))}")
        self.stream, self.product = PRECISIONS[precision]
        self.device = model.head.weight.device
        # bfloat16 keys only where small bfloat16 products are fast.
        self.key_dtype = self.product if self.device.type != "cpu" else self.stream
        self.network = copy.deepcopy(model).eval().requires_grad_(False)
        self.blocks = [PackedBlock.pack(cast(Block, block), self.stream, self.product) for block in self.network.blocks]
        self.network.to(self.stream)  # from here on for its embeddings and heads
        capacity = self.network.cos.shape[0]
        page = PAGE if self.device.type == "cpu" else capacity
        self._memory = [Memory(model.config.heads, capacity, page) for _ in self.blocks]

    def start(self, rows: int) -> list[Memory]:
        """Empty memory of `rows` crystals, one entry per block. It is the decoder's own: one batch at a time."""
        for memory in self._memory:
            memory.restart(rows)
        return self._memory

    def step(self, x: Float[Tensor, "B D"], memory: list[Memory], position: int) -> Float[Tensor, "B D"]:
        """The final hidden state (after the last norm) of the token `x` at `position`."""
        rotation = torch.complex(self.network.cos[position], self.network.sin[position])
        for block, past in zip(self.blocks, memory, strict=True):
            entry = _normalised(x, block.attention_norm).to(self.product)
            bias, weight = block.query_key(rotation, self.product)
            query, key = torch.addmm(bias, entry, weight).chunk(2, dim=1)
            past.append(position, key, entry, self.key_dtype)
            mixed = past.attend(position, query.to(self.key_dtype))
            x = x + F.linear(mixed, block.mixed_out, block.mixed_bias)
            hidden = F.linear(_normalised(x, block.mlp_norm).to(self.product), *block.up)
            x = x + F.linear(activated(hidden, block.gated), *block.down)
        return self.network.norm(x)


def _normalised(x: Float[Tensor, "B D"], weights: tuple[Tensor, Tensor | None]) -> Float[Tensor, "B D"]:
    """Layer norm, or RMS norm where there is no bias."""
    weight, bias = weights
    if bias is None:
        return F.rms_norm(x, x.shape[1:], weight, RMS_EPSILON)
    return F.layer_norm(x, x.shape[1:], weight, bias)
