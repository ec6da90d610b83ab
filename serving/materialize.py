"""What is served is what was registered: rewards go into MLflow's registry with their files, and come out as a
repository that Triton serves as it is.

    python -m serving.materialize publish --config params.yaml --name ehull --alias production
    python -m serving.materialize build --out models ehull dielectric --alias production

A registered version holds `reward.json` (the configuration, its paths relative), the files that it names (weights,
hull) and the digest of the reward that was proved before it was registered. A worker built from it refuses to serve
when its reward has another digest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from crystalforge.common.errors import InputError
from crystalforge.common.names import checked
from crystalforge.common.system import told
from crystalforge.integrations.mlflow.recording import answered
from crystalforge.integrations.mlflow.tracking import client, experiment_id, tracking_uri
from crystalforge.rewards import build as build_reward
from crystalforge.rewards import parse
from serving.repository import ModelSettings, write_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE_KEYS = ("path", "hull", "reference")  # configuration keys that may name files
CONFIG, FILES, FOLDER = "reward.json", "files", "reward"
DIGEST = "reward_digest"
EXPERIMENT = "crystalforge-rewards"


def publish(reward: BaseModel, name: str, *, uri: str, root: Path, alias: str = "production") -> str:
    """Prove a reward, register it with its files as the next version of `name`, and move `alias` there.

    root: where artifacts go when `uri` is a local database. Returns the version. Raises InputError as
    `crystalforge.rewards.build` does.
    """
    checked("name", name, source="--name")
    checked("alias", alias, source="--alias")
    digest = build_reward(parse(reward.model_dump(mode="json"))).version.digest
    api = client(uri)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / FOLDER
        (folder / FILES).mkdir(parents=True)
        configuration = _with_files(reward.model_dump(mode="json"), lambda path: _copy_in(Path(path), folder))
        (folder / CONFIG).write_text(json.dumps(configuration, indent=2) + "\n")
        with answered(uri):
            run = api.create_run(experiment_id(api, EXPERIMENT, root), run_name=name)
            api.log_artifacts(run.info.run_id, str(folder), FOLDER)
            api.set_terminated(run.info.run_id)
    with answered(uri):
        if not api.search_registered_models(f"name = '{name}'"):
            api.create_registered_model(name, description="A reward: what is wanted of a crystal, ready to be served")
        version = api.create_model_version(
            name, f"{run.info.artifact_uri}/{FOLDER}", run.info.run_id, tags={DIGEST: digest}
        ).version
        api.set_registered_model_alias(name, alias, str(version))
    return str(version)


def materialize(
    out: Path,
    names: Sequence[str],
    *,
    uri: str,
    alias: str = "production",
    settings: ModelSettings | None = None,
    paths: list[str] | None = None,
) -> dict[str, str]:
    """Build a model repository in `out` from the versions that `alias` points to; returns version by name.

    Each model is put in place whole or not at all, so a server that reads the folder never sees half of one. The
    files of a version lie in `out`/.files/name/version. Raises InputError when a name or its alias is not registered.
    """
    out = out.resolve()  # the workers look for their files from another folder
    api = client(uri)
    versions = {}
    for name in names:
        version, digest, source = _lookup(api, name, alias)
        folder = _fetch(uri, source, out / ".files" / name / version)
        configuration = _with_files(
            json.loads((folder / CONFIG).read_text()),
            lambda path, folder=folder: str(folder / path) if path.startswith(f"{FILES}/") else path,
        )
        served = replace(settings or ModelSettings(), expected_digest=digest)
        write_model(out, name, parse(configuration), served, paths=paths)
        versions[name] = version
    return versions


def _lookup(api: MlflowClient, name: str, alias: str) -> tuple[str, str, str]:
    from mlflow.exceptions import MlflowException

    with answered(api.tracking_uri):
        try:
            found = api.get_model_version_by_alias(name, alias)
            source = api.get_model_version_download_uri(name, found.version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InputError(
                f"no registered model {name!r} with the alias {alias!r} ({error.message})",
                source=api.tracking_uri,
                remedy="register it with `python -m serving.materialize publish`, or give another alias",
            ) from None
    if DIGEST not in found.tags:
        raise InputError(
            f"version {found.version} of {name!r} is no reward: it has no tag {DIGEST!r}",
            source=api.tracking_uri,
            remedy="register rewards with `python -m serving.materialize publish`",
        )
    return str(found.version), found.tags[DIGEST], source


def _fetch(uri: str, source: str, target: Path) -> Path:
    """The version's files in `target`; versions never change, so what is there already stays."""
    import mlflow.artifacts

    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            with answered(uri):
                fetched = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=temporary, tracking_uri=uri)
            Path(fetched).rename(target)
    return target


def _with_files(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """A copy of a configuration with `change` applied to what may be a path."""
    if isinstance(value, Mapping):
        return {name: _with_files(item, change, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_files(item, change) for item in value]
    return change(value) if key in FILE_KEYS and isinstance(value, str) else value


def _copy_in(path: Path, folder: Path) -> str:
    """Copy a file or folder beside the configuration; its new, relative name. What is no path stays as it is."""
    if not path.exists():
        return str(path)  # a name such as `embedded`: the reward was built with it, so it means something
    inside = f"{FILES}/{len(list((folder / FILES).iterdir()))}-{path.name}"
    if path.is_dir():
        shutil.copytree(path, folder / inside)
    else:
        shutil.copyfile(path, folder / inside)
    return inside


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 and one message on a user's mistake."""
    from crystalforge.common.settings import read_yaml
    from serving.__main__ import rewards_of

    parser = argparse.ArgumentParser(
        prog="python -m serving.materialize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (("publish", "register a reward"), ("build", "write a model repository")):
        add = verbs.add_parser(verb, help=what).add_argument
        add("--tracking-uri", help="MLflow's address; default: MLFLOW_TRACKING_URI, else the database in ./runs")
        add("--alias", default="production")
        if verb == "publish":
            add("--config", type=Path, required=True, help="YAML file with the reward")
            add("--name", help="default: the reward's own")
        else:
            add("--out", type=Path, required=True)
            add("--instances", type=int, default=1)
            add("--kind", choices=("KIND_CPU", "KIND_GPU"), default="KIND_CPU")
            add("names", nargs="+")
    options = parser.parse_args(arguments)
    root = Path("runs")
    try:
        uri = tracking_uri(options.tracking_uri, root)
        if options.verb == "publish":
            rewards = rewards_of(read_yaml(options.config))
            if options.name and len(rewards) > 1:
                raise InputError(
                    f"{len(rewards)} rewards would be versions of one name",
                    source="--name",
                    remedy="leave it out: each is registered by its own",
                )
            for name, reward in rewards.items():
                known = options.name or name
                print(known, publish(reward, known, uri=uri, root=root, alias=options.alias))
        else:
            settings = ModelSettings(instances=options.instances, kind=options.kind)
            for name, version in materialize(
                options.out, options.names, uri=uri, alias=options.alias, settings=settings
            ).items():
                print(name, version)
    except Exception as error:
        return told(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
