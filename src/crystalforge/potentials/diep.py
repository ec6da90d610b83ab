"""DIEP (direct integration of the external potential) behind the `Potential` protocol.

The wheel of `diep` 2 holds one model, trained on MatPES-r2SCAN. It orders the atoms of a triplet by the lengths of
its edges, so that its energy makes a small step where two lengths cross: forces are exact between the steps, and an
energy near one is a matter of rounding. Arithmetic is therefore float64 by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from crystalforge.common.errors import missing_extra
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import BatchedPotential, Prediction, Scale
from crystalforge.potentials.config import DIEPConfig
from crystalforge.potentials.matgl import element_types, graph_of, prediction_of
from crystalforge.potentials.weights import digest_of


class DIEPPotential(BatchedPotential):
    """The DIEP model of the wheel; 89 elements (no Po, At, Rn, Fr, Ra; Z <= 94)."""

    def __init__(self, config: DIEPConfig) -> None:
        try:
            import diep.config
            from diep.pretrained import load_potential, model_info
        except ImportError as error:
            raise missing_extra("diep", "judges", error) from error
        self._dtype = torch.float64 if config.dtype == "float64" else torch.float32
        self._settings = diep.config
        potential: Any = load_potential(device=config.device)
        self._potential = potential.to(self._dtype).eval().requires_grad_(False)
        self._network = self._potential.model
        self._device = torch.device(config.device)
        super().__init__(config.batch_atoms)
        self._types = element_types(self._network)
        self.elements = frozenset(self._types)
        self.name = str(model_info().get("name", "diep")).replace("_", "-")
        self.scale: Scale = "r2scan"
        self.digest = digest_of(potential.state_dict(), {"model": self.name, "dtype": config.dtype})

    def _evaluate(self, crystals: Sequence[Crystal], forces: bool, stress: bool) -> Prediction:
        potential = self._potential
        # The package takes its arithmetic from a global; nothing else reads it.
        self._settings.float_th = self._dtype
        with torch.set_grad_enabled(forces or stress):
            graph = graph_of(crystals, self._network, self._types, self._device, forces=forces, stress=stress)
            graph.num_nodes = len(graph.node_type)
            total = potential.data_std * self._network(g=graph) + potential.data_mean
            return prediction_of(total, graph, crystals, potential.element_refs, forces=forces, stress=stress)
