"""MLflow's registry: the better model into it with its lineage, and out of it as it went in."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError, redacted
from crystalforge.integrations.mlflow.recording import answered, is_fault, reason, strangers
from crystalforge.integrations.mlflow.tracking import StageRun, fluent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

CONTENT = "model_hash"  # tag of a version: the hash of what was registered
LOGGED = "logged_model"  # tag of a version: the logged model that it is made of


def register_generator(
    run: StageRun, weights: Path, *, name: str, alias: str, tags: Mapping[str, str], description: str
) -> tuple[str, str]:
    """Log the model in `weights` as a sampler and register it; returns (version, models URI).

    The registered flavour is a pyfunc whose `predict` writes crystals (see `sampler`), with a signature, the
    safetensors weights and the packages that it needs. A version that this run made before, and could not finish, is
    gone on with. Raises InputError when the registry refuses or is away.
    """
    with _registering(run):
        version = _begun(run, name, tags)
        if version is None:
            version = _log(run, weights, name)
        return _finish(run, version, name=name, alias=alias, tags=tags, description=description)


def register_files(
    run: StageRun,
    folder: Path,
    *,
    name: str,
    alias: str,
    tags: Mapping[str, str],
    description: str,
    kind: str = "files",
    metrics: Mapping[str, float] | None = None,
) -> tuple[str, str]:
    """Register a folder of files, such as a predictor's weights, as the next version of `name`; returns (version,
    models URI).

    The files become a logged model of MLflow, of type `kind`, with `metrics`, so that models of several runs can be
    listed and compared by them. What loads them is ours, so no flavour is needed. Raises InputError as
    `register_generator`.
    """
    with _registering(run):
        version = _begun(run, name, tags)
        if version is None:
            model = _log_files(run, folder, name, kind, tags, metrics or {})
            if not run.api.search_registered_models(f"name = '{name}'"):
                run.api.create_registered_model(name)
            # MLflow's SQL registry forgets a version's logged model; a tag does not.
            about = {LOGGED: model.model_id}
            made = run.api.create_model_version(
                name, model.artifact_location, run.run_id, about, model_id=model.model_id
            )
            version = str(made.version)
        return _finish(run, version, name=name, alias=alias, tags=tags, description=description)


def still_registered(uri: str, name: str, version: str, content: str) -> bool:
    """Whether the registry at `uri` has this version of `name`, with this content.

    A registry that is away is believed to have it, with a warning: what is finished is not made anew for that.
    """
    from crystalforge.integrations.mlflow.tracking import client

    try:
        found = client(uri).get_model_version(name, version)
    except Exception as error:
        if getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        if not isinstance(error, InputError) and not is_fault(error):
            raise
        print(f"warning: {redacted(uri)} cannot be asked for {name} {version} ({reason(error)})", file=sys.stderr)
        return True
    return found.tags.get(CONTENT, content) == content


def version_of(api: MlflowClient, model: str) -> ModelVersion:
    """The registered version that `models:/name@alias` or `models:/name/version` means.

    Raises InputError when the text is neither, nothing is registered so, or the registry is away.
    """
    from mlflow.exceptions import MlflowException

    found = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", model)
    if found is None:
        raise InputError(f"{model!r} is no model", remedy="write models:/name@alias or models:/name/version")
    name, alias, version = found.groups()
    with answered(api.tracking_uri):
        try:
            return api.get_model_version_by_alias(name, alias) if alias else api.get_model_version(name, version)
        except MlflowException as error:
            # A missing alias is an invalid parameter, a missing model does not exist.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InputError(
                f"{model} is not registered ({reason(error)})",
                source=api.tracking_uri,
                remedy="list what is with 'mlflow models', or run the pipeline that registers it",
            ) from None


def download(api: MlflowClient, uri: str, target: Path) -> Path:
    """Artifacts of a run or of a registered version under `target`; returns where they are.

    Raises InputError when there are none.
    """
    from mlflow.artifacts import download_artifacts

    target.mkdir(parents=True, exist_ok=True)
    try:
        with fluent(api.tracking_uri):
            found = download_artifacts(artifact_uri=uri, dst_path=str(target), tracking_uri=api.tracking_uri)
    except Exception as error:
        if strangers(error):
            with answered(api.tracking_uri):
                raise
        if not is_fault(error):
            raise
        raise InputError(f"cannot fetch {uri}: {reason(error)}", source=api.tracking_uri) from None
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


@contextmanager
def _registering(run: StageRun) -> Iterator[None]:
    """Metrics and tags first: a version names the run, which should have them."""
    run.flush()
    with answered(run.uri):
        yield


def _log(run: StageRun, weights: Path, name: str) -> str:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature

    from crystalforge.integrations.mlflow import sampler

    experiment = run.api.get_run(run.run_id).info.experiment_id
    with fluent(run.uri), mlflow.start_run(run_id=run.run_id, experiment_id=experiment):
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(Path(sampler.__file__).resolve()),
            artifacts={"model": str(weights)},
            signature=ModelSignature(inputs=sampler.INPUTS, outputs=sampler.OUTPUTS),
            input_example=pd.DataFrame(sampler.EXAMPLE),
            pip_requirements=sampler.requirements(),
            registered_model_name=name,
        )
    return str(logged.registered_model_version)


def _log_files(
    run: StageRun, folder: Path, name: str, kind: str, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> LoggedModel:
    """A logged model with these files; one that cannot be finished is marked as failed."""
    run_info = run.api.get_run(run.run_id).info
    kept = {key: redacted(value) for key, value in tags.items()}
    model = run.api.create_logged_model(run_info.experiment_id, name, run.run_id, tags=kept, model_type=kind)
    status = "FAILED"
    try:
        run.api.log_model_artifacts(model.model_id, str(folder))
        for key, value in metrics.items():
            run.api.log_metric(run.run_id, key, value, model_id=model.model_id)
        status = "READY"
    finally:
        run.api.finalize_logged_model(model.model_id, status)
    return model


def _begun(run: StageRun, name: str, tags: Mapping[str, str]) -> str | None:
    """The newest version that this very run made of the same content; its tags or its alias may be missing."""
    found: list[Any] = [
        version
        for version in run.api.search_model_versions(f"name = '{name}'")
        if version.run_id == run.run_id and version.tags.get(CONTENT) in (None, tags.get(CONTENT))
    ]
    return str(max(found, key=lambda version: int(version.version)).version) if found else None


def _finish(
    run: StageRun, version: str, *, name: str, alias: str, tags: Mapping[str, str], description: str
) -> tuple[str, str]:
    for key, value in tags.items():
        run.api.set_model_version_tag(name, version, key, redacted(value))
    run.api.update_model_version(name, version, description=description)
    run.api.set_registered_model_alias(name, alias, version)
    return version, f"models:/{name}@{alias}"
