"""What a tracking server does to those who record: goes away, forgets, takes no files. The work is kept, and the
message says what was not recorded. MLflow's own server application, over HTTP, and its SQLite store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crystalforge.common import termination
from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections
from crystalforge.integrations.mlflow import tracking
from crystalforge.stages.base import RECORD, Stage

LIMIT_S = 30.0  # within which the message must have come


class Server:
    """MLflow's application in a thread of this process, on a database and a folder of artifacts in `root`."""

    def __init__(self, root: Path) -> None:
        from mlflow.server import app, handlers
        from werkzeug.serving import make_server

        handlers._tracking_store = handlers._model_registry_store = handlers._artifact_repo = None
        self.artifacts = root / "artifacts"
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{tmp_path}/server.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(tmp_path / "artifacts"))
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    running = Server(tmp_path)
    yield running
    running.stop()


def stage(config: Config, out: Path) -> Stage:
    return Stage("ingest", config, out, sections=("data",))


def config_for(uri: str, root: Path) -> Config:
    return from_sections(tracking={"uri": uri, "directory": str(root)})


def work(running: Stage, out: Path) -> None:
    """What a stage does: metrics, a file, the end."""
    running.on_metrics(1, {"loss": 0.5})
    (out / "table.csv").write_text("x")
    running.artifact(out / "table.csv")
    running.finish("content", {"rows": 3})


def test_a_server_that_goes_away_costs_the_record_and_not_the_result(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    with stage(config_for(server.url, tmp_path), out) as running:
        server.stop()
        work(running, out)
    assert time.monotonic() - began < LIMIT_S
    assert json.loads((out / RECORD).read_text())["content"] == "content"
    said = capsys.readouterr().err
    for missing in ("metrics", "tag content", "file table.csv", "how it ended"):
        assert missing in said, said
    assert server.url in said
    assert "Traceback" not in said
    with stage(config_for(server.url, tmp_path), out) as again:
        assert again.finished is not None, "done, and nobody asks the server"


def test_a_store_that_takes_no_files_costs_the_files_alone(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.artifacts.write_text("a file where the folder should be")
    out = tmp_path / "out"
    began = time.monotonic()
    with stage(config_for(server.url, tmp_path), out) as running:
        work(running, out)
    assert time.monotonic() - began < LIMIT_S
    said = capsys.readouterr().err
    assert "not recorded" in said
    assert "file table.csv" in said
    assert "metrics (" not in said
    assert running.run is not None
    found = tracking.client(server.url).get_run(running.run.run_id)
    assert found.info.status == "FINISHED"
    assert (found.data.metrics["loss"], found.data.tags["content"]) == (0.5, "content")


def test_a_server_that_is_away_from_the_start_is_refused_before_any_work(tmp_path: Path) -> None:
    began = time.monotonic()
    secret = "http://svc:" + "hunter2@127.0.0.1:9"
    with pytest.raises(InputError, match=r"tracking server (?s:.*)tracking\.enabled=false") as caught:
        tracking.StageRun(secret, "test", tmp_path, "ingest", tmp_path / "out")
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)
    assert time.monotonic() - began < LIMIT_S


@pytest.fixture
def local(tmp_path: Path) -> Config:
    return config_for(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


def api(config: Config) -> Any:
    assert config.tracking.uri is not None
    return tracking.client(config.tracking.uri)


def test_a_run_that_was_deleted_is_not_gone_on_with(local: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), stage(local, out):
        raise RuntimeError("killed")
    first = (out / "mlflow_run_id").read_text().strip()
    assert api(local).get_run(first).info.status == "FAILED"
    api(local).delete_run(first)
    with stage(local, out) as running:
        work(running, out)
    second = (out / "mlflow_run_id").read_text().strip()
    assert second != first
    assert api(local).get_run(second).info.status == "FINISHED"
    parent = tracking.open_parent(api(local), "crystalforge", tmp_path, "run", first)
    assert parent not in (first, second)


def test_a_run_that_is_deleted_while_it_works_keeps_its_result(
    local: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with stage(local, out) as running:
        api(local).delete_run(running.run.run_id)  # type: ignore[union-attr]
        work(running, out)
    assert (out / RECORD).exists()
    assert "not recorded" in capsys.readouterr().err


def test_an_experiment_that_was_deleted_is_named(local: Config, tmp_path: Path) -> None:
    with stage(local, tmp_path / "a") as running:
        work(running, tmp_path / "a")
    api(local).delete_experiment(api(local).get_experiment_by_name("crystalforge").experiment_id)
    with (
        pytest.raises(InputError, match=r"'crystalforge' was deleted(?s:.*)mlflow experiments restore -x \d+"),
        stage(local, tmp_path / "b"),
    ):
        pass
    with stage(local, tmp_path / "a") as again:
        assert again.finished is not None


@pytest.mark.parametrize(
    ("error", "status"),
    [(termination.Terminated, "KILLED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")],
)
def test_a_run_is_closed_by_how_it_ended(
    local: Config, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), stage(local, tmp_path / "out"):
        raise error
    run = (tmp_path / "out" / "mlflow_run_id").read_text().strip()
    assert api(local).get_run(run).info.status == status


def test_a_database_that_is_broken_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(InputError, match="file is not a database"):
        tracking.experiment_id(api(config_for(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)), "x", tmp_path)


@pytest.mark.parametrize("name", ["with space", "ünïcode", "100%", "a+b&c"])
def test_folders_of_any_name_hold_a_database_and_its_files(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    config = from_sections(tracking={"directory": str(root)})
    out = root / "out"
    with stage(config, out) as running:
        work(running, out)
    assert (root / "mlflow.db").exists()
    assert running.run is not None
    assert [file.path for file in running.run.api.list_artifacts(running.run.run_id)] == ["table.csv"]
    assert len(list((root / "mlartifacts").rglob("table.csv"))) == 1


def test_a_folder_that_no_address_can_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot have '\?' or '#'"):
        tracking.tracking_uri(None, tmp_path / "what?")


OPEN = """
import sys
from pathlib import Path
from crystalforge.integrations.mlflow import tracking
uri = sys.argv[1]
print(tracking.experiment_id(tracking.client(uri), "together", Path(uri.removeprefix("sqlite:///")).parent))
"""


def test_processes_that_find_no_database_make_one_between_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path}/mlflow.db"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [process.communicate(timeout=300)[0].split()[-1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(set(found)) == 1
