"""M3GNet's forward pass bond by bond instead of triple by triple.

M3GNet: Chen & Ong, Nature Computational Science 2, 718 (2022).

MatGL sums the three-body messages over all pairs of bonds of an atom: a thousand in an inorganic crystal with bonds up
to 5 Å. Their angular part is a Legendre polynomial, and by the addition theorem of spherical harmonics P_l(u . v) = sum
over m of Y_lm(u) Y_lm(v), so that

    sum over k != j of P_l(cos jik) g_ik  =  sum over m of Y_lm(ij) [sum over k of Y_lm(ik) g_ik]  -  g_ij :

one pass over the bonds to gather an atom's moments, one to read them off. No triple is ever made. Likewise the first
layer of the messages is linear in (atom, atom, bond), so the atoms' part is worked out once per atom rather than once
per bond, and value and gate of a gated layer share one matrix product.

Nothing is approximated: the answers are those of MatGL's own forward pass to rounding (a test holds them together), and
so are the gradients, since all of it is differentiable.

Shapes: N atoms, E directed bonds, S of them within the three-body cutoff, L and R numbers of angular and radial
functions, C channels. Units: Å.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

LARGEST_DEGREE = 3
"""Spherical harmonics are written out up to this degree; published models go to 2 (`max_l` 3) or 3."""


def supported(network: Any) -> bool:
    """Whether `BondwiseM3GNet` covers this network; if not, MatGL's own forward pass serves."""
    from matgl.layers._core import GatedMLP

    if type(network).__name__ != "M3GNet" or network.include_state or network.max_l > LARGEST_DEGREE + 1:
        return False
    if network.basis_expansion.use_phi:
        return False
    gated = [
        function
        for layer in network.graph_layers
        for function in (layer.conv.edge_update_func, layer.conv.node_update_func)
    ]
    return all(type(function) is GatedMLP and function.activate_last for function in gated)


class BondwiseM3GNet:
    """A drop-in for the `forward` of one loaded M3GNet; it copies weights, so it must be made after loading.

    into: the end of a bond that messages are summed into, 0 (source) or 1 (destination).
    """

    def __init__(self, network: Any, into: int) -> None:
        assert supported(network)
        self._network, self._into = network, into
        self._blocks = [
            _Block(three_body, layer.conv)
            for three_body, layer in zip(network.three_body_interactions, network.graph_layers, strict=True)
        ]
        inner, outer = network.basis_expansion.sbf, network.bond_expansion.rbf
        self._shared_basis = not inner.smooth and _settings(inner) == _settings(outer)

    def __call__(self, g: SimpleNamespace, state_attr: torch.Tensor | None = None) -> torch.Tensor:
        """Answer of the network for a batch, as MatGL's `forward` gives it; `g` as `matgl.graph_of` makes it."""
        network = self._network
        source, destination = g.edge_index[0], g.edge_index[1]
        vectors = g.pos.index_select(0, destination) + g.pbc_offshift - g.pos.index_select(0, source)
        lengths = vectors.norm(dim=1)
        radial = network.bond_expansion(lengths)
        short = None if network.threebody_cutoff >= network.cutoff else lengths <= network.threebody_cutoff
        near = (lambda values: values) if short is None else (lambda values: values[short])
        envelope = _envelope(near(lengths), network.threebody_cutoff)[:, None]
        inner = near(radial) if self._shared_basis else network.basis_expansion.sbf(near(lengths))
        inner = inner * envelope
        angular = _Angular(
            harmonics(near(vectors / lengths[:, None]), network.max_l), near(source), len(g.pos), network.max_n
        )
        end = near(destination)

        nodes, edges, _ = network.embedding(g.node_type, radial, None)
        index = destination if self._into else source
        for block in self._blocks:
            update = block.three_body_update(nodes, inner, angular, envelope, end)
            edges = edges + update if short is None else edges.index_put((short,), update, accumulate=True)
            edges, message = block.messages(nodes, edges, radial, source, destination)
            nodes = nodes.index_add(0, index, message)

        if network.is_intensive:
            return torch.squeeze(_classified(network, network.final_layer(network._readout(nodes, edges, g.batch))))
        atomic = network.final_layer(nodes).view(-1)
        return torch.squeeze(atomic.new_zeros(g.num_graphs).index_add(0, g.batch, atomic))


def _classified(network: Any, output: torch.Tensor) -> torch.Tensor:
    return network.sigmoid(output) if network.task_type == "classification" else output


def _settings(basis: Any) -> tuple[Any, ...]:
    return type(basis), basis.max_l, basis.max_n, basis.smooth, float(basis.cutoff)


def _envelope(lengths: Float[torch.Tensor, " S"], cutoff: float) -> Float[torch.Tensor, " S"]:
    """1 at 0, and 0 at the cutoff with two vanishing derivatives (arXiv:2003.03123, equation 8, p = 3)."""
    x = lengths / cutoff
    return 1 + x**3 * (-10 + x * (15 - 6 * x))


def harmonics(unit: Float[torch.Tensor, "S 3"], degrees: int) -> list[Float[torch.Tensor, "S _"]]:
    """Real spherical harmonics of l = 0 .. degrees - 1, scaled so that sum over m Y_lm(u) Y_lm(v) = P_l(u . v)."""
    x, y, z = unit.unbind(1)
    table = [torch.ones_like(unit[:, :1]), unit]
    if degrees > 2:
        three = math.sqrt(3)
        columns = [three * x * y, three * y * z, three * x * z, three / 2 * (x * x - y * y), 1.5 * z * z - 0.5]
        table.append(torch.stack(columns, dim=1))
    if degrees > 3:
        columns = [
            math.sqrt(5 / 8) * y * (3 * x * x - y * y),
            math.sqrt(15) * x * y * z,
            math.sqrt(3 / 8) * y * (5 * z * z - 1),
            0.5 * z * (5 * z * z - 3),
            math.sqrt(3 / 8) * x * (5 * z * z - 1),
            math.sqrt(15) / 2 * z * (x * x - y * y),
            math.sqrt(5 / 8) * x * (x * x - 3 * y * y),
        ]
        table.append(torch.stack(columns, dim=1))
    assert degrees <= LARGEST_DEGREE + 1
    return table[:degrees]


class _Angular:
    """Sums over the other bonds of a bond's centre, weighted by the angle between the two."""

    def __init__(
        self, tables: list[torch.Tensor], center: Int[torch.Tensor, " S"], atoms: int, radial_functions: int
    ) -> None:
        self._tables, self._center, self._atoms, self._radial = tables, center, atoms, radial_functions
        norms = [
            math.sqrt((2 * degree + 1) / (4 * math.pi))
            for degree in range(len(tables))
            for _ in range(radial_functions)
        ]
        self._norms = torch.tensor(norms, dtype=tables[0].dtype, device=center.device)

    def others(self, weights: Float[torch.Tensor, "S LR"]) -> Float[torch.Tensor, "S LR"]:
        """For each bond ij: sum over k != j of Y_l0(cos jik) weights_ik."""
        around = []
        for table, weight in zip(self._tables, weights.split(self._radial, dim=1), strict=True):
            moments = weight.new_zeros(self._atoms, table.shape[1] * self._radial)
            spread = (table[:, :, None] * weight[:, None, :]).flatten(1)
            moments = moments.index_add(0, self._center, spread).index_select(0, self._center)
            around.append((table[:, :, None] * moments.view(len(table), -1, self._radial)).sum(dim=1))
        return (torch.cat(around, dim=1) - weights) * self._norms


class _Gated:
    """A gated MLP whose value and gate are worked out side by side; the first layer is split by its inputs."""

    def __init__(self, mlp: Any) -> None:
        pairs = [
            (value, gate)
            for value, gate in zip(mlp.layers, mlp.gates, strict=False)
            if isinstance(value, torch.nn.Linear)
        ]
        self.first = torch.cat([pairs[0][0].weight, pairs[0][1].weight])
        biases: list[torch.Tensor] = [layer.bias for layer in pairs[0] if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else self.first.new_zeros(len(self.first))
        self._later = pairs[1:]

    def finish(self, hidden: Float[torch.Tensor, "E _"]) -> tuple[torch.Tensor, torch.Tensor]:
        """What follows the first product: (value, gate), whose product is the answer. May overwrite `hidden`."""
        spare = not torch.is_grad_enabled()
        value, gate = hidden.chunk(2, dim=1)
        for layer, other in self._later:
            value, gate = layer(F.silu(value, inplace=spare)), other(F.silu(gate, inplace=spare))
        return F.silu(value, inplace=spare), gate.sigmoid_() if spare else gate.sigmoid()


class _Block:
    """One three-body update and one graph convolution."""

    def __init__(self, three_body: Any, conv: Any) -> None:
        self._of_atom, self._of_bond = three_body.update_network_atom, _Gated(three_body.update_network_bond)
        self._edge, self._node = _Gated(conv.edge_update_func), _Gated(conv.node_update_func)
        self._edge_weight, self._node_weight = conv.edge_weight_func, conv.node_weight_func
        atoms = (self._edge.first.shape[1] - conv.edge_update_func.layers[-2].out_features) // 2
        # [2C or 4C, ends of the bond, bond]
        both = torch.cat([self._edge.first, self._node.first])
        self._ends = torch.cat([both[:, :atoms], both[:, atoms : 2 * atoms]]).contiguous()
        self._end_bias = torch.cat([self._edge.bias, self._node.bias])
        self._on_edge = self._edge.first[:, 2 * atoms :].T.contiguous()
        self._on_node = self._node.first[:, 2 * atoms :].T.contiguous()
        self._width = len(self._edge.first)

    def three_body_update(
        self,
        nodes: torch.Tensor,
        inner: torch.Tensor,
        angular: _Angular,
        envelope: torch.Tensor,
        end: torch.Tensor,
    ) -> torch.Tensor:
        """What the short bonds learn of their neighbours, equations 2 and 3 of the paper."""
        gathered = angular.others(inner * self._of_atom(nodes).index_select(0, end)) * envelope
        value, gate = self._of_bond.finish(F.linear(gathered, self._of_bond.first))
        return value * gate

    def messages(
        self,
        nodes: torch.Tensor,
        edges: torch.Tensor,
        radial: torch.Tensor,
        source: torch.Tensor,
        destination: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The bonds' new features and the messages to their atoms, equations 4 and 5."""
        from_source, from_destination = F.linear(nodes, self._ends).chunk(2, dim=1)
        ends = (from_source + self._end_bias).index_select(0, source)
        ends = ends.add_(from_destination.index_select(0, destination))
        on_edge, on_node = ends.split(self._width, dim=1)
        value, gate = self._edge.finish(torch.addmm(on_edge, edges, self._on_edge))
        edges = torch.addcmul(edges, value * gate, self._edge_weight(radial))
        value, gate = self._node.finish(torch.addmm(on_node, edges, self._on_node))
        return edges, value * gate * self._node_weight(radial)
