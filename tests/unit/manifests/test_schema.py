"""Every object that is built has the shape that its API expects, and no field that the API does not know.

Built-in kinds: the published schemas of Kubernetes 1.32 and the newest that the package `kubernetes-validate` carries,
and the typed client. Trainer: the typed models of `kubeflow_trainer_api`. The kinds of other projects have no package
of types that fits this environment: their fields that are used here are written down below.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Objects = list[dict[str, Any]]
BUILDS = ["local", "a100", "kserve"]


class Strict(BaseModel):
    """A field that is not listed is an error."""

    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Selector(Strict):
    matchLabels: dict[str, str]  # the API's own spelling, here and below


class Endpoint(Strict):
    port: str
    path: str = Field(pattern="^/")
    interval: str = Field(pattern=r"^\d+(ms|s|m)$")


class PodMonitorSpec(Strict):
    selector: Selector
    podMetricsEndpoints: list[Endpoint] = Field(min_length=1)


class PodMonitor(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class Alert(Strict):
    alert: str = Field(pattern="^[A-Z][A-Za-z]+$")
    expr: str
    for_: str = Field(alias="for", pattern=r"^\d+(s|m|h)$")
    labels: dict[str, str]
    annotations: dict[str, str]


class AlertGroup(Strict):
    name: str
    rules: list[Alert] = Field(min_length=1)


class AlertGroups(Strict):
    groups: list[AlertGroup] = Field(min_length=1)


class PrometheusRule(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: AlertGroups


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    value: str | None = None


class FlavorSpec(Strict):
    nodeLabels: dict[str, str] = {}
    tolerations: list[Toleration] = []


class ResourceFlavor(Strict):
    apiVersion: Literal["kueue.x-k8s.io/v1beta2"]
    kind: Literal["ResourceFlavor"]
    metadata: Metadata
    spec: FlavorSpec | None = None


class Quota(Strict):
    name: str
    nominalQuota: str = Field(pattern=r"^\d+(m|[KMGT]i)?$")


class FlavorQuotas(Strict):
    name: str
    resources: list[Quota]


class ResourceGroup(Strict):
    coveredResources: list[str]
    flavors: list[FlavorQuotas]


class Preemption(Strict):
    withinClusterQueue: Literal["Never", "LowerPriority", "LowerOrNewerEqualPriority"]


class ClusterQueueSpec(Strict):
    namespaceSelector: Selector
    queueingStrategy: Literal["StrictFIFO", "BestEffortFIFO"]
    preemption: Preemption
    resourceGroups: list[ResourceGroup]


class ClusterQueue(Strict):
    apiVersion: Literal["kueue.x-k8s.io/v1beta2"]
    kind: Literal["ClusterQueue"]
    metadata: Metadata
    spec: ClusterQueueSpec


class LocalQueueSpec(Strict):
    clusterQueue: str


class LocalQueue(Strict):
    apiVersion: Literal["kueue.x-k8s.io/v1beta2"]
    kind: Literal["LocalQueue"]
    metadata: Metadata
    spec: LocalQueueSpec


class Predictor(BaseModel):
    """KServe's own fields; the rest is a pod's and is checked as one."""

    model_config = ConfigDict(extra="allow")
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=1)
    scaleMetric: Literal["cpu", "memory", "concurrency", "rps"]
    scaleTarget: int
    labels: dict[str, str]


class InferenceServiceSpec(Strict):
    predictor: Predictor


class InferenceService(Strict):
    apiVersion: Literal["serving.kserve.io/v1beta1"]
    kind: Literal["InferenceService"]
    metadata: Metadata
    spec: InferenceServiceSpec


OTHERS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (PodMonitor, PrometheusRule, ResourceFlavor, ClusterQueue, LocalQueue, InferenceService)
}
TRAINER = {"TrainingRuntime": "TrainerV1alpha1TrainingRuntime", "TrainJob": "TrainerV1alpha1TrainJob"}
# The typed client's names, and what the pods in custom resources are checked as.
TYPED = {"HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler", "Namespace": "V1Namespace"}


def builtin(objects: Objects) -> Iterator[dict[str, Any]]:
    """Objects of built-in kinds; the pods inside custom resources as pods of their own."""
    for item in objects:
        if item["kind"] == "InferenceService":
            own = Predictor.model_fields.keys()
            pod = {key: value for key, value in item["spec"]["predictor"].items() if key not in own}
            yield _pod(item, pod)
        elif item["kind"] == "TrainingRuntime":
            for job in item["spec"]["template"]["spec"]["replicatedJobs"]:
                yield _pod(item, job["template"]["spec"]["template"]["spec"])
        elif item["kind"] not in OTHERS:
            yield item


def distinct(builds: dict[str, Objects]) -> list[dict[str, Any]]:
    """The built-in objects of all builds, each once."""
    items = {json.dumps(item, sort_keys=True): item for objects in builds.values() for item in builtin(objects)}
    assert len(items) > max(map(len, builds.values()))
    return list(items.values())


def _pod(owner: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": owner["metadata"]["name"]}, "spec": spec}


def check_trainer(item: dict[str, Any]) -> None:
    """Through the typed model and back: the models drop what they do not know."""
    import kubeflow_trainer_api.models as models

    typed = getattr(models, TRAINER[item["kind"]]).from_dict(copy.deepcopy(item))
    assert typed is not None
    assert typed.to_dict() == item


def check_typed(item: dict[str, Any]) -> None:
    """Through the typed client and back, for the same reason."""
    from kubernetes.client import ApiClient

    client = ApiClient()
    name = TYPED.get(item["kind"], "V1" + item["kind"])
    answer = SimpleNamespace(data=json.dumps(item))  # as if an API server had sent it
    back = client.sanitize_for_serialization(client.deserialize(answer, name))
    assert back == item


@pytest.mark.parametrize("build", BUILDS)
def test_objects_of_other_projects(builds: dict[str, Objects], build: str) -> None:
    kinds = set()
    for item in builds[build]:
        if item["kind"] in TRAINER:
            check_trainer(item)
        elif item["kind"] in OTHERS:
            OTHERS[item["kind"]].model_validate(item)
        kinds.add(item["kind"])
    expected = {"local": set(), "kserve": {"InferenceService"}, "a100": set(OTHERS) - {"InferenceService"}}
    assert kinds & set(OTHERS) == expected[build]
    assert "TrainingRuntime" in kinds


def test_builtin_objects_against_the_typed_client(builds: dict[str, Objects]) -> None:
    for item in distinct(builds):
        check_typed(item)


def test_builtin_objects_against_the_published_schemas(builds: dict[str, Objects]) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    for version in ("1.32", schemas.latest_version()):
        for item in distinct(builds):
            schemas.validate(item, version, strict=True)


def test_the_example_job_fits_the_runtime(builds: dict[str, Objects], example: dict[str, Any]) -> None:
    check_trainer({**example, "metadata": dict(example["metadata"])})
    runtime = next(item for item in builds["a100"] if item["kind"] == "TrainingRuntime")
    assert example["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert example["metadata"]["namespace"] == runtime["metadata"]["namespace"]
    queues = {item["metadata"]["name"] for item in builds["a100"] if item["kind"] == "LocalQueue"}
    assert example["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] in queues


def test_a_field_that_the_api_does_not_know_is_seen(builds: dict[str, Objects]) -> None:
    by_kind = {item["kind"]: copy.deepcopy(item) for item in builds["a100"]}
    runtime, monitor, deployment = by_kind["TrainingRuntime"], by_kind["PodMonitor"], by_kind["Deployment"]
    runtime["spec"]["mlPolicy"]["torch"]["numProcPerNode"] = "auto"  # a field of older releases
    with pytest.raises(AssertionError):
        check_trainer(runtime)
    monitor["spec"]["endpoints"] = []
    with pytest.raises(ValidationError):
        PodMonitor.model_validate(monitor)
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(AssertionError):
        check_typed(deployment)
    service = by_kind["Service"]
    service["spec"]["ports"][0]["port"] = "http"
    schemas = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    for bad in (deployment, service):
        with pytest.raises(schemas.ValidationError):
            schemas.validate(bad, "1.32", strict=True)
