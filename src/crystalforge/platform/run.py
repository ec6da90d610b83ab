"""The main job on this machine: a pipeline by the workflow engine's own local runner.

`discovery` makes its base model; with `base` in the configuration it is `finetune`, which starts from a model that
there is.

runs/<id>/config.yaml     what was asked for
runs/<id>/<stage>/        each stage's directory: an interrupted run goes on from there
runs/<id>/summary.json    base beside tuned, each figure with its interval
runs/latest               the newest run
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common import yaml12
from crystalforge.common.environment import environment, one_thread_each
from crystalforge.common.errors import InputError, without_secrets
from crystalforge.common.files import atomic_file, write_json
from crystalforge.integrations.triton.service import URL_VARIABLE, local_server
from crystalforge.platform.engine import execute
from crystalforge.stages.base import ERROR

if TYPE_CHECKING:
    from crystalforge.config import Config
    from pipelines.cluster import ClusterConfig

SUMMARY = "summary.json"
WITHOUT_FILTER = 3  # columns of the printed table where no filter was measured


def run(config: Config, directory: Path, *, fresh: bool = False) -> Path:
    """Run all stages in `directory/<id>` and print what came out; returns the run's directory.

    The newest unfinished run of the same configuration goes on where it stopped, unless `fresh`. Raises InputError
    (or exits with code 2) on a user's mistake; what was computed by then is kept.
    """
    base = None
    if config.base is not None:
        from crystalforge.platform.fetch import pinned

        base = pinned(config, config.base)  # a wrong name ends here, not minutes later
    directory.mkdir(parents=True, exist_ok=True)
    place = None if fresh else _unfinished(config, directory)
    if place is None:
        place = _new_place(config, directory)
    else:
        print(f"run {place.name} was interrupted: it goes on", file=sys.stderr)
    _point_latest(directory, place)
    began = time.monotonic()
    # The reward's instances and the learner share the cores, and small matrices are slower on two threads than on one.
    with locked(place), one_thread_each():
        (place / ERROR).unlink(missing_ok=True)
        with tracked(config, place), served(config, place):
            from pipelines.arguments import arguments

            pipeline = pipeline_named("discovery" if base is None else "finetune")
            execute(pipeline, arguments(pipeline, config, str(place.resolve()), base_model=base), place)
            summary = _summarise(config, place, seconds=time.monotonic() - began)
    _print(place, summary)
    return place


def pipeline_named(name: str, cluster: ClusterConfig | None = None) -> Callable[..., Any]:
    """A pipeline of the catalog, for a cluster or (none) for this machine.

    Raises InputError for an unknown name, or where the workflow engine is not installed.
    """
    try:
        from pipelines.catalog import PIPELINES
    except ImportError as error:
        from crystalforge.common.errors import missing_extra

        raise missing_extra("kfp", "pipelines", error) from None
    if name not in PIPELINES:
        raise InputError(f"there is no pipeline {name!r}", remedy=f"choose one of {', '.join(PIPELINES)}")
    return PIPELINES[name](cluster)


@contextmanager
def tracked(config: Config, place: Path) -> Iterator[str | None]:
    """Open the pipeline's tracked run; its id reaches the stages as the workflow engine would hand it over."""
    if not config.tracking.enabled:
        yield None
        return
    from crystalforge.integrations.mlflow import tracking
    from crystalforge.integrations.mlflow.recording import Recorder

    root = Path(config.tracking.directory)
    uri = tracking.tracking_uri(config.tracking.uri, root)
    api = tracking.client(uri)
    note = place / "mlflow_run_id"
    known = note.read_text().strip() if note.exists() else None
    parent = tracking.open_parent(api, config.tracking.experiment, root, place.name, known)
    note.write_text(parent + "\n")
    recorder = Recorder("the run", uri)
    status = tracking.final_status(None)
    try:
        with environment({"MLFLOW_TRACKING_URI": uri, tracking.PARENT_VARIABLE: parent}):
            yield parent
        for file in (place / SUMMARY, place / "config.yaml", place / "evaluate" / "report.html"):
            if file.exists():
                recorder.send(f"file {file.name}", partial(api.log_artifact, parent, str(file)), files=True)
    except BaseException as error:
        status = tracking.final_status(type(error))
        raise
    finally:
        recorder.send("how it ended", lambda: api.set_terminated(parent, status=status))
        recorder.close(place)


@contextmanager
def served(config: Config, place: Path) -> Iterator[None]:
    """One reward server for all stages, started while the first ones work; none where a stage must see to it."""
    from serving.launcher import available

    wanted = config.service.url is None and URL_VARIABLE not in os.environ and config.service.mode != "in-process"
    if not wanted or not available()[0]:
        yield
        return
    with local_server(config, place / "service") as server, environment({URL_VARIABLE: server.grpc_url}):
        try:
            yield
        finally:
            write_json(place / "service.json", asdict(server.statistics()))


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process in a run's directory: a killed run's steps need a moment to notice that they are alone."""
    with (place / ".lock").open("w") as lock:
        for attempt in range(20):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 0:
                    print(f"waiting for another process that works in {place}", file=sys.stderr)
                time.sleep(0.5)
        else:
            raise InputError(
                "another process works on this run",
                source=place,
                remedy="wait for it, or give --fresh for a new run",
            )
        yield


def _unfinished(config: Config, directory: Path) -> Path | None:
    """The newest run of this configuration that has no summary yet."""
    for place in sorted(
        (path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()), reverse=True
    ):
        asked = place / "config.yaml"
        if asked.exists() and not (place / SUMMARY).exists():
            return place if asked.read_text() == _asked(config) else None
        if asked.exists():
            return None
    return None


def _new_place(config: Config, directory: Path) -> Path:
    """A folder that nobody has: runs that begin in the same second are counted."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.digest[:6]}"
    for place in (directory / (name if number == 1 else f"{name}-{number}") for number in count(1)):
        try:
            place.mkdir()
        except FileExistsError:
            continue
        with atomic_file(place / "config.yaml") as path:
            path.write_text(_asked(config), encoding="utf-8")
        return place
    raise AssertionError("numbers do not end")


def _asked(config: Config) -> str:
    """The configuration as a run keeps it: whole, without secrets, with the version of the data behind their path."""
    from crystalforge.integrations.dvc import source_version

    said = f"# data: {version}\n" if (version := source_version(config.data)) else ""
    return said + yaml12.dump(without_secrets(config.model_dump(mode="json", by_alias=True)))


def _point_latest(directory: Path, place: Path) -> None:
    link = directory / f".latest.{uuid.uuid4().hex}"  # two runs, or two threads of one process, each their own
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    os.replace(link, directory / "latest")


def _summarise(config: Config, place: Path, seconds: float) -> dict[str, Any]:
    """Gather what the stages found into `summary.json`, whose presence says that the run is complete."""
    from crystalforge.stages.base import read_record

    maker = "pretrain" if config.base is None else "fetch"
    records = {name: read_record(place / name, name) for name in ("ingest", maker, "finetune", "evaluate", "register")}
    summary = {
        "run": place.name,
        "seconds": round(seconds, 1),
        "seconds_by_stage": {name: record["seconds"] for name, record in records.items()},
        **json.loads((place / "evaluate" / SUMMARY).read_text()),
        "registered": records["register"]["metrics"],
        "report": str(place / "evaluate" / "report.html"),
        "content": {name: record["content"] for name, record in records.items()},
    }
    write_json(place / SUMMARY, summary)
    return summary


def _print(place: Path, summary: dict[str, Any]) -> None:
    """The table base beside tuned, and where everything is."""
    from rich.console import Console
    from rich.table import Table

    from crystalforge.evaluation.metrics.measures import METRICS
    from crystalforge.evaluation.metrics.objective import CAPTIONS

    base = summary["models"]["base"]
    captions = {name: (caption, unit) for name, (caption, unit, _) in METRICS.items()} | CAPTIONS
    table = Table(title=f"{base['n']:,} crystals from each model, 95 % intervals", title_justify="left")
    columns = table_columns(summary)
    for heading in ("", *columns):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for name, (caption, unit) in captions.items():
        found = [column.get(name) for column in columns.values()]
        if any(found):
            shown = [_figure(value, percent=unit == "%") for value in found]
            table.add_row(f"{caption} {unit}".strip(), *shown)
    # A log collector is no terminal, and has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 40 + 27 * len(columns), highlight=False)
    console.print(table)
    if len(columns) > WITHOUT_FILTER:
        console.print(
            "filtered: only crystals that pass the reward's guards, which ask no model: drawn again until one passes. "
            "The learner's merit is the last column.",
            soft_wrap=True,
        )
    registered = summary["registered"]
    console.print(f"report      {summary['report']}", soft_wrap=True)
    console.print(f"summary     {place / SUMMARY}", soft_wrap=True)
    named = f"{registered['uri']} (version {registered['version']}), " if "uri" in registered else ""
    maker = "pretrain" if "pretrain" in summary["content"] else "fetch"
    weights = place / {"base": maker, "tuned": "finetune"}[registered["model"]] / "model"
    console.print(f"model       {named}{weights}: the {registered['model']} model", soft_wrap=True)
    console.print(f"time        {summary['seconds']:.0f} s", soft_wrap=True)


def table_columns(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What stands beside what: base and tuned model as drawn, and where it was measured both behind the free filter."""
    models, objective = summary["models"], summary.get("objective")
    columns = {
        "base": models["base"]["metrics"],
        "fine-tuned": models["tuned"]["metrics"],
        "difference": summary["comparison"]["tuned"],
    }
    if objective is None:
        return columns
    columns["base"] = columns["base"] | objective["models"]["base"]
    columns["fine-tuned"] = columns["fine-tuned"] | objective["models"]["tuned"]
    columns["difference"] = columns["difference"] | objective["comparison"]["tuned"]
    return columns | {
        "base, filtered": objective["filtered"]["base"],
        "fine-tuned, filtered": objective["filtered"]["tuned"],
        "difference, filtered": objective["filtered_comparison"]["tuned"],
    }


def _figure(found: dict[str, Any] | None, *, percent: bool) -> str:
    if found is None or found["value"] is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * found['value']:.{digits}f}"
    if found["low"] is None:
        return text
    return f"{text}  [{scale * found['low']:.{digits}f}, {scale * found['high']:.{digits}f}]"
