"""The launcher against a server that speaks the Kubernetes API over HTTP: what it sends and answers is checked by the
trainer's typed models. The server plays the controller: a script of states that each job goes through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob
from kubernetes import client

from crystalforge.common.errors import InputError
from crystalforge.config import load
from crystalforge.integrations.trainjob.jobs import TrainJobFailed, TrainJobs
from crystalforge.integrations.trainjob.manifest import TrainJobConfig, job_name, manifest
from crystalforge.stages.component import execute
from tests.unit.integrations.trainjob.conftest import (
    COMPLETE,
    FAILED,
    JOBS,
    RESUMED,
    SUSPENDED,
    Cluster,
    pod,
    trainjobs,
)

ROOT = Path(__file__).resolve().parents[4]


def test_the_manifest_is_what_the_typed_model_and_our_runtime_expect() -> None:
    config = TrainJobConfig(nodes=4, processes_per_node=8, env={"NCCL_DEBUG": "WARN"}, queue="gpus", deadline_s=60)
    body = manifest("pretrain-1", ["pretrain", "--out", "/workspace/pretrain"], config, "forge")
    job = TrainerV1alpha1TrainJob.from_dict(body)
    assert job is not None
    assert job.spec is not None
    assert job.spec.trainer is not None
    assert (job.spec.trainer.num_nodes, job.spec.trainer.num_proc_per_node) == (4, 8)
    assert job.spec.active_deadline_seconds == 60
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert body["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    runtime = yaml.safe_load((ROOT / "manifests/base/training-runtime.yaml").read_text())
    assert TrainerV1alpha1TrainingRuntime.from_dict(runtime) is not None
    assert runtime["metadata"]["name"] == config.runtime
    container = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert [part["name"] for part in container] == ["node"], "the log is read from the container of this name"
    assert container[0]["command"][-1] == "crystalforge", "arguments begin with a verb"


def test_a_job_is_created_watched_and_its_log_repeated(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.script = [[], [SUSPENDED], [RESUMED], [RESUMED, COMPLETE]]
    done = trainjobs(cluster.url).run("pretrain-1", ["pretrain"])
    assert done["status"]["conditions"][-1]["type"] == "Complete"
    said = capsys.readouterr().out
    assert said.count("waits for admission (waiting for quota)") == 1
    assert said.count("was admitted") == 1
    assert said.index("waits for") < said.index("was admitted")
    assert said.count("step 1") == said.count("step 2") == 1
    assert not cluster.jobs, "what succeeded is cleaned up"


def test_failure_carries_the_pods_last_words(cluster: Cluster) -> None:
    cluster.script = [[], [FAILED]]
    cluster.pods = [pod("node-0-0", 0, "Succeeded", 0), pod("node-0-1", 1, "Failed", 137)]
    cluster.log["node-0-1"] = ["CUDA out of memory"]
    with pytest.raises(
        TrainJobFailed, match=r"JobsFailed(?s:.*)node-0-1 \(exit code 137 Error\)\nCUDA out of memory"
    ) as e:
        trainjobs(cluster.url).run("pretrain-1", ["pretrain"])
    assert "node-0-0" not in str(e.value)
    assert "pretrain-1" in cluster.jobs, "a failed job stays for inspection"


def test_a_broken_watch_and_a_busy_server_are_borne(cluster: Cluster) -> None:
    cluster.refuse = {"POST": [503, 429], "GET": [500, 500, 500]}
    cluster.drop_watches = 1
    assert trainjobs(cluster.url).run("pretrain-1", ["pretrain"])["status"]["conditions"]
    assert cluster.calls.count(("POST", JOBS)) == 3


def test_a_job_deleted_by_somebody_else_is_a_failure(cluster: Cluster) -> None:
    cluster.script, cluster.vanish = [[]], True
    with pytest.raises(TrainJobFailed, match="deleted by somebody else"):
        trainjobs(cluster.url).run("pretrain-1", ["pretrain"])


def test_refusals_are_one_message(cluster: Cluster) -> None:
    cluster.refuse = {"POST": [403]}
    with pytest.raises(TrainJobFailed, match=r"403 refused by the test(?s:.*)service account may create"):
        trainjobs(cluster.url).run("pretrain-1", ["pretrain"])
    cluster.refuse = {"POST": [503] * 50}
    with pytest.raises(TrainJobFailed, match=r"did not answer for 0\.3 s while creating"):
        trainjobs(cluster.url, patience_s=0.3).run("pretrain-1", ["pretrain"])


def test_a_job_that_nobody_has_looked_at_is_not_called_admitted(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.script = [[], [], [COMPLETE]]
    trainjobs(cluster.url).run("pretrain-1", ["pretrain"])
    assert "admi" not in capsys.readouterr().out


def test_a_server_that_accepts_and_says_nothing_is_asked_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crystalforge.integrations.trainjob.jobs.REQUEST_S", (0.5, 0.5))
    monkeypatch.setattr("crystalforge.integrations.trainjob.jobs.TELL_S", 0.3)
    cluster.silent = {"POST": 1, "DELETE": 1}
    began = time.monotonic()
    assert trainjobs(cluster.url).run("pretrain-1", ["pretrain"])["status"]["conditions"]
    assert cluster.calls.count(("POST", JOBS)) == 2
    said = capsys.readouterr().err
    assert "no answer from the API server for" in said
    assert "could not be deleted" in said, "and the job's success is not lost over it"

    cluster.silent = {"POST": 1000}
    with pytest.raises(TrainJobFailed, match=r"did not answer for 1 s while creating"):
        trainjobs(cluster.url, patience_s=1.0).run("pretrain-2", ["pretrain"])
    cluster.silent, cluster.drop_watches = {"GET": 1}, 1  # the question after a watch that told nothing
    assert trainjobs(cluster.url).run("pretrain-3", ["pretrain"])["status"]["conditions"]
    assert time.monotonic() - began < 30


def test_told_to_end_it_ends_though_nobody_answers(cluster: Cluster) -> None:
    cluster.silent = {"POST": 1000, "DELETE": 1000}
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, cluster.url], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not cluster.calls:
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)
    told = time.monotonic()
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - told < 20, "before the kubelet's patience, 30 s, is at its end"
    assert process.returncode == 143
    assert "training job pretrain-1 could not be deleted" in errors


def test_an_api_server_that_is_not_there_is_waited_for_and_named() -> None:
    launcher = TrainJobs(
        TrainJobConfig(namespace="forge", patience_s=0.2),
        api=client.ApiClient(client.Configuration(host="http://127.0.0.1:9")),
    )
    with pytest.raises(TrainJobFailed, match=r"did not answer for 0\.2 s"):
        launcher.run("pretrain-1", ["pretrain"])


def test_our_running_job_is_adopted_another_is_not_and_a_finished_one_is_replaced(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = trainjobs(cluster.url)
    cluster.jobs["pretrain-1"] = manifest("pretrain-1", ["pretrain"], launcher.config, "forge")
    launcher.run("pretrain-1", ["pretrain"])
    assert "adopted" in capsys.readouterr().out
    cluster.jobs["pretrain-1"] = manifest("pretrain-1", ["pretrain", "--other"], launcher.config, "forge")
    with pytest.raises(TrainJobFailed, match="another specification"):
        launcher.run("pretrain-1", ["pretrain"])
    assert "pretrain-1" in cluster.jobs, "somebody else's job is left alone"
    cluster.jobs["pretrain-1"]["status"] = {"conditions": [FAILED]}
    launcher.run("pretrain-1", ["pretrain"])


LAUNCH = """
import sys
from kubernetes import client
from crystalforge.integrations.trainjob.jobs import TrainJobs
from crystalforge.integrations.trainjob.manifest import TrainJobConfig
settings = client.Configuration(host=sys.argv[1])
settings.retries = 0
api = client.ApiClient(settings)
TrainJobs(TrainJobConfig(namespace="forge"), api=api).run("pretrain-1", ["pretrain"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_cancelling_deletes_the_job(cluster: Cluster, number: int, code: int) -> None:
    cluster.script = [[]]  # runs for ever
    # A shell makes what it runs in the background deaf to SIGINT, and children inherit that.
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, cluster.url],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(call == ("GET", JOBS) for call in cluster.calls):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert "training job pretrain-1 deleted" in errors
    assert process.returncode == code
    assert not cluster.jobs


def test_a_pipeline_step_hands_its_stage_to_a_job_and_takes_the_result(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "current-context": "c",
            }
        )
    )
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    handed_over = tmp_path / "artifact"
    handed_over.mkdir()
    (handed_over / "stage.json").write_text(json.dumps({"content": "d" * 64}))
    (handed_over / "store").write_text("tokens")
    seen: list[list[str]] = []

    def work(arguments: list[str]) -> None:
        """What torchrun would do: the stage reads its file of parameters and writes its record."""
        seen.append(arguments)
        value = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        assert load(Path(value["--config"])).pretrain.epochs == 3
        assert (Path(value["--data"]) / "store").read_text() == "tokens"
        out = Path(value["--out"])
        out.mkdir()
        (out / "model").write_text("weights")
        (out / "checkpoint").write_text("state")
        (out / "stage.json").write_text(json.dumps({"content": "c" * 64, "metrics": {"nll": 1.5}}))

    cluster.on_create = work
    metadata: dict[str, Any] = {}
    workspace = tmp_path / "workspace"
    record = execute(
        "pretrain",
        str(workspace),
        sections={"seed": "4", "pretrain": '{"epochs": 3}'},
        inputs={"data": str(handed_over)},
        outputs=str(tmp_path / "model"),
        metadata=[metadata],
        trainjob=TrainJobConfig(namespace="forge", nodes=2).model_dump_json(),
    )
    assert record["content"] == metadata["content"] == "c" * 64
    assert metadata["nll"] == 1.5
    assert seen[0][0] == "pretrain"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model", "stage.json"]

    cluster.on_create, cluster.script = lambda arguments: None, [[FAILED]]
    cluster.pods, cluster.log["node-0-0"] = [pod("node-0-0", 0, "Failed", 1)], ["error: no such file"]
    with pytest.raises(SystemExit) as ended:
        execute(
            "pretrain",
            str(workspace),
            sections={"seed": "5"},
            inputs={"data": str(handed_over)},
            outputs=str(tmp_path / "other"),
            trainjob=TrainJobConfig(namespace="forge").model_dump_json(),
        )
    assert ended.value.code == 2
    assert "error: no such file" in json.loads((workspace / "error.json").read_text())["error"]


def test_names_are_valid_and_stable() -> None:
    assert job_name("train_predictor", "0123456789abcdef") == "train-predictor-0123456789ab"


def test_no_credentials_are_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="no credentials"):
        TrainJobs(TrainJobConfig())
