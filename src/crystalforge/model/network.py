"""The network: a causal transformer over (Wyckoff letter, element, x, y, z) tokens, five per site.

CrystalFormer (arXiv 2403.15734), rotary positions as of its version 0.4. Row by row:
token 5i   W_i -> logits of the element A_i, and the lattice mixture (read at the first pad)
token 5i+1 A_i -> mixture of x_i;  5i+2 X_i -> of y_i;  5i+3 Y_i -> of z_i
token 5i+4 Z_i -> logits of the next letter W_{i+1}
The first letter comes from a small network on the space group alone. Outputs are raw: masks and normalisation are
`crystalforge.model.distributions`' business.

Declared deviation: dropout masks differ from sample to sample (the reference shares one over the batch).

Shapes: B crystals, S site slots, T tokens, D width, H heads, d channels of a head, K mixture components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crystalforge.model.attention import attend, dropout, interleaved
from crystalforge.model.batch import TokenBatch
from crystalforge.model.config import ModelConfig
from crystalforge.model.tables import tables

SPACE_GROUPS = 230
TOKENS_PER_SITE = 5
LARGEST_LOG_KAPPA = 12.0  # a width of 0.0004 of the cell: sharper peaks are of single crystals
RMS_EPSILON = 1e-6
SCALE_FLOOR = 1e-3  # smallest width of a lattice Gaussian
LATTICE_SIZE = 6


@dataclass(frozen=True, eq=False)
class CoordMixture:
    """Von Mises mixtures of fractional coordinates, as angles 2π(x - 1/2).

    logits: unnormalised log weights. loc: radians, any real. kappa: concentrations, >= 0.
    """

    logits: Float[Tensor, "*batch K"]
    loc: Float[Tensor, "*batch K"]
    kappa: Float[Tensor, "*batch K"]


@dataclass(frozen=True, eq=False)
class LatticeMixture:
    """Gaussian mixtures over the six lattice parameters (scaled Å, radians).

    logits: unnormalised log weights. loc, scale: of each component and parameter; scale >= 1e-3.
    """

    logits: Float[Tensor, "*batch K"]
    loc: Float[Tensor, "*batch K 6"]
    scale: Float[Tensor, "*batch K 6"]

    def at(self, slot: Int64[Tensor, " B"]) -> LatticeMixture:
        """Of a mixture per slot (batch B S), the one at each row's `slot`."""
        row = torch.arange(len(slot), device=slot.device)
        return LatticeMixture(self.logits[row, slot], self.loc[row, slot], self.scale[row, slot])


@dataclass(frozen=True, eq=False)
class Heads:
    """What the network says about each slot, before masks and normalisation.

    wyckoff: logits of the letter AT the slot (slot 0 from the space group alone). element: logits of the element at
    the slot. coords: mixtures of (x, y, z) at the slot. lattice: the lattice, were this slot the first pad.
    The coords of a last slot that is a pad everywhere are meaningless: its tokens are not computed.
    """

    wyckoff: Float[Tensor, "B S W"]
    element: Float[Tensor, "B S A"]
    coords: CoordMixture
    lattice: LatticeMixture


def rotate(
    x: Float[Tensor, "*batch T d"], cos: Float[Tensor, "*#rows T half"], sin: Float[Tensor, "*#rows T half"]
) -> Float[Tensor, "*batch T d"]:
    """Rotary position embedding (arXiv 2104.09864), half-split: channel m turns with channel m + d/2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_angles(
    positions: int, channels: int, dtype: torch.dtype | None = None
) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
    """cos and sin of position x 10000^(-2m/d). The published model builds them in float32, whatever it runs in.

    dtype: None for torch's default, which is float32.
    """
    dtype = dtype or torch.get_default_dtype()
    frequency = 1.0 / 10000.0 ** (torch.arange(0, channels, 2, dtype=dtype) / channels)
    angle = torch.arange(positions, dtype=dtype)[:, None] * frequency
    return angle.cos(), angle.sin()


def make_norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The configuration's normalisation over the width."""
    return nn.RMSNorm(config.width, eps=RMS_EPSILON) if config.norm == "rms" else nn.LayerNorm(config.width)


def activated(x: Float[Tensor, "*batch N"], gated: bool) -> Float[Tensor, "*batch M"]:
    """An MLP's hidden channels: tanh-GELU, or SiLU of the first half times the second (arXiv 2002.05202)."""
    if not gated:
        return F.gelu(x, approximate="tanh")
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


class Block(nn.Module):
    """One pre-norm transformer block: causal attention, then an MLP with tanh-GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_size = config.heads, config.head_size
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        inner = config.heads * config.head_size
        self.attention_norm = make_norm(config)
        self.qkv = nn.Linear(config.width, 3 * inner)  # columns: query | key | value, each head-major
        self.out = nn.Linear(inner, config.width)
        self.mlp_norm = make_norm(config)
        self.gated = config.gated
        self.up = nn.Linear(config.width, (2 if config.gated else 1) * config.hidden)  # rows: gate | value
        self.down = nn.Linear(config.hidden, config.width)
        self.matrix_parts = {"qkv.weight": 3, "out.weight": 1, "up.weight": 1 + config.gated, "down.weight": 1}

    def forward(
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "T half"], sin: Float[Tensor, "T half"]
    ) -> Float[Tensor, "B T D"]:
        """All tokens at once."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return self._attend_on_cpu(x, cos, sin)
        query, key, value = self.project(x, cos, sin)
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.attention_dropout if self.training else 0.0
        )
        return self.finish(x, attended)

    def _attend_on_cpu(
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "T half"], sin: Float[Tensor, "T half"]
    ) -> Float[Tensor, "B T D"]:
        weight, bias = (interleaved(part, self.heads) for part in (self.qkv.weight, self.qkv.bias))
        joined = F.linear(self.attention_norm(x), weight, bias)
        rate = self.attention_dropout if self.training else 0.0
        return self._feed_forward(x, attend(joined, cos, sin, self.heads, rate))

    def step(
        self,
        x: Float[Tensor, "B 1 D"],
        cos: Float[Tensor, "*#rows 1 half"],
        sin: Float[Tensor, "*#rows 1 half"],
        keys: Float[Tensor, "B H capacity d"],
        values: Float[Tensor, "B H capacity d"],
        position: int,
    ) -> Float[Tensor, "B 1 D"]:
        """One token at `position`; `keys` and `values` hold the earlier ones and receive this one."""
        query, key, value = self.project(x, cos, sin)
        keys[:, :, position : position + 1] = key
        values[:, :, position : position + 1] = value
        seen = position + 1
        return self.finish(x, F.scaled_dot_product_attention(query, keys[:, :, :seen], values[:, :, :seen]))

    def project(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "*#rows T half"],
        sin: Float[Tensor, "*#rows T half"],
    ) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B H T d"], Float[Tensor, "B H T d"]]:
        """Rotated queries and keys, and values."""
        joined = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, self.head_size))
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        cos, sin = cos.to(query.dtype), sin.to(query.dtype)
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def finish(self, x: Float[Tensor, "B T D"], attended: Float[Tensor, "B H T d"]) -> Float[Tensor, "B T D"]:
        """The residual stream after attention's output and the MLP."""
        return self._feed_forward(x, attended.transpose(1, 2).flatten(2))

    def _feed_forward(self, x: Float[Tensor, "B T D"], attended: Float[Tensor, "B T inner"]) -> Float[Tensor, "B T D"]:
        x = x + dropout(self.out(attended), self.dropout, self.training)
        hidden = activated(self.up(self.mlp_norm(x)), self.gated)
        return x + dropout(self.down(hidden), self.dropout, self.training)


def coord_mixture(raw: Float[Tensor, "*batch K3"], config: ModelConfig) -> CoordMixture:
    """The mixture that a head's output stands for.

    Anchored: component k starts at 2πk/K, as wide as the distance to its neighbour, so that no two start alike; and
    as an exponential a concentration of thousands is as near as one of ten.
    """
    logits, loc, kappa = raw.chunk(3, dim=-1)
    if config.coord_head == "published":
        return CoordMixture(logits, loc, F.softplus(kappa))
    k = config.coord_components
    anchor = torch.arange(k, device=raw.device, dtype=raw.dtype) * (2 * math.pi / k)
    return CoordMixture(logits, anchor + loc, torch.exp((kappa + 2 * math.log(k / 6)).clamp(max=LARGEST_LOG_KAPPA)))


class CrystalFormer(nn.Module):
    """p(crystal | space group) as raw heads; see the module's docstring.

    >>> model = CrystalFormer(ModelConfig())
    >>> sum(p.numel() for p in model.parameters())
    4833575
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, *, rotary_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.build(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config)
        # Last: a seed's initial weights follow from the order in which the modules are made.
        self.build_outputs(config)
        cos, sin = rotary_angles(self.positions_of_longest, config.head_size, rotary_dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def build(self, config: ModelConfig) -> None:
        """The modules before the blocks."""
        e, width = config.embedding, config.width
        self.spacegroup_embedding = nn.Embedding(SPACE_GROUPS, e)
        self.wyckoff_embedding = nn.Embedding(config.wyckoff_types, e)
        self.element_embedding = nn.Embedding(config.atom_types, e)
        self.first_wyckoff: nn.Module
        if config.first_wyckoff_hidden:
            self.first_wyckoff = nn.Sequential(
                nn.Linear(e, config.first_wyckoff_hidden),
                nn.GELU(approximate="tanh"),
                nn.Linear(config.first_wyckoff_hidden, config.wyckoff_types),
            )
        else:
            self.first_wyckoff = nn.Embedding(SPACE_GROUPS, config.wyckoff_types)
        self.wyckoff_in = nn.Linear(2 * e + 1, width)
        self.element_in = nn.Linear(2 * e, width)
        self.coord_in = nn.ModuleList(nn.Linear(e + 2 * config.coord_frequencies, width) for _ in range(3))

    def build_outputs(self, config: ModelConfig) -> None:
        """The modules after the blocks."""
        self.head = nn.Linear(config.width, config.output_size)

    @property
    def positions_of_longest(self) -> int:
        """Positions of the longest crystal."""
        return TOKENS_PER_SITE * self.config.max_sites

    def reset_parameters(self) -> None:
        """Weights and embeddings ~ N(0, 0.01) cut at two standard deviations, biases 0, norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()

    def matrices(self) -> dict[str, int]:
        """Weights that map hidden states to hidden states, by name, and of how many matrices each consists.

        They lie below one another in one parameter. Embeddings and the outputs' maps are not among them.
        """
        return {
            f"{place}.{name}": parts
            for place, module in self.named_modules()
            for name, parts in getattr(module, "matrix_parts", {}).items()
        }

    def forward(self, batch: TokenBatch) -> Heads:
        """Heads of every slot given the tokens before it (teacher forcing)."""
        # A last slot that is a pad everywhere needs only its W token, at which the lattice is read.
        full = bool((batch.wyckoff[:, -1] > 0).any())
        tokens = TOKENS_PER_SITE * batch.slots - (0 if full else TOKENS_PER_SITE - 1)
        return self.read(batch, self.backbone(self.embed(batch)[:, :tokens]))

    def backbone(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The blocks and the final norm."""
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)

    # ---- tokens in -------------------------------------------------------------------------------------------

    def embed(self, batch: TokenBatch) -> Float[Tensor, "B T D"]:
        """All tokens, five per slot."""
        group = batch.spacegroup[:, None].expand(-1, batch.slots)
        x = torch.stack(
            [
                self.embed_wyckoff(group, batch.wyckoff),
                self.embed_element(group, batch.element),
                *(self.embed_coord(axis, group, batch.coords[..., axis]) for axis in range(3)),
            ],
            dim=2,
        )
        return x.flatten(1, 2)

    def embed_wyckoff(self, spacegroup: Int64[Tensor, "*b"], wyckoff: Int64[Tensor, "*b"]) -> Float[Tensor, "*b D"]:
        """W tokens; the raw multiplicity is an input too."""
        multiplicity = tables(wyckoff.device).multiplicity[spacegroup - 1, wyckoff]
        parts = [
            self.spacegroup_embedding(spacegroup - 1),
            self.wyckoff_embedding(wyckoff),
            multiplicity[..., None].to(self.head.weight.dtype),
        ]
        return self.wyckoff_in(torch.cat(parts, dim=-1))

    def embed_element(self, spacegroup: Int64[Tensor, "*b"], element: Int64[Tensor, "*b"]) -> Float[Tensor, "*b D"]:
        """A tokens."""
        parts = [self.spacegroup_embedding(spacegroup - 1), self.element_embedding(element)]
        return self.element_in(torch.cat(parts, dim=-1))

    def embed_coord(self, axis: int, spacegroup: Int64[Tensor, "*b"], x: Float[Tensor, "*b"]) -> Float[Tensor, "*b D"]:
        """X, Y or Z tokens (axis 0, 1, 2): sin and cos of 2πnx, n = 1..N_f, interleaved."""
        order = torch.arange(1, self.config.coord_frequencies + 1, device=x.device, dtype=x.dtype)
        angle = 2 * math.pi * order * x[..., None]
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
        parts = [self.spacegroup_embedding(spacegroup - 1), waves.to(self.head.weight.dtype)]
        return self.coord_in[axis](torch.cat(parts, dim=-1))

    # ---- heads out -------------------------------------------------------------------------------------------

    def read(self, batch: TokenBatch, hidden: Float[Tensor, "B T D"]) -> Heads:
        """Heads from the backbone's output; T may stop after the last slot's W token."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.head.weight.dtype)
            slots, tokens = batch.slots, hidden.shape[1]
            if tokens < TOKENS_PER_SITE * slots:
                hidden = F.pad(hidden, (0, 0, 0, TOKENS_PER_SITE * slots - tokens))
            by_slot = hidden.unflatten(1, (slots, TOKENS_PER_SITE))
            element, lattice = self.read_wyckoff_token(by_slot[:, :, 0])
            later = self.read_z_token(by_slot[:, :-1, 4])
            wyckoff = torch.cat([self.first_wyckoff_logits(batch.spacegroup)[:, None], later], dim=1)
            return Heads(wyckoff, element, self.read_coord_token(by_slot[:, :, 1:4]), lattice)

    def first_wyckoff_logits(self, spacegroup: Int64[Tensor, "*b"]) -> Float[Tensor, "*b W"]:
        """Logits of the first letter, from the space group alone."""
        index = spacegroup - 1
        return self.first_wyckoff(self.spacegroup_embedding(index) if self.config.first_wyckoff_hidden else index)

    def read_wyckoff_token(self, hidden: Float[Tensor, "*b D"]) -> tuple[Float[Tensor, "*b A"], LatticeMixture]:
        """Element logits and lattice mixture from a W token's hidden state (after the final norm)."""
        k, types = self.config.lattice_components, self.config.atom_types
        raw = self._head(hidden, types + 13 * k)
        logits, loc, scale = raw[..., types:].split([k, LATTICE_SIZE * k, LATTICE_SIZE * k], dim=-1)
        return raw[..., :types], LatticeMixture(
            logits,
            loc.unflatten(-1, (k, LATTICE_SIZE)),
            F.softplus(scale.unflatten(-1, (k, LATTICE_SIZE))) + SCALE_FLOOR,
        )

    def read_coord_token(self, hidden: Float[Tensor, "*b D"]) -> CoordMixture:
        """The next coordinate's mixture from an A, X or Y token's hidden state (after the final norm)."""
        return coord_mixture(self._head(hidden, 3 * self.config.coord_components), self.config)

    def read_z_token(self, hidden: Float[Tensor, "*b D"]) -> Float[Tensor, "*b W"]:
        """Logits of the next letter from a Z token's hidden state (after the final norm)."""
        return self._head(hidden, self.config.wyckoff_types)

    def _head(self, hidden: Tensor, columns: int) -> Tensor:
        # Only the columns in use: a coordinate needs 48 of 171.
        return F.linear(hidden, self.head.weight[:columns], self.head.bias[:columns])
