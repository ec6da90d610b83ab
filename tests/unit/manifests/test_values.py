"""What the manifests say agrees with the code that reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from crystalforge.common.settings import read_yaml
from crystalforge.config import Config, load
from serving.__main__ import _parser, rewards_of
from serving.launcher import model_name

Objects = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = ROOT / "manifests"
# Triton's, by its documentation of metrics; those of the cluster; ours are read from the worker's code.
KNOWN_METRICS = {
    *(f"nv_inference_{name}" for name in ("request_success", "request_failure", "count", "exec_count")),
    *(f"nv_inference_{name}" for name in ("pending_request_count", "queue_duration_us", "compute_infer_duration_us")),
    *("kube_pod_status_ready", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"),
}


@pytest.fixture
def config() -> Config:
    return load(MANIFESTS / "base" / "params.yaml")


def _one(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    return next(item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name)


def test_learners_and_service_judge_by_the_same_reward(config: Config) -> None:
    served = rewards_of(read_yaml(MANIFESTS / "base" / "reward.yaml"))
    assert served == {model_name(config.reward): config.reward}


def test_learners_find_the_service_and_the_registry(config: Config, builds: dict[str, Objects]) -> None:
    rewards, mlflow = _one(builds["local"], "Service", "rewards"), _one(builds["local"], "Service", "mlflow")
    assert config.service.url == f"rewards.crystalforge.svc.cluster.local:{rewards['spec']['ports'][0]['port']}"
    assert config.tracking.uri == f"http://mlflow.crystalforge.svc.cluster.local:{mlflow['spec']['ports'][0]['port']}"
    assert rewards["spec"]["clusterIP"] == "None", "headless, so that clients see every replica"


def test_the_tracking_server_answers_to_its_own_name(config: Config, builds: dict[str, Objects]) -> None:
    container = _one(builds["local"], "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    # Names without a wildcard are compared with the Host header as a whole, port included.
    allowed = variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert not any("*" in name for name in allowed)
    assert config.tracking.uri is not None
    assert config.tracking.uri.removeprefix("http://") in allowed
    assert "localhost:5000" in allowed, "a forwarded port"


@pytest.mark.parametrize("build", ["local", "a100", "kserve"])
def test_the_launcher_understands_the_services_arguments(builds: dict[str, Objects], build: str) -> None:
    if build == "kserve":
        pod = _one(builds[build], "InferenceService", "rewards")["spec"]["predictor"]
    else:
        pod = _one(builds[build], "Deployment", "rewards")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    options = _parser().parse_args(container["args"])  # exits on what it does not know
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    assert {"grpc": options.grpc_port, "metrics": options.metrics_port, "health": options.health_port} == ports
    assert options.kind == ("KIND_GPU" if build == "a100" else "KIND_CPU")
    # A worker on a processor computes on one core.
    assert build == "a100" or options.instances <= int(container["resources"]["limits"]["cpu"])
    mounts = {entry["mountPath"]: entry["name"] for entry in container["volumeMounts"]}
    volume = next(entry for entry in pod["volumes"] if entry["name"] == mounts[str(options.config.parent)])
    content = _one(builds[build], "ConfigMap", volume["configMap"]["name"])["data"]
    assert rewards_of(yaml.safe_load(content[options.config.name]))
    # Longer than the launcher itself allows for its start, else the kubelet kills what is still loading.
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= options.startup_s
    assert str(options.run_dir).startswith("/tmp/")
    assert "/tmp" in mounts


def test_the_training_job_runs_a_verb_of_the_command_line(example: dict[str, Any], builds: dict[str, Objects]) -> None:
    from typer.testing import CliRunner

    from crystalforge.cli import app

    verb, *options = example["spec"]["trainer"]["args"]
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert all(option.split("=")[0] in shown for option in options)
    runtime = _one(builds["a100"], "TrainingRuntime", "crystalforge-torchrun")
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mounted = [entry["mountPath"] for entry in pod["containers"][0]["volumeMounts"]]
    paths = [option.split("=")[1] for option in options]
    assert all(any(path.startswith(f"{mount}/") for mount in mounted) for path in paths)


def test_whole_nodes_are_asked_for(builds: dict[str, Objects]) -> None:
    runtime = _one(builds["a100"], "TrainingRuntime", "crystalforge-torchrun")
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert runtime["spec"]["mlPolicy"]["numNodes"] == 4
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["nodeSelector"]
    assert pod["tolerations"]
    queue = _one(builds["a100"], "ClusterQueue", "crystalforge")["spec"]["resourceGroups"][0]
    quotas = {entry["name"]: entry["nominalQuota"] for entry in queue["flavors"][0]["resources"]}
    assert set(quotas) == set(queue["coveredResources"])
    assert set(pod["containers"][0]["resources"]["requests"]) <= set(quotas), "Kueue refuses what has no quota"
    assert int(quotas["nvidia.com/gpu"]) >= 4 * 8


def test_nobody_but_the_autoscaler_sets_the_number_of_replicas(builds: dict[str, Objects]) -> None:
    scaler = _one(builds["a100"], "HorizontalPodAutoscaler", "rewards")
    assert "replicas" not in _one(builds["a100"], "Deployment", "rewards")["spec"]
    metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    rules = yaml.safe_load((MANIFESTS / "components" / "hpa" / "adapter-rules.yaml").read_text())["rules"]["custom"]
    assert metric in {rule["name"]["as"] for rule in rules}
    assert metric in KNOWN_METRICS


def test_dashboard_and_alerts_ask_for_metrics_that_exist(builds: dict[str, Objects]) -> None:
    worker = (ROOT / "serving" / "model_repository" / "model.py").read_text()
    ours = set(re.findall(r'name="(crystalforge_\w+)"', worker))
    board = json.loads(_one(builds["a100"], "ConfigMap", "grafana-dashboard-crystalforge")["data"]["dashboard.json"])
    groups = _one(builds["a100"], "PrometheusRule", "rewards")["spec"]["groups"]
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for group in groups for rule in group["rules"]]
    assert len(expressions) > 10
    for expression in expressions:
        named = set(re.findall(r"\b([a-z_]+)\{", expression))
        assert named, expression
        assert named <= KNOWN_METRICS | ours, expression
        assert expression.count("(") == expression.count(")"), expression
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


# Resident memory of the containers with the local overlay's settings, in MiB: MLflow with two workers and accounts
# (825, on this project's machine), Triton with one CHGNet worker (750, on a cluster of one node).
MEASURED = {"mlflow": 825, "rewards": 750}


@pytest.mark.parametrize("name", MEASURED)
def test_memory_is_requested_as_measured(builds: dict[str, Objects], name: str) -> None:
    pod = _one(builds["local"], "Deployment", name)["spec"]["template"]["spec"]
    requested = _mebibytes(pod["containers"][0]["resources"]["requests"]["memory"])
    assert MEASURED[name] <= requested <= 1.5 * MEASURED[name]


def test_a_step_fits_two_cores_beside_the_services(builds: dict[str, Objects]) -> None:
    from pipelines.cluster import ClusterConfig

    cluster = ClusterConfig.model_validate(read_yaml(ROOT / "pipelines" / "clusters" / "local.yaml"))
    asked = [
        container["resources"]["requests"]
        for item in builds["local"]
        if item["kind"] in ("Deployment", "StatefulSet")
        for container in item["spec"]["template"]["spec"]["containers"]
    ]
    steps = [cluster.learner, cluster.small]  # a stage, and the engine's own or the archive beside it
    cores = sum(_cores(entry["cpu"]) for entry in asked) + sum(_cores(step.cpu_request or step.cpu) for step in steps)
    memory = sum(_mebibytes(entry["memory"]) for entry in asked)
    memory += sum(_mebibytes(step.memory_request or step.memory) for step in steps)
    assert cores <= 1.9, "a node of two cores keeps a little for itself"
    assert memory <= 7 * 1024


def test_the_engines_store_takes_the_namespace_for_a_profile(builds: dict[str, Objects]) -> None:
    space = _one(builds["a100"], "Namespace", "crystalforge")
    assert space["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kubeflow-profile"


def _cores(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def _mebibytes(text: str) -> float:
    return float(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    return tmp_path / "manifests"


def test_pinning_fills_in_a_digest(copied: Path, kubectl: None) -> None:
    digest = "sha256:" + "4c1b" * 16
    pin = f"crystalforge/rewards=registry.example.com:8443/x/rewards@{digest}"
    listed = subprocess.run([copied / "pin.sh", "local", pin], check=True, capture_output=True, text=True)
    zeros = "sha256:" + "0" * 64
    assert listed.stdout.splitlines() == [
        f"localhost:5001/crystalforge/train@{zeros}",
        f"registry.example.com:8443/x/rewards@{digest}",
        f"docker.io/library/postgres@{zeros}",
        f"ghcr.io/versity/versitygw@{zeros}",
    ], "images and nothing else"
    built = subprocess.run(
        ["kubectl", "kustomize", copied / "overlays/local"], capture_output=True, text=True, check=True
    )
    images = re.findall(r"image: (\S+)", built.stdout)
    assert images.count(f"registry.example.com:8443/x/rewards@{digest}") == 1
    assert sum(digest in image for image in images) == 1, "the other images keep theirs"


@pytest.mark.parametrize(
    "pin",
    [
        "crystalforge/rewards=registry/rewards:latest",
        "crystalforge/unknown=r/x@sha256:" + "0" * 64,
        "crystalforge/train",
    ],
)
def test_pinning_refuses_anything_but_a_digest(copied: Path, pin: str) -> None:
    file = copied / "overlays" / "local" / "images" / "kustomization.yaml"
    before = file.read_text()
    result = subprocess.run([copied / "pin.sh", "local", pin], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert file.read_text() == before


@pytest.mark.parametrize("name", ["local", "a100"])
def test_pipeline_steps_find_what_they_are_told_to_use(builds: dict[str, Objects], name: str) -> None:
    from pipelines.cluster import ClusterConfig

    cluster = ClusterConfig.model_validate(read_yaml(ROOT / "pipelines" / "clusters" / f"{name}.yaml"))
    # An engine that is installed by itself keeps its steps in its own namespace, whatever a run asks for.
    space = "kubeflow" if name == "local" else cluster.namespace
    there = {(o["kind"], o["metadata"]["name"]) for o in builds[name] if o["metadata"].get("namespace") == space}
    assert ("ServiceAccount", cluster.service_account) in there
    assert ("PersistentVolumeClaim", cluster.workspace_claim) in there
    if cluster.trainjob is not None:
        assert ("TrainingRuntime", cluster.trainjob.runtime) in there
        assert cluster.trainjob.queue is None or ("LocalQueue", cluster.trainjob.queue) in there


def test_the_guide_names_files_and_options_that_exist() -> None:
    from typer.testing import CliRunner

    from crystalforge.cli import app

    guide = (ROOT / "docs" / "how-to" / "cluster.md").read_text()
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", guide, re.DOTALL))
    paths = set(re.findall(r"(?<![\w/])((?:manifests|images|pipelines)/[\w./-]+)", commands))
    assert len(paths) >= 8
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert missing == set()
    call = re.search(r"crystalforge submit .*?(?<!\\)\n", commands, re.DOTALL)
    assert call is not None
    shown = CliRunner().invoke(app, ["submit", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert set(re.findall(r" (--[a-z-]+)", call[0])) <= set(re.findall(r"(--[a-z-]+)", shown))
    settings = dict(re.findall(r"--set ([\w.]+)=(\S+)", call[0]))
    ours = load(MANIFESTS / "base" / "params.yaml")
    assert settings == {
        "service.mode": ours.service.mode,
        "service.url": ours.service.url,
        "tracking.uri": ours.tracking.uri,
    }
    load(ROOT / "params.yaml", [f"{key}={value}" for key, value in settings.items()])
