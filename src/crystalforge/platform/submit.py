"""A pipeline with the values of a configuration: to a workflow engine's API, into a file, or run on this machine."""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crystalforge.common.errors import InputError, redacted
from crystalforge.common.files import atomic_file, sha256_json
from crystalforge.common.settings import read_yaml, validated
from crystalforge.platform.run import execute, locked, pipeline_named, served, tracked
from crystalforge.stages.base import ERROR, RECORD

if TYPE_CHECKING:
    from crystalforge.config import Config

HEALTH = "/apis/v2beta1/healthz"
ANSWER_S = 10.0  # within which an endpoint must say that it is there


def submit(
    name: str,
    config: Config,
    *,
    endpoint: str | None = None,
    output: Path | None = None,
    local: Path | None = None,
    cluster: Path | None = None,
    workspace: str | None = None,
    token: Path | None = None,
    base_model: str | None = None,
    taus: Sequence[float] = (),
    seeds: Sequence[int] = (),
    algorithms: Sequence[str] = (),
) -> dict[str, Any]:
    """Do exactly one of: run the pipeline `name` in the directory `local`, write its IR to `output`, or submit it to
    the Kubeflow Pipelines API at `endpoint`. Returns what came of it.

    cluster: YAML of a `pipelines.cluster.ClusterConfig`. workspace: folder on the cluster's shared volume where an
    interrupted run goes on; by default one of this pipeline and these values alone. token: file with a bearer token.
    base_model, taus, seeds, algorithms: see `pipelines.arguments`. Raises InputError when the endpoint cannot be
    reached or refuses, when a step fails by a user's mistake, or when the pipeline needs something else.
    """
    if sum(way is not None for way in (endpoint, output, local)) != 1:
        raise InputError("where to?", remedy="give one of --local, --output FILE, --endpoint URL")
    secret = _token(token) if token is not None else None
    if base_model is not None:
        from crystalforge.platform.fetch import pinned

        base_model = pinned(config, base_model)  # an alias moves: the engine's cache must not outlive what it meant
    given: dict[str, Any] = {"base_model": base_model, "taus": list(taus), "seeds": list(seeds)}
    if algorithms:
        given["algorithms"] = list(algorithms)
    pipeline = pipeline_named(name)
    if local is not None:
        return _run_here(name, pipeline, config, local, given)
    from pipelines.cluster import ClusterConfig

    settings = validated(ClusterConfig, read_yaml(cluster), source=cluster) if cluster is not None else ClusterConfig()
    pipeline = pipeline_named(name, settings)
    identity = _identity(config, given)
    workspace = workspace or f"{settings.workspace_path}/{name}-{identity}"
    values = _arguments(pipeline, config, workspace, given)
    with tempfile.TemporaryDirectory() as temporary:
        package = _compile(pipeline, Path(temporary) / "pipeline.yaml", values)
        if output is not None:
            with atomic_file(output) as path:
                path.write_bytes(package.read_bytes())
            return {"pipeline": name, "output": str(output), "workspace": workspace}
        assert endpoint is not None
        run_id = send(
            endpoint,
            package,
            values,
            run_name=f"{name}-{identity}",
            experiment=config.tracking.experiment,
            namespace=settings.namespace,
            service_account=settings.service_account,
            token=secret,
        )
    return {"pipeline": name, "run_id": run_id, "run": f"{endpoint.rstrip('/')}/#/runs/details/{run_id}"} | {
        "workspace": workspace
    }


def send(
    endpoint: str,
    package: Path,
    values: Mapping[str, Any],
    *,
    run_name: str,
    experiment: str,
    namespace: str,
    service_account: str,
    token: str | None = None,
) -> str:
    """Start a run of the compiled `package` by the Kubeflow Pipelines API; returns its id.

    Raises InputError when nobody answers at `endpoint`, somebody else does, or the API refuses.
    """
    _must_answer(endpoint, token)
    from kfp import Client
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        with redirect_stdout(sys.stderr):  # the client tells of its pages; our answer alone is on stdout
            client = Client(host=endpoint, namespace=namespace, existing_token=token)
            done = client.create_run_from_pipeline_package(
                str(package),
                arguments=dict(values),
                run_name=run_name,
                experiment_name=experiment,
                namespace=namespace,
                service_account=service_account,
            )
    except ApiException as error:
        raise InputError(
            f"the API refused the run: {error.status} {_reason(error)}", source=endpoint, remedy="mend what it names"
        ) from None
    except (HTTPError, OSError) as error:
        raise InputError(f"the connection broke off: {type(error).__name__}", source=endpoint) from None
    return str(done.run_id)


def _must_answer(endpoint: str, token: str | None) -> None:
    """One short question first: the engine's client asks for minutes, and then tells of sockets.

    A token goes to this address alone: redirections are not followed, they lead to a page for people to log in.
    """
    remedy = "check the address; from outside the cluster: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
    if not endpoint.startswith(("http://", "https://")):
        raise InputError("is no http(s) address", source=endpoint, remedy="write http://host:port")
    if redacted(endpoint) != endpoint:
        raise InputError("has a password or a token in it", source=endpoint, remedy="give a token by --token-file")
    try:
        request = urllib.request.Request(endpoint.rstrip("/") + HEALTH)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.build_opener(_Stay).open(request, timeout=ANSWER_S) as response:
            json.loads(response.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = "give --token-file with a token that this API accepts"
        if 300 <= error.code < 400:
            there = urlsplit(error.headers.get("Location", ""))
            raise InputError(
                f"sends us on to {there.scheme}://{there.netloc.rpartition('@')[2]}{there.path}",
                source=endpoint,
                remedy="give the address of the API itself, and --token-file where one has to log in",
            ) from None
        raise InputError(f"answers {error.code} to {HEALTH}", source=endpoint, remedy=remedy) from None
    except ValueError as error:  # also an address that is none: a port of letters
        what = "is no Kubeflow Pipelines API" if isinstance(error, json.JSONDecodeError | UnicodeError) else str(error)
        raise InputError(what, source=endpoint, remedy=remedy) from None
    except (urllib.error.URLError, OSError) as error:
        raise InputError(
            f"cannot be reached: {getattr(error, 'reason', error)}", source=endpoint, remedy=remedy
        ) from None
    except http.client.InvalidURL as error:
        raise InputError(f"is no address: {error}", source=endpoint, remedy=remedy) from None
    except http.client.HTTPException as error:
        raise InputError(f"does not speak HTTP ({type(error).__name__})", source=endpoint, remedy=remedy) from None


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


def _token(path: Path) -> str:
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"cannot be read ({said})", source=path, remedy="correct --token-file") from None
    if not found or len(found.split()) > 1:
        raise InputError("holds no token" if not found else "holds more than a token", source=path, remedy="one line")
    return found


def _run_here(
    name: str, pipeline: Callable[..., Any], config: Config, directory: Path, given: Mapping[str, Any]
) -> dict[str, Any]:
    """By the engine's local runner, in a folder of this pipeline and these values: the same call goes on there."""
    place = directory / f"{name}-{_identity(config, given)}"
    place.mkdir(parents=True, exist_ok=True)
    values = _arguments(pipeline, config, str(place.resolve()), given)
    (place / ERROR).unlink(missing_ok=True)
    with locked(place), tracked(config, place), served(config, place):
        execute(pipeline, values, place)
    records = {
        str(path.parent.relative_to(place)): json.loads(path.read_text())
        for path in sorted(place.rglob(RECORD))
        if "pipeline" not in path.relative_to(place).parts
    }
    print(f"{name}: done in {place}", file=sys.stderr)
    return {
        "pipeline": name,
        "directory": str(place),
        "stages": {name: record["content"] for name, record in records.items()},
        "reports": [str(path) for path in sorted(place.glob("*/*.html"))],
    }


def _identity(config: Config, given: Mapping[str, Any]) -> str:
    """Of what a run makes: another version of the data behind an unchanged path is another run."""
    from crystalforge.integrations.dvc import source_version

    return sha256_json([config.digest, given, source_version(config.data)])[:8]


def _arguments(pipeline: Any, config: Config, workspace: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from pipelines.arguments import arguments

    return arguments(pipeline, config, workspace, **given)


def _compile(pipeline: Any, path: Path, values: Mapping[str, Any]) -> Path:
    from kfp import compiler

    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=dict(values))
    return path


def _reason(error: Any) -> str:
    try:
        return str(json.loads(error.body)["error"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
