"""The network with two tokens a site: the same crystals, letters and laws as `network`, at half the work.

A published crystal of n sites is 5n + 1 tokens, most of which say little: a third of the sites of Materials Project
crystals have no free coordinate at all. Here it is 2n + 1. Row by row:

token 0       the space group       -> logits of the letter W_0 (and of the element, the lattice: see below)
token 2i + 1  P_i = (W_i, A_i)      -> mixtures of x_i, of y_i given x_i, of z_i given both
token 2i + 2  S_i = (W_i, A_i, X_i) -> logits of the next letter; of its element given that letter; the lattice,
                                       were the crystal to end here

What is conditioned within a token (an element on its letter, y on x) goes through a small gated MLP of its own instead
of all blocks. Inputs that the published network lacks, all functions of earlier tokens:
- a Wyckoff position is known by its representative's map, its multiplicity and its free coordinates as well as by a
  learned vector, and the logits of letters are scalar products with these vectors, so that positions alike in two
  groups share what is learned;
- a site's coordinates come as the structure factors of its orbit too, which are the same whichever of the orbit's
  points was written down;
- every token knows the composition and the structure factors of all sites so far, per atom.

Shapes: B crystals, S site slots, T tokens, D width, E embedding, W letters, H structure factors, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crystalforge.crystal import WYCKOFF_TYPES, wyckoff
from crystalforge.model.batch import TokenBatch
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import (
    LATTICE_SIZE,
    SCALE_FLOOR,
    SPACE_GROUPS,
    CoordMixture,
    CrystalFormer,
    Heads,
    LatticeMixture,
    activated,
    coord_mixture,
    make_norm,
)
from crystalforge.model.tables import tables

TOKENS_OF_SITE = 2
LARGEST_INDEX = 2  # of a structure factor, along each axis
N_FACTORS = ((2 * LARGEST_INDEX + 1) ** 3 - 1) // 2  # of h and -h one is enough
SYSTEMS = 7
N_FEATURES = 1 + 12 + 3 + SYSTEMS


@dataclass(frozen=True, eq=False)
class SoFar:
    """Sums over the sites written so far, in atoms of the conventional cell.

    atoms: how many. elements: of the elements' short vectors. factors: of the orbits' structure factors.
    """

    atoms: Float[Tensor, "*b"]
    elements: Float[Tensor, "*b E"]
    factors: Float[Tensor, "*b H2"]

    def __add__(self, other: SoFar) -> SoFar:
        return SoFar(self.atoms + other.atoms, self.elements + other.elements, self.factors + other.factors)

    def per_atom(self) -> Float[Tensor, "*b F"]:
        """What the network reads: means, and how many atoms."""
        n = self.atoms[..., None]
        return torch.cat([self.elements / n.clamp(min=1), self.factors / n.clamp(min=1), (1 + n).log()], dim=-1)


class Conditioned(nn.Module):
    """A head that knows more than its token: hidden state and condition through a gated MLP, added to the state."""

    def __init__(self, config: ModelConfig, condition: int) -> None:
        super().__init__()
        inner = 2 * config.width
        self.up = nn.Linear(config.width + condition, 2 * inner)
        self.down = nn.Linear(inner, config.width)
        self.norm = make_norm(config)
        self.matrix_parts = {"up.weight": 2, "down.weight": 1}

    def forward(self, hidden: Float[Tensor, "*b D"], condition: Float[Tensor, "*b C"]) -> Float[Tensor, "*b D"]:
        """The state for the condition, normalised."""
        return self.norm(hidden + self.down(activated(self.up(torch.cat([hidden, condition], dim=-1)), gated=True)))


class SiteFormer(CrystalFormer):
    """p(crystal | space group) as raw heads, from two tokens a site; see the module's docstring.

    >>> model = SiteFormer(ModelConfig(layout="sites", layers=2, heads=4, head_size=16, width=64))
    >>> model(batch).element.shape                                                       # doctest: +SKIP
    """

    features: Tensor

    def build(self, config: ModelConfig) -> None:
        """The modules before the blocks."""
        e, width, waves = config.embedding, config.width, 2 * config.coord_frequencies
        self.spacegroup_embedding = nn.Embedding(SPACE_GROUPS, e)
        self.wyckoff_embedding = nn.Embedding(SPACE_GROUPS * WYCKOFF_TYPES, e)
        self.element_embedding = nn.Embedding(config.atom_types, width)  # tied: also the logits' directions
        self.element_sum = nn.Linear(width, e, bias=False)
        self.group_in = nn.Linear(e, width)
        self.wyckoff_in = nn.Linear(2 * e + N_FEATURES, width)
        self.site_in = nn.Linear(width, width)  # turns W and A of a site with coordinates
        self.coord_in = nn.Linear(3 * waves + 2 * N_FACTORS, width)
        self.sofar_in = nn.ModuleList(nn.Linear(e + 2 * N_FACTORS + 1, width) for _ in range(2))
        self.register_buffer("features", position_features(), persistent=False)

    def build_outputs(self, config: ModelConfig) -> None:
        """The modules after the blocks."""
        width, waves = config.width, 2 * config.coord_frequencies
        self.head = nn.Linear(width, width)  # towards the letters' vectors
        self.letter_bias = nn.Embedding(1, config.wyckoff_types)
        self.element_head = Conditioned(config, width)
        self.coord_heads = nn.ModuleList(Conditioned(config, axis * waves) for axis in (1, 2))
        self.coord_out = nn.ModuleList(nn.Linear(width, 3 * config.coord_components) for _ in range(3))
        self.lattice_out = nn.Linear(width, 13 * config.lattice_components)

    def reset_parameters(self) -> None:
        """Unit gain everywhere; what is added to the residual stream starts at zero, and so do mixtures' logits."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0)
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
        width = self.config.width
        nn.init.normal_(self.element_embedding.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.letter_bias.weight)
        for name, parameter in self.named_parameters():
            if name.endswith((".out.weight", ".down.weight")):
                nn.init.zeros_(parameter)
        for module in [*self.coord_out, self.lattice_out]:
            nn.init.normal_(module.weight, std=0.1 / math.sqrt(width))
        k = self.config.lattice_components
        loc = self.lattice_out.bias[k : (1 + LATTICE_SIZE) * k].detach().unflatten(0, (k, LATTICE_SIZE))
        loc.copy_(torch.tensor([3.0] * 3 + [math.pi / 2] * 3) + 0.3 * torch.randn(k, LATTICE_SIZE))

    @property
    def positions_of_longest(self) -> int:
        """Positions of the longest crystal."""
        return TOKENS_OF_SITE * self.config.max_sites + 1

    # ---- all tokens at once -------------------------------------------------------------------------------------

    def forward(self, batch: TokenBatch) -> Heads:
        """Heads of every slot given the tokens before it (teacher forcing)."""
        full = bool((batch.wyckoff[:, -1] > 0).any())
        sites = batch.slots if full else batch.slots - 1
        positions = self.positions(batch.spacegroup)
        group = batch.spacegroup[:, None].expand(-1, sites)
        letter, element, coords = batch.wyckoff[:, :sites], batch.element[:, :sites], batch.coords[:, :sites]
        position = positions.gather(1, letter[..., None].expand(-1, -1, self.config.width))
        factors = structure_factors(group, letter, coords)
        own = self.own(group, letter, element, factors)
        after = SoFar(*(getattr(own, name).cumsum(dim=1) for name in ("atoms", "elements", "factors")))
        before = SoFar(after.atoms - own.atoms, after.elements - own.elements, after.factors - own.factors)
        pair = torch.stack(
            [
                self.embed_position(position, element, before),
                self.embed_site(position, element, coords, factors, after),
            ],
            dim=2,
        )
        x = torch.cat([self.embed_group(batch.spacegroup)[:, None], pair.flatten(1, 2)], dim=1)
        hidden = self.backbone(x)
        with torch.autocast(hidden.device.type, enabled=False):
            kind = self.head.weight.dtype
            hidden, position, positions = hidden.to(kind), position.to(kind), positions.to(kind)
            context, at_position = hidden[:, 0::2][:, : batch.slots], hidden[:, 1::2]
            if not full:
                pad = self.position_of(positions, torch.zeros_like(batch.spacegroup))
                position = torch.cat([position, pad[:, None]], dim=1)
                at_position = F.pad(at_position, (0, 0, 0, 1))
            else:
                context = context[:, : batch.slots]
            mixtures = [self.read_coord(axis, at_position, batch.coords[..., :axis]) for axis in range(3)]
            return Heads(
                self.read_letter(context, positions),
                self.read_element(context, position),
                CoordMixture(*(torch.stack(parts, dim=2) for parts in zip(*map(_parts, mixtures), strict=True))),
                self.read_lattice(context),
            )

    # ---- tokens in ----------------------------------------------------------------------------------------------

    def positions(self, spacegroup: Int64[Tensor, " B"]) -> Float[Tensor, "B W D"]:
        """The vectors of all Wyckoff positions of each crystal's group; number 0 is that of the pad."""
        g = spacegroup - 1
        types = self.config.wyckoff_types
        letter = torch.arange(types, device=g.device)
        parts = [
            self.spacegroup_embedding(g)[:, None].expand(-1, types, -1),
            self.wyckoff_embedding(g[:, None] * WYCKOFF_TYPES + letter),
            self.features[g].to(self.head.weight.dtype),
        ]
        return self.wyckoff_in(torch.cat(parts, dim=-1))

    def position_of(self, positions: Float[Tensor, "B W D"], letter: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """The vector of one letter of each row."""
        return positions[torch.arange(len(letter), device=letter.device), letter]

    def nothing(self, rows: int) -> SoFar:
        """Before the first site."""
        weight = self.head.weight
        return SoFar(
            weight.new_zeros(rows),
            weight.new_zeros((rows, self.config.embedding)),
            weight.new_zeros((rows, 2 * N_FACTORS)),
        )

    def own(
        self,
        spacegroup: Int64[Tensor, "*b"],
        letter: Int64[Tensor, "*b"],
        element: Int64[Tensor, "*b"],
        factors: Float[Tensor, "*b H2"],
    ) -> SoFar:
        """What one site adds to the sums."""
        atoms = tables(letter.device).multiplicity[spacegroup - 1, letter].to(self.head.weight.dtype)
        vector = self.element_sum(self.element_embedding(element) * math.sqrt(self.config.width))
        return SoFar(atoms, atoms[..., None] * vector, atoms[..., None] * factors.to(atoms.dtype))

    def embed_group(self, spacegroup: Int64[Tensor, "*b"]) -> Float[Tensor, "*b D"]:
        """The first token."""
        return self.group_in(self.spacegroup_embedding(spacegroup - 1))

    def embed_position(
        self, position: Float[Tensor, "*b D"], element: Int64[Tensor, "*b"], before: SoFar
    ) -> Float[Tensor, "*b D"]:
        """P tokens: letter and element of a site whose coordinates are still to come."""
        return position + self._element(element) + self.sofar_in[0](before.per_atom())

    def embed_site(
        self,
        position: Float[Tensor, "*b D"],
        element: Int64[Tensor, "*b"],
        coords: Float[Tensor, "*b 3"],
        factors: Float[Tensor, "*b H2"],
        after: SoFar,
    ) -> Float[Tensor, "*b D"]:
        """S tokens: whole sites."""
        where = torch.cat([self.waves(coords).flatten(-2), factors.to(position.dtype)], dim=-1)
        return (
            self.site_in(position + self._element(element)) + self.coord_in(where) + self.sofar_in[1](after.per_atom())
        )

    def waves(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b waves"]:
        """sin and cos of 2πnx, n = 1..N_f."""
        order = torch.arange(1, self.config.coord_frequencies + 1, device=x.device, dtype=x.dtype)
        angle = 2 * math.pi * order * x[..., None]
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.head.weight.dtype)

    def _element(self, element: Int64[Tensor, "*b"]) -> Float[Tensor, "*b D"]:
        return self.element_embedding(element) * math.sqrt(self.config.width)

    # ---- heads out ----------------------------------------------------------------------------------------------

    def read_letter(
        self, context: Float[Tensor, "B *s D"], positions: Float[Tensor, "B W D"]
    ) -> Float[Tensor, "B *s W"]:
        """Logits of the next letter from the hidden state of the token before it (after the final norm)."""
        query = self.head(context) / math.sqrt(self.config.width)
        scores = query @ positions.transpose(1, 2) if context.ndim == 3 else _rows(query, positions)
        return scores + self.letter_bias.weight[0]

    def read_element(self, context: Float[Tensor, "*b D"], position: Float[Tensor, "*b D"]) -> Float[Tensor, "*b A"]:
        """Logits of the element from the same state and the letter that was chosen."""
        return F.linear(self.element_head(context, position), self.element_embedding.weight)

    def read_lattice(self, context: Float[Tensor, "*b D"]) -> LatticeMixture:
        """The lattice of a crystal whose last site was read with this state."""
        k = self.config.lattice_components
        logits, loc, scale = self.lattice_out(context).split([k, LATTICE_SIZE * k, LATTICE_SIZE * k], dim=-1)
        return LatticeMixture(
            logits,
            loc.unflatten(-1, (k, LATTICE_SIZE)),
            F.softplus(scale.unflatten(-1, (k, LATTICE_SIZE))) + SCALE_FLOOR,
        )

    def read_coord(self, axis: int, hidden: Float[Tensor, "*b D"], earlier: Float[Tensor, "*b axis"]) -> CoordMixture:
        """Mixture of coordinate `axis` from a P token's state and the coordinates before it."""
        if axis:
            hidden = self.coord_heads[axis - 1](hidden, self.waves(earlier).flatten(-2))
        return coord_mixture(self.coord_out[axis](hidden), self.config)


def _parts(mixture: CoordMixture) -> tuple[Tensor, Tensor, Tensor]:
    return mixture.logits, mixture.loc, mixture.kappa


def _rows(query: Float[Tensor, "B D"], positions: Float[Tensor, "B W D"]) -> Float[Tensor, "B W"]:
    return torch.bmm(positions, query[..., None]).squeeze(-1)


@cache
def position_features() -> Float[Tensor, "230 W F"]:
    """Of every Wyckoff position: log multiplicity, the representative's map, what is free, the crystal system."""
    result = np.zeros((SPACE_GROUPS, WYCKOFF_TYPES, N_FEATURES), np.float32)
    result[..., 0] = np.log1p(wyckoff.multiplicity())
    result[..., 1:13] = wyckoff.representatives().reshape(SPACE_GROUPS, WYCKOFF_TYPES, 12)
    result[..., 13:16] = wyckoff.is_free()
    systems = ["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"]
    for g in range(SPACE_GROUPS):
        result[g, :, 16 + systems.index(wyckoff.crystal_system(g + 1))] = 1
    return torch.from_numpy(result)


@cache
def _orbits(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h·R and h·t of every orbit operation, where each position's begin, and the h themselves."""
    n = LARGEST_INDEX
    grid = np.array(list(np.ndindex((2 * n + 1,) * 3)), dtype=np.int64) - n
    h = grid[len(grid) // 2 + 1 :]
    table = wyckoff.operation_table()
    turned = np.einsum("hi,tij->thj", h, table.rotations.astype(np.int64))
    shifted = table.translations @ h.T
    return (
        torch.tensor(turned, dtype=torch.float64, device=device),
        torch.tensor(shifted, dtype=torch.float64, device=device),
        torch.tensor(table.offset, device=device),
        torch.tensor(h, device=device),
    )


def structure_factors(
    spacegroup: Int64[Tensor, "*b"], letter: Int64[Tensor, "*b"], coords: Float[Tensor, "*b 3"]
) -> Float[Tensor, "*b H2"]:
    """Mean of cos and of sin of 2π h·r over the points r of each site's orbit; zeros on pads."""
    turned, shifted, offset, _ = _orbits(str(coords.device))
    g, w, r = spacegroup.reshape(-1) - 1, letter.reshape(-1), coords.reshape(-1, 3)
    count = tables(coords.device).multiplicity[g, w]
    site = torch.repeat_interleave(torch.arange(len(g), device=g.device), count)
    first = count.cumsum(0) - count
    row = (offset[g, w] - first)[site] + torch.arange(len(site), device=g.device)
    angle = torch.einsum("nhi,ni->nh", turned[row].to(r.dtype), r[site]) + shifted[row].to(r.dtype)
    angle = 2 * math.pi * angle
    sums = r.new_zeros(len(g), 2 * N_FACTORS).index_add(0, site, torch.cat([angle.cos(), angle.sin()], dim=-1))
    return (sums / count.clamp(min=1)[:, None]).unflatten(0, letter.shape)
