"""How a pipeline step runs a stage: work in the workspace, hand over as an artifact."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crystalforge.common import termination
from crystalforge.common.errors import InputError
from crystalforge.stages.base import PIPELINE_VARIABLE, end_with, find_stage, read_record, reporting

# What serves to resume, or to do less another time, is many times the outputs' size; it stays in the workspace.
NOT_HANDED_OVER = shutil.ignore_patterns(
    "checkpoint*", "service", "*.tmp", "chunks", "journal*", "shards", "downloads", "work"
)


@contextmanager
def step(workspace: Path) -> Iterator[None]:
    """Around whatever a pipeline's step does: it ends with its pipeline, and a user's mistake ends it with code 2."""
    pipeline = os.environ.get(PIPELINE_VARIABLE)
    if pipeline:
        end_with(int(pipeline))
    with termination.handled(), reporting(workspace):
        yield


def execute(
    stage: str,
    workspace: str,
    *,
    sections: Mapping[str, str | int],
    outputs: str,
    inputs: Mapping[str, str | Sequence[str]] | None = None,
    options: Mapping[str, Any] | None = None,
    metadata: Sequence[dict[str, Any]] = (),
    files: Mapping[str, str] | None = None,
    trainjob: str = "",
    content: str | None = None,
    expected: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `stage` in `workspace/<stage>` configured by `sections` (JSON texts) and copy what it made to `outputs`.

    inputs: directories that earlier steps handed over, by the stage's argument names; lists of them where the stage
    takes many. options: further arguments of the stage. trainjob: a TrainJobConfig as JSON; the stage then runs as
    that job, and this step watches it. metadata: artifact metadata to fill with the stage's metrics. files: single
    files of the stage's directory to copy to further artifacts. content: file for the hash of what was made. expected:
    by input, the hash that it must have (empty: any). Exits with code 2 and one message on a user's mistake. Returns
    the stage's record.
    """
    with step(Path(workspace)):
        from crystalforge.config import from_sections

        config = from_sections(
            **{name: json.loads(value) if isinstance(value, str) else value for name, value in sections.items()}
        )
        out = Path(workspace) / stage
        places: dict[str, Any] = {
            name: Path(path) if isinstance(path, str) else [Path(item) for item in path]
            for name, path in (inputs or {}).items()
        }
        for name, wanted in (expected or {}).items():
            if wanted and (have := read_record(places[name], name)["content"]) != wanted:
                raise InputError(
                    f"the input {name!r} has the content {have[:12]}, the pipeline says {wanted[:12]}",
                    source=stage,
                    remedy="run the step that makes it again, without the engine's cache",
                )
        if trainjob:
            from crystalforge.stages.launch import launch

            record = launch(stage, config, trainjob, Path(workspace), places, out=out)
        else:
            record = find_stage(stage)(config, **places, **(options or {}), out=out)
        if Path(outputs).exists():
            shutil.rmtree(outputs)
        shutil.copytree(out, outputs, ignore=NOT_HANDED_OVER)
        for name, target in (files or {}).items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / name, target)
        if content is not None:
            Path(content).parent.mkdir(parents=True, exist_ok=True)
            Path(content).write_text(record["content"])
        for values in metadata:
            values.update(
                {key: value for key, value in record["metrics"].items() if isinstance(value, (int, float, str))}
            )
            values["content"] = record["content"]
    return record
