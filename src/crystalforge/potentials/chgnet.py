"""CHGNet (Deng et al., Nature Machine Intelligence 5, 1031 (2023)) behind the `Potential` protocol.

The package's own graph converter works crystal by crystal through Python objects and leaves autograd on. Here
the whole batch is built with array operations and handed to the same network; energies differ by rounding
only (a test holds them together).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from crystalforge.common.errors import missing_extra
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import BatchedPotential, Prediction, Scale
from crystalforge.potentials.config import CHGNetConfig
from crystalforge.potentials.neighbors import angles, neighbor_list, pair_up
from crystalforge.potentials.weights import digest_of


class CHGNetPotential(BatchedPotential):
    """The pretrained CHGNet; elements H to Pu (Z <= 94).

    One thread per process is by far the fastest on a CPU: call `torch.set_num_threads(1)` and run one process
    per core. That is the caller's decision, as it concerns the whole process. An atom without a neighbour within 6 Å is
    a problem of its crystal.

    >>> potential = CHGNetPotential(CHGNetConfig())                       # doctest: +SKIP
    >>> potential.predict([salt]).energy / len(salt)                      # doctest: +SKIP
    array([-3.38...])
    """

    elements = frozenset(range(1, 95))

    def __init__(self, config: CHGNetConfig) -> None:
        try:
            from chgnet.model.model import CHGNet
        except ImportError as error:
            raise missing_extra("chgnet", "potentials", error) from error
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            model: Any = CHGNet.load(model_name=config.model, use_device=config.device, verbose=False)
        self._dtype = torch.float64 if config.dtype == "float64" else torch.float32
        self._model = model.to(self._dtype).eval().requires_grad_(False)
        self._device = torch.device(config.device)
        super().__init__(config.batch_atoms)
        self._reference = model.composition_model.fc.weight[0].double().cpu().numpy()
        self.name = f"chgnet-{config.model}"
        self.scale: Scale = "r2scan" if config.model == "r2scan" else "mp2020"
        self.digest = digest_of(model.state_dict(), {"config": config.model, "dtype": config.dtype})

    def _evaluate(self, crystals: Sequence[Crystal], forces: bool, stress: bool) -> Prediction:
        from chgnet.model.model import BatchedGraph

        model = self._model
        counts = np.array([len(crystal) for crystal in crystals])
        edges, undirected, representative = pair_up(
            neighbor_list(crystals, float(model.model_args["atom_graph_cutoff"]))
        )
        left, right = angles(edges, float(model.model_args["bond_graph_cutoff"]))
        owner = np.repeat(np.arange(len(crystals)), counts)
        lonely = np.bincount(edges.center, minlength=len(owner)) == 0
        problems = np.bincount(owner, weights=lonely, minlength=len(crystals)) > 0

        def real(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=self._dtype, device=self._device)

        def index(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.int64, device=self._device)

        numbers = np.concatenate([crystal.numbers for crystal in crystals])
        with torch.set_grad_enabled(forces or stress):
            lattice = real(np.stack([crystal.lattice for crystal in crystals]))
            strain = torch.zeros_like(lattice, requires_grad=stress)
            strained = lattice @ (torch.eye(3, dtype=self._dtype, device=self._device) + strain)
            frac = real(np.concatenate([crystal.frac for crystal in crystals]))
            positions = torch.einsum("ni,nij->nj", frac, strained[index(owner)])
            if forces and not stress:
                positions.requires_grad_(True)
            center, crystal_of = index(edges.center), index(edges.crystal)
            shift = torch.einsum("ei,eij->ej", real(edges.image), strained[crystal_of])
            vectors = positions[center] - positions[index(edges.neighbor)] - shift
            lengths = vectors.norm(dim=1)
            unit = vectors / lengths[:, None]
            bond_lengths = lengths[index(representative)]
            expansion = model.bond_basis_expansion
            graph = BatchedGraph(
                atomic_numbers=index(numbers),
                bond_bases_ag=expansion.rbf_expansion_ag(bond_lengths),
                bond_bases_bg=expansion.rbf_expansion_bg(bond_lengths),
                angle_bases=(
                    model.angle_basis_expansion(unit[index(left)], unit[index(right)])
                    if len(left)
                    else real(np.zeros(0))
                ),
                batched_atom_graph=torch.stack([center, index(edges.neighbor)], dim=1),
                batched_bond_graph=index(np.column_stack([edges.center[left], undirected[left], undirected[right]])),
                atom_owners=index(owner),
                directed2undirected=index(undirected),
                atom_positions=[],
                strains=[],
                volumes=[],
            )
            per_atom = model._compute(graph)["e"]
            total = per_atom * torch.as_tensor(counts, dtype=self._dtype, device=self._device)
            wanted = [tensor for tensor, ask in ((positions, forces), (strain, stress)) if ask]
            gradients = list(torch.autograd.grad(total.sum(), wanted)) if wanted else []
        reference = np.bincount(owner, weights=self._reference[numbers - 1], minlength=len(crystals))
        energy = total.detach().double().cpu().numpy() + reference
        force = stresses = None
        if forces:
            all_forces = -gradients.pop(0).double().cpu().numpy()
            force = np.split(all_forces, np.cumsum(counts)[:-1])
        if stress:
            volumes = np.array([crystal.volume for crystal in crystals])
            stresses = gradients.pop(0).double().cpu().numpy() / volumes[:, None, None]
        return Prediction(
            np.where(problems, np.nan, energy),
            force,
            stresses,
            tuple("an atom has no neighbour within 6 Å" if bad else None for bad in problems),
        )
