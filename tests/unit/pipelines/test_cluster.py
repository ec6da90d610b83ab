"""What a pipeline asks of a cluster, read from the compiled IR; and that a step without a cluster asks for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from crystalforge.common.errors import InputError
from crystalforge.common.settings import read_yaml, validated
from crystalforge.integrations.trainjob.manifest import TrainJobConfig
from pipelines.catalog import PIPELINES
from pipelines.cluster import ClusterConfig, SecretEnv, StepResources, Toleration

CLUSTERS = sorted((Path(__file__).resolve().parents[3] / "pipelines" / "clusters").glob("*.yaml"))

GPU = ClusterConfig(
    learner=StepResources(
        cpu="16",
        memory="64Gi",
        gpus=1,
        shared_memory="16Gi",
        node_selector={"nvidia.com/gpu.product": "A100"},
        tolerations=(Toleration(key="nvidia.com/gpu"),),
    ),
    secrets=(SecretEnv(secret="reward-token", variables={"token": "REWARD_TOKEN"}),),
)


def compiled(name: str, cluster: ClusterConfig | None, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's IR and, where there is one, its Kubernetes configuration by step."""
    compiler.Compiler().compile(PIPELINES[name](cluster), str(path))
    documents = list(yaml.safe_load_all(path.read_text()))
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if len(documents) > 1 else {}
    return documents[0], platform


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of the IR, however deep, by the step that it runs."""
    parts = [spec["root"], *spec["components"].values()]
    found = [task for part in parts for task in part.get("dag", {}).get("tasks", {}).values()]
    return {task["componentRef"]["name"].removeprefix("comp-"): task for task in found}


def test_a_learner_gets_its_place(tmp_path: Path) -> None:
    spec, platform = compiled("discovery", GPU, tmp_path / "p.yaml")
    container = spec["deploymentSpec"]["executors"]["exec-finetune"]["container"]["resources"]
    assert container["resourceCpuLimit"] == container["resourceCpuRequest"] == "16"
    assert container["resourceMemoryLimit"] == "64Gi"
    accelerator = container["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    mine = platform["exec-finetune"]
    assert mine["nodeSelector"]["labels"] == {"nvidia.com/gpu.product": "A100"}
    assert mine["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    shm = next(mount for mount in mine["emptyDirMounts"] if mount["mountPath"] == "/dev/shm")
    assert (shm["medium"], shm["sizeLimit"]) == ("Memory", "16Gi")
    secret = mine["secretAsEnv"][0]
    assert secret["secretName"] == "reward-token"
    assert secret["keyToEnv"] == [{"secretKey": "token", "envVar": "REWARD_TOKEN"}]
    small = platform["exec-register"]
    assert "nodeSelector" not in small
    assert "accelerator" not in spec["deploymentSpec"]["executors"]["exec-register"]["container"]["resources"]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_has_limits_volume_labels_retries_and_no_root(name: str, tmp_path: Path) -> None:
    spec, platform = compiled(name, ClusterConfig(), tmp_path / "p.yaml")
    executors = spec["deploymentSpec"]["executors"]
    assert platform.keys() == executors.keys()
    for step, executor in executors.items():
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= executor["container"]["resources"].keys(), step
        place = platform[step]
        assert place["pvcMount"][0]["mountPath"] == "/workspace"
        assert place["podMetadata"]["labels"]["crystalforge.dev/role"] == "learner"
        assert place["securityContext"]["runAsNonRoot"] is True
    steps = {step: task for step, task in tasks(spec).items() if f"exec-{step}" in executors}
    for step, task in steps.items():
        policy = task["retryPolicy"]
        assert (policy["maxRetryCount"], policy["backoffDuration"], policy["backoffFactor"]) == (3, "30s", 2.0), step


def test_training_jobs_are_launched_by_small_steps(tmp_path: Path) -> None:
    cluster = GPU.model_copy(update={"trainjob": TrainJobConfig(nodes=4)})
    spec, _ = compiled("discovery", cluster, tmp_path / "p.yaml")
    for step in ("pretrain", "finetune"):
        assert "accelerator" not in spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]["resources"]
        given = tasks(spec)[step]["inputs"]["parameters"]["trainjob_config"]["runtimeValue"]["constant"]
        assert TrainJobConfig.model_validate_json(given).nodes == 4


def test_every_label_of_ours_on_a_step_is_one_that_a_network_policy_selects(tmp_path: Path) -> None:
    cluster = GPU.model_copy(update={"trainjob": TrainJobConfig(nodes=4)})
    _, platform = compiled("discovery", cluster, tmp_path / "p.yaml")
    labels = {pair for step in platform.values() for pair in step["podMetadata"]["labels"].items()}
    policies = yaml.safe_load_all((CLUSTERS[0].parents[2] / "manifests/base/network-policies.yaml").read_text())
    selected = {pair for policy in policies for pair in policy["spec"]["podSelector"].get("matchLabels", {}).items()}
    assert labels
    assert labels <= selected, "a label that opens nothing is a promise that nobody keeps"


@pytest.mark.parametrize("name", PIPELINES)
def test_logs_are_archived_however_a_pipeline_ends(name: str, tmp_path: Path) -> None:
    spec, platform = compiled(name, None, tmp_path / "p.yaml")
    assert not platform
    last = tasks(spec)["archive"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert not last.get("cachingOptions", {}).get("enableCache"), "an archive of another run's logs is of no use"


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_the_clusters_that_ship_are_valid(path: Path, tmp_path: Path) -> None:
    compiled("discovery", validated(ClusterConfig, read_yaml(path), source=path), tmp_path / "p.yaml")


def test_a_wrong_key_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'shared_memory'"):
        validated(ClusterConfig, {"learner": {"sharedmemory": "1Gi"}}, source="cluster.yaml")
