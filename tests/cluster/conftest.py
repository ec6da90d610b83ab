"""A cluster that KUBECONFIG names, and the local overlay on it in a namespace of the test's own: `make test-cluster`.

Needed: kubectl, a cluster that enforces network policies and PodSecurity (kind from 0.24 on), about two free cores and
6 GiB, a default storage class, and the images by an address that its nodes can pull from:

    CRYSTALFORGE_TRAIN_IMAGE, CRYSTALFORGE_REWARDS_IMAGE      built by images/build.sh
    CRYSTALFORGE_POSTGRES_IMAGE, CRYSTALFORGE_STORE_IMAGE     default: the releases that the how-to names

`--kubeflow` also submits a pipeline to CRYSTALFORGE_KFP_ENDPOINT and runs a TrainJob by its real controller. The
namespace is deleted in the end unless `--keep` is given.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
OURS = "crystalforge"  # the namespace that the manifests name
IMAGES = {
    "crystalforge/train": ("CRYSTALFORGE_TRAIN_IMAGE", None),
    "crystalforge/rewards": ("CRYSTALFORGE_REWARDS_IMAGE", None),
    "docker.io/library/postgres": ("CRYSTALFORGE_POSTGRES_IMAGE", "docker.io/library/postgres:17-bookworm"),
    "ghcr.io/versity/versitygw": ("CRYSTALFORGE_STORE_IMAGE", "ghcr.io/versity/versitygw:v1.3.1"),
}
Objects = list[dict[str, Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubeflow", action="store_true", help="Kubeflow Pipelines and Trainer are there: try them too")
    parser.addoption("--keep", action="store_true", help="leave the namespace behind")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One line where there is no cluster, and never somebody's cluster by accident: KUBECONFIG must be set for it."""
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = next(
        (
            why
            for missing, why in (
                (not os.environ.get("KUBECONFIG"), "KUBECONFIG names no cluster"),
                (shutil.which("kubectl") is None, "kubectl is not installed"),
                *((not os.environ.get(name), f"{name} is not set") for name, given in IMAGES.values() if not given),
            )
            if missing
        ),
        None,
    )
    for item in mine:
        item.add_marker(pytest.mark.timeout(3600))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif "kubeflow" in item.keywords and not config.getoption("--kubeflow"):
            item.add_marker(pytest.mark.skip(reason="--kubeflow was not given"))


def built(folder: Path) -> Objects:
    """What kustomize makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def moved(objects: Objects, namespace: str, images: dict[str, str]) -> Objects:
    """The same objects in another namespace and with these images, by name in manifests/base; names of services,
    policies and subjects follow. What belongs to other namespaces (`kubeflow`) is left out."""

    def image(text: str) -> str:
        name = text.split("@")[0]
        return next((address for known, address in images.items() if name.endswith(known)), text)

    def entry(key: str, item: Any) -> Any:
        if item == OURS and key in ("namespace", "kubernetes.io/metadata.name"):
            return namespace
        return image(item) if key == "image" and isinstance(item, str) else move(item)

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: entry(key, item) for key, item in value.items()}
        if isinstance(value, list):
            return [move(item) for item in value]
        if isinstance(value, str):
            return value.replace(f".{OURS}.svc", f".{namespace}.svc").replace(f"mlflow.{OURS}:", f"mlflow.{namespace}:")
        return value

    found = [move(item) for item in objects if item["metadata"].get("namespace", OURS) == OURS]
    for item in found:
        if item["kind"] == "Namespace":
            item["metadata"]["name"] = namespace
        if item["kind"] == "ClusterQueue":  # of the whole cluster: another name than a real one's
            item["metadata"]["name"] = namespace
        if item["kind"] == "LocalQueue":
            item["spec"]["clusterQueue"] = namespace
    return found


class Kube:
    """kubectl, in one namespace."""

    def __init__(self, namespace: str, images: dict[str, str]) -> None:
        self.namespace, self.images = namespace, images

    def __call__(self, *words: str, given: str | None = None, check: bool = True, timeout: float = 900) -> str:
        """Standard output of `kubectl <words>` (and of its errors, where check is off)."""
        command = ["kubectl", "--namespace", self.namespace, *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout if check else done.stdout + done.stderr

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(self("get", kind, name, "-o", "json"))

    def knows(self, kind: str) -> bool:
        """Whether the cluster has this kind (its CRD)."""
        return any(line.split()[-1] == kind for line in self("api-resources").splitlines() if line.strip())

    def apply(self, objects: Objects, *more: str) -> str:
        return self("apply", "--server-side", "--force-conflicts", *more, "-f", "-", given=yaml.safe_dump_all(objects))

    def ready(self, *workloads: str, minutes: int = 10) -> None:
        for workload in workloads:
            self("rollout", "status", workload, f"--timeout={minutes}m", timeout=60 * minutes + 30)

    def run(self, name: str, script: str, *, labels: dict[str, str], minutes: float = 10, **pod: Any) -> str:
        """The log of a pod that runs a shell script in the train image, as the policies want pods; it must succeed."""
        self.start(name, script, labels=labels, **pod)
        state = self.ended(name, minutes=minutes)
        log = self("logs", name, check=False)
        assert state == "Succeeded", f"{name}: {state}\n{log[-3000:]}"
        return log

    def start(self, name: str, script: str, *, labels: dict[str, str], account: str = "trainer", **pod: Any) -> None:
        """Begin such a pod. A learner by its labels, with the registry's account and the workspace."""
        secret = {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}
        container = {
            "name": "main",
            "image": self.images["crystalforge/train"],
            "command": ["sh", "-euc", script],
            "env": [
                {"name": variable, "valueFrom": {"secretKeyRef": {"name": "mlflow-account", "key": key}}}
                for key, variable in secret.items()
            ],
            "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "tmp", "mountPath": "/tmp"},
                {"name": "shm", "mountPath": "/dev/shm"},
                {"name": "parameters", "mountPath": "/etc/crystalforge", "readOnly": True},
                {"name": "workspace", "mountPath": "/workspace"},
            ],
        }
        parameters = next(
            line.split("/")[1] for line in self("get", "configmap", "-o", "name").splitlines() if "/parameters-" in line
        )
        spec = {
            "serviceAccountName": account,
            "automountServiceAccountToken": account != "trainer",
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
                {"name": "parameters", "configMap": {"name": parameters}},
                {"name": "workspace", "persistentVolumeClaim": {"claimName": "workspace"}},
            ],
            **pod,
        }  # fmt: skip
        self("delete", "pod", name, "--ignore-not-found", "--wait=true")
        self.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}])

    def ended(self, name: str, *, minutes: float = 10) -> str:
        """The phase in which a pod ended; fails when it does not end."""
        self.until(f"{name} ends", lambda: self.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"), minutes)
        return self.get("pod", name)["status"]["phase"]

    def until(self, what: str, condition: Callable[[], bool], minutes: float) -> None:
        deadline = time.monotonic() + 60 * minutes
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {minutes} minutes\n" + self(
                "get", "pods,events", check=False
            )
            time.sleep(1.0)


LEARNER = {"crystalforge.dev/role": "learner"}


@pytest.fixture(scope="session")
def learner() -> dict[str, str]:
    """The labels by which the policies know a learner."""
    return dict(LEARNER)


@pytest.fixture(scope="session")
def move() -> Callable[..., Objects]:
    """`moved`, for the tests beside this file."""
    return moved


@pytest.fixture(scope="session")
def overlays() -> dict[str, Objects]:
    """What is built of every overlay."""
    return {folder.name: built(folder) for folder in sorted((MANIFESTS / "overlays").iterdir())}


@pytest.fixture(scope="session")
def kube(pytestconfig: pytest.Config, overlays: dict[str, Objects]) -> Iterator[Kube]:
    """An empty namespace, held to the restricted standard as the manifests' own is."""
    images = {name: os.environ.get(variable) or str(given) for name, (variable, given) in IMAGES.items()}
    namespace = f"crystalforge-test-{secrets.token_hex(3)}"
    client = Kube(namespace, images)
    client.apply([item for item in moved(overlays["local"], namespace, images) if item["kind"] == "Namespace"])
    try:
        yield client
    finally:
        if not pytestconfig.getoption("--keep"):
            client("delete", "namespace", namespace, "--wait=true", check=False)
            client("delete", "clusterqueue,resourceflavor", namespace, "--ignore-not-found", check=False)


@pytest.fixture(scope="session")
def credentials() -> dict[str, dict[str, str]]:
    """What the operator makes, by Secret and key, as docs/how-to/cluster.md says."""
    return {
        "postgres": {"password": secrets.token_hex(24)},
        "object-store": {"access-key": secrets.token_hex(10), "secret-key": secrets.token_hex(24)},
        "mlflow-admin": {"password": secrets.token_hex(24), "secret-key": secrets.token_hex(24)},
        "mlflow-account": {"username": "learner", "password": secrets.token_hex(24)},
    }


@pytest.fixture(scope="session")
def deployed(kube: Kube, overlays: dict[str, Objects], credentials: dict[str, dict[str, str]]) -> Kube:
    """The local overlay with everything ready."""
    kube.apply(
        [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
            for name, values in credentials.items()
        ]
    )
    objects = moved(overlays["local"], kube.namespace, kube.images)
    kube.apply([item for item in objects if item["kind"] != "TrainingRuntime" or kube.knows("TrainingRuntime")])
    kube.ready("statefulset/postgres", "statefulset/object-store", "deployment/mlflow", "deployment/rewards")
    return kube
