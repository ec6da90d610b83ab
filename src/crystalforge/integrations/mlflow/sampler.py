"""The registered model: a pyfunc that writes crystals. MLflow runs this very file where the model is loaded.

model = mlflow.pyfunc.load_model("models:/crystalforge-generator@candidate")
model.predict(pandas.DataFrame({"spacegroup": [225], "n": [10], "seed": [0]}))
"""

from __future__ import annotations

from typing import Any

import pandas as pd  # at run time too: MLflow reads the annotations of `predict`
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types.schema import ColSpec, DataType, Schema

INPUTS = Schema(
    [
        ColSpec(DataType.long, "spacegroup"),
        ColSpec(DataType.long, "n"),
        ColSpec(DataType.long, "seed"),
    ]
)
OUTPUTS = Schema(
    [
        ColSpec(DataType.long, "spacegroup"),
        ColSpec(DataType.long, "seed"),
        ColSpec(DataType.long, "index"),
        ColSpec(DataType.string, "formula"),
        ColSpec(DataType.string, "cif"),
        ColSpec(DataType.double, "log_prob"),
    ]
)
EXAMPLE: dict[str, list[int]] = {"spacegroup": [225], "n": [2], "seed": [0]}


def requirements() -> list[str]:
    """The packages that sampling needs, at the versions of this environment."""
    from importlib.metadata import version

    names = (
        "crystalforge",
        "torch",
        "numpy",
        "pymatgen",
        "spglib",
        "safetensors",
        "pydantic",
        "jaxtyping",
        "pyyaml",
    )
    # The local build tag (as in +cpu) names a file on one machine, not a release.
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


class CrystalSampler(PythonModel):
    """Each input row asks for `n` crystals of one space group from the random streams of one seed."""

    def load_context(self, context: Any) -> None:
        """Load the weights that were logged with the model."""
        from pathlib import Path

        from crystalforge.model.checkpoint import load_model

        self._model = load_model(Path(context.artifacts["model"])).model

    def predict(  # type: ignore[override]  # the base class is annotated as returning nothing
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One output row per crystal: its formula, CIF and log-probability; unbuildable ones have an empty CIF."""
        import numpy as np

        from crystalforge.crystal.convert import to_crystals
        from crystalforge.model.sampling.sampler import sample

        rows: list[dict[str, Any]] = []
        requests = zip(*(model_input[name].astype(int) for name in ("spacegroup", "n", "seed")), strict=True)
        for spacegroup, n, seed in requests:
            samples = sample(self._model, np.full(n, spacegroup, dtype=np.int64), seed=seed)
            crystals = to_crystals(samples.tokens)
            total = sum(np.asarray(part) for part in samples.log_prob.values())
            for index, crystal, log_prob in zip(samples.index, crystals, np.asarray(total), strict=True):
                rows.append(
                    {
                        "spacegroup": spacegroup,
                        "seed": seed,
                        "index": int(index),
                        "formula": crystal.formula if crystal is not None else "",
                        "cif": crystal.to_structure().to(fmt="cif") if crystal is not None else "",
                        "log_prob": float(log_prob),
                    }
                )
        return pd.DataFrame(rows, columns=[column.name for column in OUTPUTS.inputs])


set_model(CrystalSampler())
