"""MLflow: one parent run for a pipeline, one nested run for a stage, a registry for the better model.

Works against SQLite files and servers alike. Everything goes through `MlflowClient` with explicit run ids, because
stages of one pipeline run in different processes. A run id that the workflow engine injects (MLFLOW_RUN_ID) is
adopted: as the parent where it is the pipeline's, as the stage's own where the engine opened it for the task (Kubeflow
Pipelines from 2.18 on, whose plugin tags such runs with their parent).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from crystalforge.common import termination
from crystalforge.common.environment import environment
from crystalforge.common.errors import InputError, missing_extra, redacted
from crystalforge.integrations.mlflow.recording import Recorder, answered, impatient

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 200  # metrics sent at once: one request costs 0.1 s on a server
MOST_PENDING = 200_000  # metrics that wait for a server that is away; of more, the newest
MOST_PARAMS = 100  # MLflow's limit for one request
LONGEST_PARAM = 6000  # MLflow's limit for the value of a parameter
PARENT_VARIABLE = "MLFLOW_RUN_ID"
PARENT_TAG = "mlflow.parentRunId"


def tracking_uri(configured: str | None, root: Path) -> str:
    """The environment's MLFLOW_TRACKING_URI, else the configured one, else SQLite in `root`."""
    known = os.environ.get("MLFLOW_TRACKING_URI") or configured
    if known:
        return known
    place = root.resolve()
    if "?" in str(place) or "#" in str(place):
        raise InputError(
            "a database's address cannot have '?' or '#' in a folder's name",
            source=place,
            remedy="set tracking.directory to a folder elsewhere, or tracking.enabled=false",
        )
    return f"sqlite:///{place}/mlflow.db"


def client(uri: str) -> MlflowClient:
    """A client for `uri`; InputError when MLflow is not installed."""
    _quieten()
    impatient()
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise missing_extra("mlflow", "platform", error) from None
    with answered(uri), _made_by_one(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _made_by_one(uri: str) -> Iterator[None]:
    """Of processes that find no database yet, one makes it (the client does, when it is made) while the others wait."""
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or name in ("", ":memory:"):
        yield
        return
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def fluent(uri: str) -> Iterator[None]:
    """MLflow's fluent functions, where a client cannot serve, speak to `uri` inside this block and only there.

    They keep addresses in globals and in the environment, from which later calls for other registries would take them.
    """
    import mlflow

    nowhere: Any = None  # what MLflow starts with, though its annotations do not say so
    with environment({"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri}):
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            yield
        finally:
            mlflow.set_tracking_uri(nowhere)
            mlflow.set_registry_uri(nowhere)


def experiment_id(api: MlflowClient, name: str, root: Path) -> str:
    """The experiment's id; created when new, its artifacts beside a local database and else where the server says.

    Raises InputError when the server refuses or is away, or when the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    def find() -> str | None:
        found = api.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise InputError(
                f"the experiment {name!r} was deleted",
                source=api.tracking_uri,
                remedy=f"restore it (mlflow experiments restore -x {found.experiment_id}), or set tracking.experiment "
                "to another name",
            )
        return found.experiment_id if found is not None else None

    with answered(api.tracking_uri):
        known = find()
        if known is not None:
            return known
        local = api.tracking_uri.startswith("sqlite:")
        place = (root.resolve() / "mlartifacts").as_uri() if local else None
        try:
            return api.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            known = find() if error.error_code == "RESOURCE_ALREADY_EXISTS" else None  # another process was first
            if known is None:
                raise
            return known


def open_parent(api: MlflowClient, experiment: str, root: Path, name: str, known: str | None) -> str:
    """The pipeline's run: the injected one, the one this run had before it was interrupted, or a new one.

    One that somebody deleted is not gone on with. Raises InputError as `experiment_id` does.
    """
    with answered(api.tracking_uri):
        for candidate in (os.environ.get(PARENT_VARIABLE), known):
            if candidate and _exists(api, candidate):
                api.update_run(candidate, status="RUNNING")
                return candidate
        return api.create_run(experiment_id(api, experiment, root), run_name=name).info.run_id


def final_status(kind: type[BaseException] | None) -> str:
    """How a run that ended with (or without) an exception is closed, in MLflow's words."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, (termination.Terminated, KeyboardInterrupt)) else "FAILED"


class StageRun:
    """A stage's record: parameters, batched metrics, data sets and artifacts under the pipeline's run.

    `directory` is the stage's own: the run id is kept there, so that a stage that is killed and started again goes
    on in the record that it had. A server that is away when the record is opened is an InputError; one that goes away
    later costs what could not be recorded, and a warning that says what.
    """

    def __init__(self, uri: str, experiment: str, root: Path, stage: str, directory: Path) -> None:
        self.api = client(uri)
        self.uri = uri
        self._directory = directory
        self._recorder = Recorder(stage, uri)
        self._pending: list[Any] = []
        note = directory / "mlflow_run_id"
        known = note.read_text().strip() if note.exists() else ""
        with answered(uri):
            if known and _exists(self.api, known):
                self.run_id = known
                self.api.update_run(known, status="RUNNING")
                return
            parent = os.environ.get(PARENT_VARIABLE)
            if parent and _exists(self.api, parent):
                injected = self.api.get_run(parent)
                if PARENT_TAG in injected.data.tags:  # not the pipeline's run, but the one opened for this very task
                    self.run_id = parent
                    self.api.update_run(parent, status="RUNNING")
                    _note(directory, note, parent)
                    return
                experiment_of, tags = injected.info.experiment_id, {PARENT_TAG: parent}
            else:
                experiment_of, tags = experiment_id(self.api, experiment, root), {}
            self.run_id = self.api.create_run(experiment_of, run_name=stage, tags=tags).info.run_id
        _note(directory, note, self.run_id)

    def __enter__(self) -> StageRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        status = final_status(kind)
        self._recorder.send("how it ended", lambda: self.api.set_terminated(self.run_id, status=status))
        self._recorder.close(self._directory)

    def params(self, values: Mapping[str, Any]) -> None:
        """Record (nested) parameters; ones that are there already, as after a resume, stay."""
        self._recorder.send("parameters", lambda: self._send_params(values))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of one step; sent in batches."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(key, float(value), now, step) for key, value in values.items()]
        del self._pending[:-MOST_PENDING]
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what is pending, or as soon as the server answers."""
        if self._pending:
            self._recorder.send("metrics", self._send_metrics)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags: hashes, versions, the path of a run."""
        for key, value in values.items():
            self._recorder.send(
                f"tag {key}", lambda key=key, value=value: self.api.set_tag(self.run_id, key, redacted(str(value)))
            )

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Record that the run read (or made) the data set with this content hash."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": redacted(source)}),
            profile=json.dumps(dict(profile)),
        )
        inputs = [DatasetInput(dataset=entry, tags=[InputTag("mlflow.data.context", "training")])]
        self._recorder.send(f"data set {name}", lambda: self.api.log_inputs(self.run_id, inputs))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder with the run."""
        self._recorder.send(f"file {path.name}", lambda: self.store(path, folder), files=True)

    def store(self, path: Path, folder: str | None = None) -> None:
        """`artifact`, now or with an exception."""
        if path.is_dir():
            self.api.log_artifacts(self.run_id, str(path), folder)
        else:
            self.api.log_artifact(self.run_id, str(path), folder)

    def _send_params(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        have = self.api.get_run(self.run_id).data.params
        flat = {key: redacted(value) for key, value in _flatten(values).items() if key not in have}
        params = [Param(key, value[:LONGEST_PARAM]) for key, value in flat.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self.api.log_batch(self.run_id, params=params[first : first + MOST_PARAMS])

    def _send_metrics(self) -> None:
        """MLflow takes at most 1,000 metrics at once; what was sent is not sent again."""
        while self._pending:
            part = self._pending[:1000]
            self.api.log_batch(self.run_id, metrics=part)
            del self._pending[: len(part)]


def _exists(api: MlflowClient, run_id: str) -> bool:
    """Whether there is such a run, and nobody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return api.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _note(directory: Path, note: Path, run_id: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    note.write_text(run_id + "\n")


def _quieten() -> None:
    """MLflow tells of migrations, downloads and defaults at length; runs have their own output."""
    import warnings

    for variable, value in {
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Artifacts pass through the server. Left to itself, the client goes to an address of the store that the server
        # signs for it, which means nothing, or is forbidden, where only the server knows the store.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    }.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", module="mlflow")
