"""What every stage does around its work: skip what is done, resume what is not, record, and fail legibly.

A stage owns one directory. `stage.json` in it is written last and says what made the outputs (a key over the
configuration sections and the inputs' content) and what they are (their content hash), so that the next stage's key
follows from it and a finished stage costs nothing when it is asked for again.

Where many processes make up one stage (torchrun), the first one records and the others work in silence.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from crystalforge.common import termination
from crystalforge.common.errors import InputError, without_secrets
from crystalforge.common.files import atomic_file, sha256_json, write_json
from crystalforge.common.system import of_the_system
from crystalforge.integrations.trainjob.progress import JobStatus, job_status

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.integrations.mlflow.tracking import StageRun
    from crystalforge.rewards import RewardVersion

RECORD = "stage.json"
KEY = ".key"  # written first: whose outputs a directory holds, finished or not
ERROR = "error.json"
# Settings that say by which means a section's work is done, not what comes of it: they may change when it goes on.
MEANS = {"pretrain": {"engine", "accumulation"}, "finetune": {"engine"},
         "screen": {"top", "budget", "processes", "confirm"}}  # fmt: skip
# Every stage is a function named like its module, in stages/ unless it stands above them.
ELSEWHERE = {"fetch": "platform", "compare": "studies", "contest": "studies"}
PIPELINE_VARIABLE = "CRYSTALFORGE_PIPELINE_PID"  # a local pipeline's steps end with the process that runs it


def find_stage(name: str) -> Callable[..., dict[str, Any]]:
    """The function of the stage `name`, imported when it is asked for."""
    return getattr(import_module(f"crystalforge.{ELSEWHERE.get(name, 'stages')}.{name}"), name)


class StaleOutputs(InputError):
    """The directory belongs to another configuration."""


@dataclass
class Stage:
    """Context manager around a stage's work.

    with Stage("pretrain", config, out, sections=("seed", "model", "pretrain"), inputs={"data": data}) as stage:
        if stage.finished is None:
            ...
            stage.finish(content_hash, {"nll": 12.3})
    return stage.outcome
    """

    name: str
    config: Config
    out: Path
    sections: tuple[str, ...]
    inputs: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # what decides the outputs besides sections and inputs
    registers: bool = False  # it is done only where the registry of now has what it registered

    def __post_init__(self) -> None:
        self._parents = {name: read_record(path, f"the input {name!r}") for name, path in self.inputs.items()}
        self.key = sha256_json(
            {
                "stage": self.name,
                "config": _decisive(self.config.sections(self.sections)),
                "inputs": {name: record["content"] for name, record in self._parents.items()},
                **({"options": dict(self.options)} if self.options else {}),
            }
        )
        self.outcome: dict[str, Any] = {}
        # What everything here was made of, from the version of the data on; a stage adds what it brings in itself.
        self.lineage: dict[str, str] = {}
        for record in self._parents.values():
            self.lineage |= record.get("lineage", {})
        self.records = leads()
        self.run: StageRun | None = None
        self.job: JobStatus | None = None
        self._opened = ExitStack()
        self._asked: dict[str, bool] = {}
        self._began = time.monotonic()

    def __enter__(self) -> Stage:
        record = self.finished
        if record is not None:
            self.outcome = record
            if self.records:
                print(f"{self.name}: done before, reused ({self.out})", file=sys.stderr)
            return self
        if not self.records:
            return self
        begun = self.out / KEY
        if begun.exists() and begun.read_text() != self.key:
            raise StaleOutputs(
                f"{self.out} holds outputs of another configuration or of other inputs",
                source=self.name,
                remedy="give another output directory, or --replace to drop these",
            )
        self.out.mkdir(parents=True, exist_ok=True)
        begun.write_text(self.key)
        (self.out / ERROR).unlink(missing_ok=True)
        self.run = self._open_record()
        self.job = self._opened.enter_context(job_status(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.run is not None:
            self.run.__exit__(kind, error, trace)
        self._opened.close()
        assert kind is not None or self.outcome, f"{self.name} ended without finish()"

    @property
    def finished(self) -> dict[str, Any] | None:
        """The record of an earlier, equal execution in this directory, or None."""
        record = self.before
        return record if record is not None and self._registered(record) else None

    @property
    def before(self) -> dict[str, Any] | None:
        """`finished`, or the record of an equal execution whose outputs are whole, but registered elsewhere."""
        record = _read(self.out / RECORD)
        return record if record is not None and record.get("key") == self.key else None

    def _registered(self, record: Mapping[str, Any]) -> bool:
        """Whether what the stage registered is in the registry that it would register in now."""
        if not (self.registers and self.records and self.config.tracking.enabled):
            return True
        if record["key"] in self._asked:  # once is enough: the registry may be far away
            return self._asked[record["key"]]
        from crystalforge.integrations.mlflow import registry, tracking

        found = record["metrics"]
        uri = tracking.tracking_uri(self.config.tracking.uri, Path(self.config.tracking.directory))
        known = "version" in found and registry.still_registered(
            uri, found["name"], str(found["version"]), record["content"]
        )
        if not known:
            print(f"{self.name}: not in the registry of now, registered again", file=sys.stderr)
        self._asked[record["key"]] = known
        return known

    def finish(self, content: str, metrics: Mapping[str, Any], lineage: Mapping[str, str] | None = None) -> None:
        """Declare the outputs complete: `content` is their hash, `metrics` what is worth knowing of them, `lineage`
        what this stage adds to that of its inputs; every later stage's record and tracked run carry it on."""
        self.lineage |= lineage or {}
        self.outcome = {
            "stage": self.name,
            "key": self.key,
            "content": content,
            "config": without_secrets(self.config.sections(self.sections)),
            "inputs": {name: record["content"] for name, record in self._parents.items()},
            "lineage": without_secrets(self.lineage),
            "metrics": without_secrets(dict(metrics)),
            "seconds": round(time.monotonic() - self._began, 1),
            "mlflow_run_id": self.run.run_id if self.run is not None else None,
        }
        if not self.records:
            return
        write_json(self.out / RECORD, self.outcome)  # first: a tracking server that is away must not cost it
        if self.run is not None:
            numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
            self.run.metrics(0, numbers)
            self.run.tags({"content": content, "key": self.key})
            self.run.tags({f"lineage.{name}": value for name, value in self.lineage.items()})

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The hook that loops call at each step; feeds the tracking server and a TrainJob's status, if any."""
        if self.job is not None:
            self.job.metrics(values)
        if self.run is not None:
            self.run.metrics(step, values)

    def dataset(self, name: str, record: Mapping[str, Any]) -> None:
        """Record the data set that this stage made or read."""
        if self.run is not None:
            self.run.dataset(name, record["content"], str(self.out), record.get("metrics", {}))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file with the tracked run."""
        if self.run is not None:
            self.run.artifact(path, folder)

    def _open_record(self) -> StageRun | None:
        if not self.config.tracking.enabled:
            return None
        from crystalforge.integrations.mlflow import tracking

        root = Path(self.config.tracking.directory)
        uri = tracking.tracking_uri(self.config.tracking.uri, root)
        run = tracking.StageRun(uri, self.config.tracking.experiment, root, self.name, self.out)
        run.params(self.config.sections(self.sections))
        parents = {f"input.{name}": record["content"] for name, record in self._parents.items()}
        run.tags(parents | {"stage": self.name, "directory": str(self.out)})
        return run


def _read(path: Path) -> dict[str, Any] | None:
    """A stage's record; None where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def leads() -> bool:
    """Whether this process is the one that records: the only one, or the first of those that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"


def _decisive(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections without the settings that only say by which means."""
    return {
        name: {key: item for key, item in value.items() if key not in MEANS[name]} if name in MEANS else value
        for name, value in sections.items()
    }


def reward_lineage(version: RewardVersion) -> dict[str, str]:
    """What a lineage says of the reward that judged: which one, and the values that it proved before it served."""
    golden = json.dumps(dict(sorted(version.golden.items())))
    return {"reward": version.name, "reward_digest": version.digest, "reward_golden": golden}


def read_record(directory: Path, what: str) -> dict[str, Any]:
    """The record of a finished stage; InputError when `directory` is none."""
    path = directory / RECORD
    if not path.exists():
        raise InputError(
            f"{what} is not a finished stage's directory: it has no {RECORD}",
            source=directory,
            remedy="run the stage that makes it, or correct the path",
        )
    return json.loads(path.read_text())


@contextmanager
def reporting(workspace: Path) -> Iterator[None]:
    """Turn a user's mistake, a service that is away, or what the system refuses, into one message, a note in
    `workspace` and exit code 2; SIGTERM into exit code 143.

    Pipeline engines report a failed step as "failed"; the note is how whoever started the pipeline learns why.
    """
    from crystalforge.rewards import RewardUnavailable

    try:
        yield
    except termination.Terminated:
        print("terminated; what was computed is kept", file=sys.stderr, flush=True)
        raise SystemExit(termination.EXIT_CODE) from None
    except Exception as error:
        said = str(error) if isinstance(error, (InputError, RewardUnavailable)) else of_the_system(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # the disk may be what is wrong
            workspace.mkdir(parents=True, exist_ok=True)
            write_json(workspace / ERROR, {"error": said})
        raise SystemExit(2) from None


def end_with(process: int) -> None:
    """End this process when `process` has ended, however that happened.

    A stage must not go on by itself after its pipeline was killed: a second run would meet it in the same
    directory. A thread watches, because the pipeline is not always our direct parent.
    """

    def watch() -> None:
        while True:
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                os._exit(143)
            time.sleep(0.5)

    threading.Thread(target=watch, name="watch-pipeline", daemon=True).start()


def write_history(directory: Path) -> None:
    """`metrics.jsonl` as `history.csv`, which data-versioning tools can plot: one row a step, empty where unknown."""
    import csv

    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(directory / "history.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
