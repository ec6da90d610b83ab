"""Orb (Neumann et al., arXiv:2410.22570; v3: Rhodes et al., arXiv:2504.06231) behind the `Potential` protocol.

Orb is invariant under rotations only as far as it learned to be, and the direct models' forces are no gradients of
their energy; the conformance kit is told so (`invariant`, `conservative`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalforge.common.errors import InputError, missing_extra, one_of
from crystalforge.crystal import Crystal
from crystalforge.potentials.base import BatchedPotential, Prediction, Scale
from crystalforge.potentials.bridge import to_atoms, voigt_to_full
from crystalforge.potentials.config import OrbConfig
from crystalforge.potentials.weights import digest_of

UNTRAINED = frozenset({84, 85, 86, 87, 88})
"""Po, At, Rn, Fr, Ra: absent from the Materials Project's and Alexandria's training sets."""


class OrbPotential(BatchedPotential):
    """A pretrained Orb, from local weights or downloaded into Orb's cache."""

    elements = frozenset(range(1, 95)) - UNTRAINED
    invariant = False
    primitive = False  # its nearest 20 neighbours break ties by the order of atoms: the cell does matter a little

    def __init__(self, config: OrbConfig) -> None:
        try:
            from orb_models.forcefield import pretrained
        except ImportError as error:
            raise missing_extra("orb-models", "potentials", error) from error
        make = getattr(pretrained, config.model, None)
        if make is None or not config.model.startswith("orb_"):
            known = sorted(name for name in dir(pretrained) if name.startswith(("orb_v2", "orb_v3")))
            raise InputError(
                f"{config.model!r} is no Orb model",
                remedy=one_of("choose one of", known, nothing="install a release of orb-models that has some"),
            )
        if config.path is not None and not config.path.is_file():
            raise InputError("no such file", source=config.path, remedy="download the checkpoint of this model first")
        given: dict[str, Any] = {"device": config.device, "compile": False}
        if config.path is not None:
            given["weights_path"] = str(config.path)
        if "precision" in inspect.signature(make).parameters:
            given["precision"] = "float32-highest"  # the default rounds products on a GPU: two machines would differ
        try:
            self._model = make(**given).eval()
        except (RuntimeError, OSError) as error:
            source = config.path or config.model
            raise InputError(
                f"Orb's weights could not be loaded ({str(error).splitlines()[0]})",
                source=source,
                remedy="give the checkpoint that belongs to this model as `path`, or allow the download",
            ) from error
        if config.path is not None:
            _require_heads(self._model, config.path)
        super().__init__(config.batch_atoms)
        self._device = torch.device(config.device)
        self.conservative = hasattr(self._model, "grad_forces_name")
        self.name = config.model.replace("_", "-")
        self.scale: Scale = config.scale
        self.digest = digest_of(self._model.state_dict(), {"model": config.model})

    def _evaluate(self, crystals: Sequence[Crystal], forces: bool, stress: bool) -> Prediction:
        from orb_models.forcefield.atomic_system import ase_atoms_to_atom_graphs
        from orb_models.forcefield.base import batch_graphs

        model = self._model
        graphs = [
            ase_atoms_to_atom_graphs(to_atoms(crystal), system_config=model.system_config, device=self._device)
            for crystal in crystals
        ]
        with torch.set_grad_enabled(self.conservative):
            answer = model.predict(batch_graphs(graphs))
        prefix = "grad_" if self.conservative else ""
        values = {key: value.detach().double().cpu().numpy() for key, value in answer.items()}
        force = stresses = None
        if forces:
            ends = np.cumsum([len(crystal) for crystal in crystals])[:-1]
            force = np.split(values[f"{prefix}forces"], ends)
        if stress:
            if f"{prefix}stress" not in values:
                raise InputError(f"{self.name} predicts no stress", remedy="choose a model with a stress head")
            stresses = voigt_to_full(values[f"{prefix}stress"].reshape(-1, 6))
        return Prediction(values["energy"].reshape(-1), force, stresses)


LEGACY_HEADS = {"energy": "graph_head.", "forces": "node_head.", "stress": "stress_head."}
"""Prefixes of the heads in checkpoints of the v2 era."""


def _require_heads(model: Any, path: Path) -> None:
    """Refuse a checkpoint without one of the model's heads: Orb's loader would leave that head at random weights."""
    keys = tuple(torch.load(path, map_location="cpu", weights_only=True))
    for head in model.heads:
        prefixes = (f"heads.{head}.", LEGACY_HEADS.get(head, f"heads.{head}."))
        if head != "confidence" and not any(key.startswith(prefixes) for key in keys):
            raise InputError(
                f"Orb's weights could not be loaded (no weights of the head {head!r})",
                source=path,
                remedy="give the checkpoint that belongs to this model",
            )
