"""What a pipeline's steps ask of a Kubernetes cluster: resources, nodes, volumes, secrets, retries.

A `ClusterConfig` is compiled into the workflow (`crystalforge submit --cluster cluster.yaml`); local runs have none.
Every key has a default that fits manifests/base.
"""

from __future__ import annotations

from typing import Literal

from kfp import dsl, kubernetes
from pydantic import BaseModel, ConfigDict, Field

from crystalforge.data.ingest import SHARDS_VARIABLE
from crystalforge.integrations.trainjob.manifest import TrainJobConfig

Role = Literal["small", "learner"]

SHARED_MEMORY = "/dev/shm"
TEMPORARY = "/tmp"  # the image's root file system is read-only where the cluster's policy makes it so


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Toleration(_Frozen):
    """A taint that a step may meet."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class SecretEnv(_Frozen):
    """Keys of a Secret as environment variables; the values never pass through the pipeline."""

    secret: str = Field(description="name of the Secret in the pipeline's namespace")
    variables: dict[str, str] = Field(min_length=1, description="key in the Secret: environment variable")


class StepResources(_Frozen):
    """What a step's pod gets."""

    cpu: str = Field(default="2", description="limit, and request unless that is given")
    memory: str = Field(default="8Gi", description="limit, and request unless that is given")
    cpu_request: str | None = Field(default=None, description="what a node must have free; none: the limit")
    memory_request: str | None = Field(default=None, description="what a node must have free; none: the limit")
    gpus: int = Field(default=0, ge=0, description="of `accelerator`")
    accelerator: str = Field(default="nvidia.com/gpu", description="resource name")
    shared_memory: str = Field(default="2Gi", description="size of /dev/shm, which counts as memory")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that the node must have")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="taints that the pod tolerates")


class Retry(_Frozen):
    """A step that fails, or whose node does, is started again; it goes on from its last checkpoint."""

    count: int = Field(default=3, ge=0, description="attempts after the first; 0: none")
    pause_s: int = Field(default=30, ge=0, description="before the first of them")
    factor: float = Field(default=2.0, ge=1, description="by which the pause grows each time")
    longest_pause_s: int = Field(default=1800, ge=1, description="of any attempt")


class ClusterConfig(_Frozen):
    """How pipeline steps run on a cluster.

    >>> ClusterConfig(learner=StepResources(gpus=1)).learner.gpus
    1
    """

    namespace: str = Field(default="crystalforge", description="where the manifests put everything")
    service_account: str = Field(default="pipeline-step", description="of the steps' pods")
    workspace_claim: str = Field(default="workspace", description="PersistentVolumeClaim, ReadWriteMany")
    workspace_path: str = Field(default="/workspace", description="where steps see it")
    parameters: str | None = Field(default=None, description="ConfigMap mounted at /etc/crystalforge; none: none")
    ingest_parts: int = Field(default=4, ge=1, description="pods that tokenise side by side")
    small: StepResources = Field(default_factory=StepResources, description="steps that hand over and compare")
    learner: StepResources = Field(
        default_factory=lambda: StepResources(cpu="8", memory="32Gi", shared_memory="8Gi"),
        description="steps that train and sample",
    )
    labels: dict[str, str] = Field(
        default_factory=lambda: {"crystalforge.dev/role": "learner"}, description="of every pod; policies select them"
    )
    secrets: tuple[SecretEnv, ...] = Field(
        default=(
            SecretEnv(
                secret="mlflow-account",
                variables={"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"},
            ),
        ),
        description="credentials that steps need: by default the registry's",
    )
    run_as: int | None = Field(default=10001, description="user and group id of the containers; none: the image's")
    retry: Retry = Field(default_factory=Retry)
    trainjob: TrainJobConfig | None = Field(
        default=None, description="pre-training and fine-tuning on many GPUs: as a TrainJob of this size"
    )


def on_cluster(
    task: dsl.PipelineTask, cluster: ClusterConfig | None, *, role: Role = "small", launches: bool = False
) -> dsl.PipelineTask:
    """Give a task its place on the cluster; returns it unchanged where there is none.

    launches: the step may start a TrainJob; where one is configured, the step itself only watches and is small.
    """
    if cluster is None:
        return task
    watches = launches and cluster.trainjob is not None
    resources = cluster.small if watches else getattr(cluster, role)
    task.set_cpu_request(resources.cpu_request or resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory_request or resources.memory).set_memory_limit(resources.memory)
    if resources.gpus:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.gpus)
    if resources.node_selector:
        for key, value in sorted(resources.node_selector.items()):
            kubernetes.add_node_selector(task, key, value)
    for toleration in resources.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())
    kubernetes.empty_dir_mount(task, "shm", SHARED_MEMORY, medium="Memory", size_limit=resources.shared_memory)
    kubernetes.empty_dir_mount(task, "tmp", TEMPORARY)
    kubernetes.mount_pvc(task, cluster.workspace_claim, cluster.workspace_path)
    # Shards are named by their content: every run may use what another has tokenised.
    task.set_env_variable(SHARDS_VARIABLE, f"{cluster.workspace_path}/shards")
    if cluster.parameters is not None:
        kubernetes.use_config_map_as_volume(task, cluster.parameters, mount_path="/etc/crystalforge")
    for entry in cluster.secrets:
        kubernetes.use_secret_as_env(task, entry.secret, dict(entry.variables))
    for key, value in sorted(cluster.labels.items()):
        kubernetes.add_pod_label(task, key, value)
    if cluster.run_as is not None:
        kubernetes.set_security_context(
            task, run_as_user=cluster.run_as, run_as_group=cluster.run_as, run_as_non_root=True
        )
    if cluster.retry.count:
        task.set_retry(
            cluster.retry.count,
            backoff_duration=f"{cluster.retry.pause_s}s",
            backoff_factor=cluster.retry.factor,
            backoff_max_duration=f"{cluster.retry.longest_pause_s}s",
        )
    return task


def trainjob_text(cluster: ClusterConfig | None) -> str:
    """The TrainJob's size as the components take it; empty: train in the step's own pod."""
    return "" if cluster is None or cluster.trainjob is None else cluster.trainjob.model_dump_json()
