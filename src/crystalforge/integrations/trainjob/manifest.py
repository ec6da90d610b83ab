"""A stage on many GPUs as a TrainJob of Kubeflow Trainer: what is asked of the API, and what its answer means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from crystalforge.common.files import sha256_json

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
SPEC_ANNOTATION = "crystalforge.dev/spec"  # hash of what was asked for, to recognise our own job
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


class TrainJobConfig(BaseModel):
    """Size and place of a TrainJob."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: str = Field(default="crystalforge-torchrun", description="TrainingRuntime in the namespace")
    namespace: str | None = Field(default=None, description="none: the one that this pod runs in")
    nodes: int = Field(default=1, ge=1, description="pods")
    processes_per_node: int | None = Field(default=None, ge=1, description="none: one for each GPU, or CPU core")
    gpus_per_node: int = Field(default=8, ge=0, description="nvidia.com/gpu of each pod")
    cpu: str = Field(default="32", description="of each pod")
    memory: str = Field(default="256Gi", description="of each pod")
    image: str | None = Field(default=None, description="none: the runtime's")
    env: dict[str, str] = Field(default_factory=dict, description="environment; no secrets, they belong to the runtime")
    queue: str | None = Field(default=None, description="Kueue's local queue that admits the job")
    deadline_s: int | None = Field(default=None, ge=1, description="the job is ended after this time")
    patience_s: float = Field(default=300.0, ge=0, description="how long an API server that is away is waited for")


def manifest(name: str, arguments: Sequence[str], config: TrainJobConfig, namespace: str) -> dict[str, Any]:
    """The TrainJob that runs `crystalforge <arguments>` under torchrun on every node, as the API takes it.

    >>> job = manifest("pretrain-1", ["pretrain", "--out", "w"], TrainJobConfig(nodes=2), "crystalforge")
    >>> job["spec"]["trainer"]["numNodes"], job["spec"]["runtimeRef"]["name"]
    (2, 'crystalforge-torchrun')
    """
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpus_per_node:
        resources["nvidia.com/gpu"] = str(config.gpus_per_node)
    trainer: dict[str, Any] = {
        "numNodes": config.nodes,
        "args": list(arguments),
        "resourcesPerNode": {"requests": resources, "limits": resources},
    }
    if config.processes_per_node is not None:
        trainer["numProcPerNode"] = config.processes_per_node
    if config.image is not None:
        trainer["image"] = config.image
    if config.env:
        trainer["env"] = [{"name": key, "value": value} for key, value in sorted(config.env.items())]
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": config.runtime},
        "trainer": trainer,
    }
    if config.deadline_s is not None:
        spec["activeDeadlineSeconds"] = config.deadline_s
    labels = {"app.kubernetes.io/part-of": "crystalforge"} | ({QUEUE_LABEL: config.queue} if config.queue else {})
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {SPEC_ANNOTATION: sha256_json(spec)},
        },
        "spec": spec,
    }


def job_name(stage: str, key: str) -> str:
    """A valid name that is the same for the same work: a step that is started again finds its job.

    >>> job_name("train_predictor", "ab12" * 16)
    'train-predictor-ab12ab12ab12'
    """
    return f"{re.sub(r'[^a-z0-9]+', '-', stage.lower()).strip('-')}-{key[:12]}"


def outcome(job: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """("Complete" or "Failed", its condition) of a job that has ended, (None, {}) of one that has not.

    >>> outcome({"status": {"conditions": [{"type": "Complete", "status": "True"}]}})[0]
    'Complete'
    """
    for kind in ("Failed", "Complete"):
        found = condition(job, kind)
        if found:
            return kind, found
    return None, {}


def condition(job: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The job's condition of this type, where it holds; else an empty mapping."""
    conditions = job.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), {})
