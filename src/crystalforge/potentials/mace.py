"""MACE (Batatia et al., NeurIPS 2022; arXiv:2401.00096 for the foundation models) behind the `Potential` protocol.

The package is optional and not part of the `potentials` extra, since it pins its own e3nn: `pip install mace-torch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import BatchedPotential, Prediction, Scale
from crystalforge.potentials.bridge import to_atoms
from crystalforge.potentials.config import MACEConfig
from crystalforge.potentials.weights import digest_of


class MACEPotential(BatchedPotential):
    """A MACE model: a local file, or a foundation model by name."""

    def __init__(self, config: MACEConfig) -> None:
        try:
            from mace.calculators import MACECalculator, mace_mp
            from mace.tools import AtomicNumberTable
        except ImportError as error:
            raise InputError(f"mace-torch is not installed ({error})", remedy="pip install mace-torch") from error
        given: dict[str, Any] = {"device": config.device, "default_dtype": config.dtype}
        if Path(config.model).is_file():
            calculator = MACECalculator(model_paths=config.model, **given)
        else:
            calculator = mace_mp(model=config.model, **given)
        self._model = calculator.models[0].eval()
        super().__init__(config.batch_atoms)
        self._device = torch.device(config.device)
        self._dtype = torch.float64 if config.dtype == "float64" else torch.float32
        self._table = AtomicNumberTable([int(z) for z in self._model.atomic_numbers])
        self.elements = frozenset(self._table.zs)
        self.name = f"mace-{Path(config.model).stem}"
        self.scale: Scale = config.scale
        self.digest = digest_of(self._model.state_dict(), {"dtype": config.dtype})

    def _evaluate(self, crystals: Sequence[Crystal], forces: bool, stress: bool) -> Prediction:
        import mace.data as data
        from mace.tools import torch_geometric

        configs = [data.config_from_atoms(to_atoms(crystal)) for crystal in crystals]
        rows = [
            data.AtomicData.from_config(config, z_table=self._table, cutoff=float(self._model.r_max))
            for config in configs
        ]
        batch = torch_geometric.Batch.from_data_list(rows).to(self._device)
        tensors = {
            key: value.to(self._dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for key, value in batch.to_dict().items()
        }
        answer = self._model(tensors, compute_force=forces or stress, compute_stress=stress)
        force = stresses = None
        if forces:
            ends = np.cumsum([len(crystal) for crystal in crystals])[:-1]
            force = np.split(answer["forces"].detach().double().cpu().numpy(), ends)
        if stress:
            stresses = answer["stress"].detach().double().cpu().numpy().reshape(-1, 3, 3)
        return Prediction(answer["energy"].detach().double().cpu().numpy(), force, stresses)
