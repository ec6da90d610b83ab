"""MLflow: one parent run for a pipeline, one nested run for a stage, a registry for the better model.

Works against SQLite files and servers alike. Everything goes through `MlflowClient` with explicit run ids, because
stages of one pipeline run in different processes. A run id that the workflow engine injects (MLFLOW_RUN_ID) is
adopted as the parent.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError, missing_extra

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

BATCH = 200  # metrics sent at once: one request costs 0.1 s on a server
LONGEST_PARAM = 6000  # MLflow's limit for the value of a parameter
PARENT_VARIABLE = "MLFLOW_RUN_ID"


def tracking_uri(configured: str | None, root: Path) -> str:
    """The environment's MLFLOW_TRACKING_URI, else the configured one, else SQLite in `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or configured or f"sqlite:///{root.resolve()}/mlflow.db"


def client(uri: str) -> MlflowClient:
    """A client for `uri`; InputError when MLflow is not installed."""
    _quieten()
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise missing_extra("mlflow", "platform", error) from None
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _fluent(uri: str) -> Iterator[None]:
    """MLflow's fluent functions, where a client cannot serve, speak to `uri` inside this block and only there.

    They keep addresses in globals and in the environment, from which later calls for other registries would take them.
    """
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ[name] for name in names if name in os.environ}
    nowhere: Any = None  # what MLflow starts with, though its annotations do not say so
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        yield
    finally:
        mlflow.set_tracking_uri(nowhere)
        mlflow.set_registry_uri(nowhere)
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def experiment_id(api: MlflowClient, name: str, root: Path) -> str:
    """The experiment's id; created when new, its artifacts beside a local database and else where the server says."""
    from mlflow.exceptions import MlflowException

    def find() -> str | None:
        found = api.get_experiment_by_name(name)
        return found.experiment_id if found is not None else None

    try:
        known = find()
        if known is not None:
            return known
        local = api.tracking_uri.startswith("sqlite:")
        place = (root.resolve() / "mlartifacts").as_uri() if local else None
        return api.create_experiment(name, artifact_location=place)
    except MlflowException as error:
        known = find() if error.error_code == "RESOURCE_ALREADY_EXISTS" else None  # another process was first
        if known is not None:
            return known
        raise InputError(
            f"the tracking server refused: {error.message.splitlines()[0]}",
            source=api.tracking_uri,
            remedy="check MLFLOW_TRACKING_URI or tracking.uri",
        ) from None


def open_parent(api: MlflowClient, experiment: str, root: Path, name: str, known: str | None) -> str:
    """The pipeline's run: the injected one, the one this run had before it was interrupted, or a new one."""
    for candidate in (os.environ.get(PARENT_VARIABLE), known):
        if candidate and _exists(api, candidate):
            api.update_run(candidate, status="RUNNING")
            return candidate
    return api.create_run(experiment_id(api, experiment, root), run_name=name).info.run_id


class StageRun:
    """A stage's record: parameters, batched metrics, data sets and artifacts under the pipeline's run.

    `directory` is the stage's own: the run id is kept there, so that a stage that is killed and started again goes
    on in the record that it had.
    """

    def __init__(self, uri: str, experiment: str, root: Path, stage: str, directory: Path) -> None:
        self._api = client(uri)
        self.uri = uri
        self._pending: list[Any] = []
        note = directory / "mlflow_run_id"
        known = note.read_text().strip() if note.exists() else ""
        if known and _exists(self._api, known):
            self.run_id = known
            self._api.update_run(known, status="RUNNING")
            return
        parent = os.environ.get(PARENT_VARIABLE)
        if parent and _exists(self._api, parent):
            experiment_of = self._api.get_run(parent).info.experiment_id
            tags = {"mlflow.parentRunId": parent}
        else:
            experiment_of, tags = experiment_id(self._api, experiment, root), {}
        self.run_id = self._api.create_run(experiment_of, run_name=stage, tags=tags).info.run_id
        directory.mkdir(parents=True, exist_ok=True)
        note.write_text(self.run_id + "\n")

    def __enter__(self) -> StageRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._api.set_terminated(self.run_id, status="FINISHED" if kind is None else "FAILED")

    def params(self, values: Mapping[str, Any]) -> None:
        """Record (nested) parameters; ones that are there already, as after a resume, stay."""
        from mlflow.entities import Param

        have = self._api.get_run(self.run_id).data.params
        flat = {key: value for key, value in _flatten(values).items() if key not in have}
        self._api.log_batch(self.run_id, params=[Param(key, value[:LONGEST_PARAM]) for key, value in flat.items()])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics of one step; sent in batches."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(key, float(value), now, step) for key, value in values.items()]
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what is pending; MLflow takes at most 1,000 metrics at once."""
        while self._pending:
            part, self._pending = self._pending[:1000], self._pending[1000:]
            self._api.log_batch(self.run_id, metrics=part)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags: hashes, versions, the path of a run."""
        for key, value in values.items():
            self._api.set_tag(self.run_id, key, value)

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Record that the run read (or made) the data set with this content hash."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(profile)),
        )
        self._api.log_inputs(
            self.run_id, [DatasetInput(dataset=entry, tags=[InputTag("mlflow.data.context", "training")])]
        )

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or a folder with the run."""
        if path.is_dir():
            self._api.log_artifacts(self.run_id, str(path), folder)
        else:
            self._api.log_artifact(self.run_id, str(path), folder)


def register_generator(
    run: StageRun, weights: Path, *, name: str, alias: str, tags: Mapping[str, str], description: str
) -> tuple[str, str]:
    """Log the model in `weights` as a sampler and register it; returns (version, models URI).

    The registered flavour is a pyfunc whose `predict` writes crystals (see `mlflow_sampler`), with a signature, the
    safetensors weights and the packages that it needs.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature

    from crystalforge.integrations.mlflow import sampler as mlflow_sampler

    experiment = run._api.get_run(run.run_id).info.experiment_id
    with _fluent(run.uri), mlflow.start_run(run_id=run.run_id, experiment_id=experiment):
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(Path(mlflow_sampler.__file__).resolve()),
            artifacts={"model": str(weights)},
            signature=ModelSignature(inputs=mlflow_sampler.INPUTS, outputs=mlflow_sampler.OUTPUTS),
            input_example=pd.DataFrame(mlflow_sampler.EXAMPLE),
            pip_requirements=mlflow_sampler.requirements(),
            registered_model_name=name,
        )
    version = str(logged.registered_model_version)
    for key, value in tags.items():
        run._api.set_model_version_tag(name, version, key, value)
    run._api.update_model_version(name, version, description=description)
    run._api.set_registered_model_alias(name, alias, version)
    return version, f"models:/{name}@{alias}"


def register_files(
    run: StageRun, folder: Path, *, name: str, alias: str, tags: Mapping[str, str], description: str
) -> tuple[str, str]:
    """Register a folder of files, such as a predictor's weights, as the next version of `name`; returns (version,
    models URI). What loads them is ours, so no flavour is needed."""
    run.artifact(folder, folder.name)
    source = f"{run._api.get_run(run.run_id).info.artifact_uri}/{folder.name}"
    if not run._api.search_registered_models(f"name = '{name}'"):
        run._api.create_registered_model(name)
    made = run._api.create_model_version(name, source, run.run_id, tags=dict(tags), description=description)
    version = str(made.version)
    run._api.set_registered_model_alias(name, alias, version)
    return version, f"models:/{name}@{alias}"


def version_of(api: MlflowClient, model: str) -> ModelVersion:
    """The registered version that `models:/name@alias` or `models:/name/version` means.

    Raises InputError when the text is neither, or nothing is registered so.
    """
    from mlflow.exceptions import MlflowException

    found = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", model)
    if found is None:
        raise InputError(f"{model!r} is no model", remedy="write models:/name@alias or models:/name/version")
    name, alias, version = found.groups()
    try:
        return api.get_model_version_by_alias(name, alias) if alias else api.get_model_version(name, version)
    except MlflowException as error:
        # A missing alias is an invalid parameter, a missing model does not exist.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(
            f"{model} is not registered ({error.message.splitlines()[0]})",
            source=api.tracking_uri,
            remedy="list what is with 'mlflow models', or run the pipeline that registers it",
        ) from None


def download(api: MlflowClient, uri: str, target: Path) -> Path:
    """Artifacts of a run or of a registered version under `target`; returns where they are.

    Raises InputError when there are none.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    target.mkdir(parents=True, exist_ok=True)
    try:
        with _fluent(api.tracking_uri):
            found = download_artifacts(artifact_uri=uri, dst_path=str(target), tracking_uri=api.tracking_uri)
    except (MlflowException, OSError) as error:
        raise InputError(f"cannot fetch {uri}: {str(error).splitlines()[0]}", source=api.tracking_uri) from None
    return Path(found)


def download_generator(api: MlflowClient, version: ModelVersion, target: Path) -> Path:
    """The weights of a generator that `register_generator` registered; returns their directory under `target`."""
    import yaml

    fetched = download(api, f"models:/{version.name}/{version.version}", target)
    about = fetched / "MLmodel"
    flavours = yaml.safe_load(about.read_text()).get("flavors", {}) if about.exists() else {}
    part = flavours.get("python_function", {}).get("artifacts", {}).get("model", {}).get("path")
    if part is None:
        raise InputError(
            f"version {version.version} of {version.name} is no generator",
            source=api.tracking_uri,
            remedy="give a model that 'crystalforge register' made",
        )
    return fetched / part


def _exists(api: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        api.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _quieten() -> None:
    """MLflow tells of migrations, downloads and defaults at length; runs have their own output."""
    import warnings

    for variable, value in {
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }.items():
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", module="mlflow")
