"""SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)) behind the `Potential` protocol.

Weights come inside the wheel of `sevenn`. SevenNet-0 and l3i5 were trained on MPtrj, whose energies are PBE(+U) before
the Materials Project's corrections; MF-0 answers for two functionals, PBE(+U) and r2SCAN. The package's calculator
takes one crystal at a time; here a whole batch is built with array operations and handed to the same network, and an
energy alone is computed without a gradient. A test holds both together.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import BatchedPotential, Prediction, Scale
from crystalforge.potentials.config import SevenNetConfig
from crystalforge.potentials.neighbors import neighbor_list
from crystalforge.potentials.weights import digest_of

CHECKPOINTS = {
    "7net-0": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "7net-l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
    "7net-mf-0": "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
}
"""Files in the wheel, by the names that the package gives its models."""

GRADIENTS = "force_output"
"""The network's last module, which differentiates; left out where an energy is all that is asked."""


class SevenNetPotential(BatchedPotential):
    """A pretrained SevenNet; 89 elements (no Po, At, Rn, Fr, Ra; Z <= 94).

    An atom without a neighbour within the cutoff (5 Å) is a problem of its crystal. Loading executes the wheel's
    checkpoint as a pickle: it is as trustworthy as the package's code, and no other file is read.
    """

    def __init__(self, config: SevenNetConfig) -> None:
        try:
            import sevenn
            import sevenn.util
        except ImportError as error:
            raise missing_extra("sevenn", "judges", error) from error
        file = Path(str(sevenn.__file__)).parent / "pretrained_potentials" / CHECKPOINTS[config.model]
        if not file.is_file():
            raise InputError(
                f"this release of sevenn has no weights of {config.model}", source=file, remedy="install sevenn 0.13"
            )
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            model: Any = sevenn.util.load_checkpoint(str(file)).build_model()
        model.set_is_batch_data(True)
        self._device = torch.device(config.device)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._cutoff = float(model.cutoff)
        self._modal: str | None = None
        if model.modal_map:
            self._modal = {"pbe": "PBE", "r2scan": "R2SCAN"}[config.functional]
        elif config.functional != "pbe":
            raise InputError(
                f"{config.model} knows the functional pbe only", source="potential", remedy="choose 7net-mf-0"
            )
        super().__init__(config.batch_atoms)
        self.elements = frozenset(int(z) for z in model.type_map)
        self.name = config.model + (f"-{config.functional}" if self._modal else "")
        self.scale: Scale = config.functional
        self.digest = digest_of(model.state_dict(), {"model": config.model, "functional": config.functional})

    def _evaluate(self, crystals: Sequence[Crystal], forces: bool, stress: bool) -> Prediction:
        counts = np.array([len(crystal) for crystal in crystals])
        owner = np.repeat(np.arange(len(crystals)), counts)
        edges = neighbor_list(crystals, self._cutoff)
        if len(edges.center) == 0 or (np.bincount(edges.center, minlength=len(owner)) == 0).any():
            raise ValueError(f"an atom has no neighbour within {self._cutoff:g} Å")
        lattice = np.stack([crystal.lattice for crystal in crystals])
        cart = np.concatenate([crystal.frac @ crystal.lattice for crystal in crystals])
        shift = np.einsum("ei,eij->ej", edges.image, lattice[edges.crystal])
        vectors = cart[edges.neighbor] + shift - cart[edges.center]
        numbers = self._integers(np.concatenate([crystal.numbers for crystal in crystals]))
        data: dict[str, Any] = {
            "x": numbers,
            "atomic_numbers": numbers,
            "pos": self._reals(cart),
            "edge_index": self._integers(np.stack([edges.center, edges.neighbor])),
            "edge_vec": self._reals(vectors),
            "cell_volume": self._reals(np.array([crystal.volume for crystal in crystals])),
            "num_atoms": self._integers(counts),
            "batch": self._integers(owner),
        }
        if self._modal is not None:
            data["modal_type"] = torch.full((len(crystals),), self._model.modal_map[self._modal], device=self._device)
        gradients = forces or stress
        with torch.set_grad_enabled(gradients):
            data["x"] = self._model._atomic_numbers_to_onehot(numbers)
            data["edge_vec"].requires_grad_(gradients)
            for name, module in self._model._modules.items():
                if name != GRADIENTS or gradients:
                    data = module(data)
        energy = _array(data["inferred_total_energy"]).reshape(len(crystals))
        force = stresses = None
        if forces:
            force = np.split(_array(data["inferred_force"]), np.cumsum(counts)[:-1])
        if stress:
            # xx, yy, zz, xy, yz, zx; pressure positive, so the sign turns
            six = -_array(data["inferred_stress"]).reshape(len(crystals), 6)
            stresses = six[:, [[0, 3, 5], [3, 1, 4], [5, 4, 2]]]
        return Prediction(energy, force, stresses)

    def _reals(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self._device)

    def _integers(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=self._device)


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
