"""A stage as a training job on many GPUs: inputs on the shared volume, parameters in a file, the record back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common import yaml12
from crystalforge.common.files import atomic_directory, atomic_file, sha256_json
from crystalforge.common.settings import validated
from crystalforge.stages.base import read_record

if TYPE_CHECKING:
    from crystalforge.config import Config


def launch(
    stage: str, config: Config, trainjob: str, workspace: Path, inputs: Mapping[str, Path], out: Path
) -> dict[str, Any]:
    """Run `crystalforge <stage>` as the TrainJob that `trainjob` (JSON) describes; returns the stage's record.

    inputs: directories that only this step sees; they are copied once to `workspace/inputs`. Raises TrainJobFailed
    with the pods' last words when the job fails.
    """
    import json

    from crystalforge.integrations.trainjob.jobs import TrainJobs
    from crystalforge.integrations.trainjob.manifest import TrainJobConfig, job_name

    settings = validated(TrainJobConfig, json.loads(trainjob), source="trainjob_config")
    arguments = [stage, "--config", str(workspace / f"{stage}.yaml")]
    contents = {}
    for name, path in inputs.items():
        contents[name] = read_record(path, name)["content"]
        shared = workspace / "inputs" / f"{name}-{contents[name][:16]}"
        if not shared.exists():
            with atomic_directory(shared) as temporary:
                shutil.copytree(path, temporary, dirs_exist_ok=True)
        arguments += [f"--{name}", str(shared)]
    arguments += ["--out", str(out)]
    values = config.model_dump(mode="json", by_alias=True)
    with atomic_file(workspace / f"{stage}.yaml") as path:
        path.write_text(yaml12.dump(values, sort_keys=True), encoding="utf-8")
    key = sha256_json({"config": values, "inputs": contents, "out": str(out)})
    TrainJobs(settings).run(job_name(stage, key), arguments)
    return read_record(out, stage)
