"""MatGL models (M3GNet, MEGNet, TensorNet, CHGNet) behind the `Potential` and `PropertyModel` protocols.

Checkpoints published before matgl 3 were trained with messages summed into an edge's destination node; matgl >= 3 sums
into the source node, loads them without complaint and predicts wrong numbers (the gap of SrTiO3 comes out as 0.00 eV
instead of 1.67). `load_matgl` puts the destination back for them, renames what was renamed, and checks that no
parameter is left over. The golden values of such checkpoints are held by a test.

Sources: Chen & Ong, Nature Computational Science 2, 718 (2022) (M3GNet); Chen et al., Chem. Mater. 31, 3564 (2019)
(MEGNet); Simeon & De Fabritiis, NeurIPS 2023 (TensorNet).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import BatchedPotential, Prediction, Scale, Values, cell_to_judge, predict_isolated
from crystalforge.potentials.config import MatGLConfig
from crystalforge.potentials.m3gnet import BondwiseM3GNet, supported
from crystalforge.potentials.neighbors import neighbor_list
from crystalforge.potentials.weights import digest_of

CLASSES = {
    "M3GNet": "matgl.models",
    "MEGNet": "matgl.models",
    "TensorNet": "matgl.models",
    "CHGNet": "matgl.models",
    "TransformedTargetModel": "matgl.models",
    "Potential": "matgl.apps.pes",
}
"""Classes that a checkpoint may name; anything else in it is refused rather than imported."""

RENAMED = (("readout.set2set.", "readout."),)
"""(old, new) parts of parameter names. Tried only where the old name exists and the model has none such."""

DERIVED_SUFFIXES = (".onehot",)
"""Entries of old checkpoints that are derived now."""


class MatGLPotential(BatchedPotential):
    """A MatGL potential, or a formation-energy model, which gives energies only.

    Trained on 89 elements (no Po, At, Rn, Fr, Ra; Z <= 94). Formation-energy models answer eV/atom; `predict` returns
    eV per cell as for every potential.
    """

    def __init__(self, config: MatGLConfig) -> None:
        self._model, aggregate = load_matgl(config.path, aggregate=config.aggregate)
        _place(self._model, config.device)
        self._device = torch.device(config.device)
        super().__init__(config.batch_atoms)
        self._state = config.state
        self._is_potential = type(self._model).__name__ == "Potential"
        if self._is_potential and self._model.calc_repuls:
            raise InputError("MatGL potentials with a ZBL repulsion are not supported", source=config.path)
        self._network = _network(self._model)
        _hasten(self._network, aggregate)
        self._types = element_types(self._network)
        self.elements = frozenset(self._types)
        self.name = f"matgl-{Path(config.path).name}"
        self.scale: Scale = config.scale or ("pbe" if self._is_potential else "formation")
        self.digest = digest_of(
            self._model.state_dict(),
            {"kind": type(self._network).__name__, "aggregate": aggregate, "state": config.state}
            | _transformer_settings(self._model),
        )

    def predict(self, crystals: Sequence[Crystal], *, forces: bool = False, stress: bool = False) -> Prediction:
        """See `Potential.predict`. Raises InputError when forces are asked of a formation-energy model."""
        if (forces or stress) and not self._is_potential:
            raise InputError(
                f"{self.name} predicts formation energies and has neither forces nor stress",
                remedy="choose a potential (…-PES) to relax with",
            )
        return super().predict(crystals, forces=forces, stress=stress)

    def _evaluate(self, crystals: Sequence[Crystal], forces: bool, stress: bool) -> Prediction:
        with torch.set_grad_enabled(forces or stress):
            graph = graph_of(crystals, self._network, self._types, self._device, forces=forces, stress=stress)
            state = _state(self._network, self._state, len(crystals), self._device)
            if not self._is_potential:
                per_atom = self._model(g=graph, state_attr=state).reshape(len(crystals))
                return Prediction(per_atom.double().cpu().numpy() * [len(crystal) for crystal in crystals])
            potential = self._model
            total = potential.data_std * self._network(g=graph, state_attr=state) + potential.data_mean
            return prediction_of(total, graph, crystals, potential.element_refs, forces=forces, stress=stress)


class MatGLProperty:
    """A MatGL property model: band gap, formation energy per atom, dielectric tensor, ..."""

    def __init__(
        self,
        path: Path,
        *,
        state: int | None = None,
        aggregate: str = "auto",
        device: str = "cpu",
        batch_atoms: int = 400,
    ) -> None:
        self._model, aggregate = load_matgl(path, aggregate=aggregate)
        if type(self._model).__name__ == "Potential":
            raise InputError("is a potential, not a property model", source=path)
        _place(self._model, device)
        self._device = torch.device(device)
        self._state, self._batch_atoms = state, batch_atoms
        self._network = _network(self._model)
        _hasten(self._network, aggregate)
        self._types = element_types(self._network)
        # Our predictors say which elements they were trained on; of others they know nothing but a random vector.
        trained = (json.loads((Path(path) / "model.json").read_text()).get("metadata") or {}).get("elements")
        self.elements = frozenset(self._types if trained is None else trained)
        self.name = f"matgl-{Path(path).name}"
        self.digest = digest_of(
            self._model.state_dict(),
            {"kind": type(self._network).__name__, "aggregate": aggregate, "state": state}
            | _transformer_settings(self._model),
        )

    def predict_values(self, crystals: Sequence[Crystal]) -> Values:
        """See `PropertyModel.predict_values`."""
        found: dict[int, Float64[np.ndarray, " K"]] = {}
        cells = [cell_to_judge(crystal) for crystal in crystals]

        def evaluate(chunk: Sequence[Crystal]) -> Prediction:
            with torch.no_grad():
                graph = graph_of(chunk, self._network, self._types, self._device, forces=False, stress=False)
                state = _state(self._network, self._state, len(chunk), self._device)
                values = self._model(g=graph, state_attr=state).reshape(len(chunk), -1).double().cpu().numpy()
            found.update({id(crystal): row for crystal, row in zip(chunk, values, strict=True)})
            # The sum stands for the row: it is finite exactly when all values are (barring overflow).
            return Prediction(values.sum(axis=1))

        answer = predict_isolated(
            cells, evaluate, elements=self.elements, max_atoms=self._batch_atoms, forces=False, stress=False
        )
        width = len(next(iter(found.values()))) if found else 1
        values = np.full((len(crystals), width), np.nan)
        for row, cell in enumerate(cells):
            if answer.problems[row] is None:
                values[row] = found[id(cell)]
        return Values(values, answer.problems)


def load_matgl(path: Path, *, aggregate: str = "auto") -> tuple[Any, str]:
    """Load a model from its folder. Returns it in evaluation mode and where its messages are summed.

    aggregate "auto": what `metadata.aggregate` in model.json says; without it, "destination" when the recorded
    constructor arguments are not those of the installed matgl, which is so for every checkpoint of before matgl 3. A
    checkpoint trained by another release of matgl >= 3 may look old as well: say "source" for it.
    Raises InputError naming the file when one is missing, unreadable, or does not fit the model.
    """
    path = Path(path)
    try:
        import importlib

        from matgl.data.transformer import LogTransformer, Normalizer
    except ImportError as error:
        raise missing_extra("matgl", "potentials", error) from error
    for name in ("model.json", "model.pt", "state.pt"):
        if not (path / name).is_file():
            raise InputError(f"{name} is missing", source=path, remedy="give a folder saved by matgl")
    try:
        description = json.loads((path / "model.json").read_text())
        with torch.serialization.safe_globals([Normalizer, LogTransformer]):
            arguments = torch.load(path / "model.pt", map_location="cpu", weights_only=True)
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises a dozen kinds
        raise InputError(f"is not a readable MatGL model ({type(error).__name__})", source=path) from error

    def make(class_name: str, given: dict[str, Any]) -> Any:
        if class_name not in CLASSES:
            raise InputError(f"names the class {class_name!r}", source=path, remedy=f"known: {', '.join(CLASSES)}")
        return getattr(importlib.import_module(CLASSES[class_name]), class_name)(**given)

    inner = arguments.get("model") or {}
    inner_arguments = inner.get("init_args", arguments)
    inner_class = inner.get("@class", description["@class"])
    network = make(inner_class, inner_arguments)
    model = make(description["@class"], {**arguments, "model": network}) if inner else network
    _load_state(model, state, path)
    if aggregate == "auto":
        aggregate = (description.get("metadata") or {}).get("aggregate") or (
            "source" if _is_current(type(network), inner_arguments) else "destination"
        )
    if aggregate == "destination":
        aggregate_into_destination(network)
    return model.eval().requires_grad_(False), aggregate


def _load_state(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    wanted = model.state_dict()
    renamed = {}
    for key, value in state.items():
        for old, new in RENAMED:
            if key not in wanted and old in key and key.replace(old, new) in wanted:
                key = key.replace(old, new)
        renamed[key] = value
    result = model.load_state_dict(renamed, strict=False)
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(set(result.missing_keys) & parameters)
    unexpected = sorted(key for key in result.unexpected_keys if not key.endswith(DERIVED_SUFFIXES))
    if missing:
        raise InputError(
            f"{len(missing)} parameters are not in the checkpoint ({', '.join(missing[:3])}; "
            f"unknown there: {', '.join(unexpected[:3]) or 'none'})",
            source=path / "state.pt",
            remedy="load it with the release of matgl that saved it, and save it again",
        )


def _is_current(network: type, arguments: dict[str, Any]) -> bool:
    """Whether the installed matgl would have recorded exactly these constructor arguments."""
    parameters = inspect.signature(network.__init__).parameters.values()
    named = {p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
    return named == set(arguments)


def aggregate_into_destination(network: torch.nn.Module) -> None:
    """Sum messages into the node that an edge points to, in this model alone."""
    patches = {"MEGNetGraphConv": _megnet, "M3GNetGraphConv": _m3gnet, "TensorEmbedding": _tensor_embedding}
    for module in network.modules():
        patch: Callable[[Any], None] | None = patches.get(type(module).__name__)
        if patch is not None:
            patch(module)


def _megnet(layer: Any) -> None:
    # This update uses the edge index only to say where the edge features go.
    original = layer.node_update_
    layer.node_update_ = lambda edge_index, *rest: original(edge_index.flip(0), *rest)


def _m3gnet(layer: Any) -> None:
    # Equation 5 of the M3GNet paper: a gated message of both ends, the edge (and the state), weighted by distance.
    def node_update(
        edge_index: torch.Tensor,
        edges: torch.Tensor,
        nodes: torch.Tensor,
        rbf: torch.Tensor,
        state: torch.Tensor | None,
        num_nodes: int,
    ) -> torch.Tensor:
        source, destination = edge_index[0].long(), edge_index[1].long()
        parts = [nodes[source], nodes[destination], edges]
        if state is not None:
            parts.append(state)
        message = layer.node_update_func(torch.cat(parts, dim=1)) * layer.node_weight_func(rbf)
        return message.new_zeros((num_nodes, message.shape[1])).index_add(0, destination, message)

    layer.node_update_ = node_update


def _tensor_embedding(layer: Any) -> None:
    # With the edge turned round the sum goes where it should; the ends of the message are then put back in order.
    forward, message = layer.forward, layer.message
    layer.forward = lambda z, edge_index, *rest, **named: forward(z, edge_index.flip(0), *rest, **named)
    layer.message = lambda x_i, x_j, **named: message(x_i=x_j, x_j=x_i, **named)


def _network(model: Any) -> Any:
    """The graph network inside a wrapper."""
    return getattr(model, "model", model)


def element_types(network: Any) -> dict[int, int]:
    """Index of each atomic number in the model's embedding."""
    from pymatgen.core import Element

    return {Element(symbol).Z: index for index, symbol in enumerate(network.element_types)}


def _transformer_settings(model: Any) -> dict[str, Any]:
    transformer = getattr(model, "transformer", None)
    values = vars(transformer) if transformer is not None else {}
    return {"transformer": {key: np.asarray(value, dtype=np.float64).tolist() for key, value in values.items()}}


def _place(model: Any, device: str) -> None:
    """Move a model; a transformer is no module, so its tensors need moving by hand."""
    model.to(device)
    for key, value in vars(getattr(model, "transformer", None) or SimpleNamespace()).items():
        if isinstance(value, torch.Tensor):
            setattr(model.transformer, key, value.to(device))


def _hasten(network: Any, aggregate: str) -> None:
    """Let an M3GNet that is in its final place (device, type) work bond by bond; others stay as they are."""
    if supported(network):
        network.forward = BondwiseM3GNet(network, into=int(aggregate == "destination"))


def _state(network: Any, state: int | None, count: int, device: torch.device) -> torch.Tensor | None:
    """Global state per crystal: a fidelity index where the model embeds one, else MatGL's default of zeros."""
    if not getattr(network, "include_state", type(network).__name__ == "MEGNet"):
        return None
    if getattr(network.embedding, "ntypes_state", None):
        return torch.full((count,), state or 0, dtype=torch.long, device=device)
    return torch.zeros((count, 2), device=device)


def prediction_of(
    total: torch.Tensor,
    graph: SimpleNamespace,
    crystals: Sequence[Crystal],
    references: Any,
    *,
    forces: bool,
    stress: bool,
) -> Prediction:
    """Energies of a batch as a prediction, with what is asked for of their gradients.

    total: eV for each crystal, without the elements' own energies, which `references` (or None) add. Forces in eV/Å, by
    crystal; stress in eV/Å³, gradient by strain over volume.
    """
    total = total.reshape(len(crystals))
    wanted = [tensor for tensor, ask in ((graph.pos, forces), (graph.strain, stress)) if ask]
    gradients = list(torch.autograd.grad(total.sum(), wanted)) if wanted else []
    energy = total.detach().double().cpu().numpy()
    if references is not None:
        offset = references.property_offset.double().cpu().numpy()
        own = offset[graph.node_type.cpu().numpy()]
        energy = energy + np.bincount(graph.batch.cpu().numpy(), own, len(crystals))
    force = stresses = None
    if forces:
        ends = np.cumsum([len(crystal) for crystal in crystals])
        force = np.split(-gradients.pop(0).double().cpu().numpy(), ends[:-1])
    if stress:
        volumes = np.array([crystal.volume for crystal in crystals])
        stresses = gradients.pop(0).double().cpu().numpy() / volumes[:, None, None]
    return Prediction(energy, force, stresses)


def graph_of(
    crystals: Sequence[Crystal],
    network: Any,
    types: dict[int, int],
    device: torch.device,
    *,
    forces: bool,
    stress: bool,
) -> SimpleNamespace:
    """The batch as the networks read it: attributes of a graph, without torch_geometric's bookkeeping."""
    dtype = next(network.parameters()).dtype
    edges = neighbor_list(crystals, float(network.cutoff))
    owner = np.repeat(np.arange(len(crystals)), [len(crystal) for crystal in crystals])
    if len(edges.center) == 0 or (np.bincount(edges.center, minlength=len(owner)) == 0).any():
        raise ValueError(f"an atom has no neighbour within {float(network.cutoff):g} Å")
    numbers = np.concatenate([crystal.numbers for crystal in crystals])
    lattice = torch.as_tensor(np.stack([crystal.lattice for crystal in crystals]), dtype=dtype, device=device)
    strain = torch.zeros_like(lattice, requires_grad=stress)
    strained = lattice @ (torch.eye(3, dtype=dtype, device=device) + strain)
    frac = torch.as_tensor(np.concatenate([crystal.frac for crystal in crystals]), dtype=dtype, device=device)
    batch = torch.as_tensor(owner, device=device)
    positions = torch.einsum("ni,nij->nj", frac, strained[batch])
    if forces and not stress:
        positions.requires_grad_(True)
    image = torch.as_tensor(edges.image, dtype=dtype, device=device)
    edge_batch = torch.as_tensor(edges.crystal, device=device)
    return SimpleNamespace(
        node_type=torch.as_tensor(np.array([types[int(z)] for z in numbers]), device=device),
        pos=positions,
        edge_index=torch.as_tensor(np.stack([edges.center, edges.neighbor]), device=device),
        pbc_offshift=torch.einsum("ei,eij->ej", image, strained[edge_batch]),
        batch=batch,
        num_graphs=len(crystals),
        strain=strain,
    )
