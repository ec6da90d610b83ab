"""What every object that reaches a cluster must keep to, as functions that list violations.

Each policy is applied to everything that is built, and then to an object spoiled on purpose: a check that never
objects proves nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Objects = list[dict[str, Any]]
Policy = Callable[[Objects], list[str]]

OURS = "crystalforge"
# Made by the operator before anything else, never kept in git.
SECRETS = {
    "postgres": {"password"},
    "object-store": {"access-key", "secret-key"},
    "mlflow-admin": {"password", "secret-key"},
    "mlflow-account": {"username", "password"},
}
CLUSTER_SCOPED = {"Namespace", "ClusterQueue", "ResourceFlavor"}
PINNED = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Pods:
    """A pod template in some object: where it is, what it says, and whether it is meant to run for ever."""

    where: str
    spec: dict[str, Any]
    labels: dict[str, str]
    namespace: str
    serves: bool

    @property
    def containers(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """Name for messages, container, and whether it is a main one."""
        for kind in ("initContainers", "containers"):
            for container in self.spec.get(kind, []):
                yield f"{self.where}/{container['name']}", container, kind == "containers"


def pods(objects: Objects) -> Iterator[Pods]:
    """Every pod template, also those inside custom resources."""
    for item in objects:
        kind, name, space = item["kind"], item["metadata"]["name"], item["metadata"].get("namespace", "")
        where = f"{kind} {name}"
        if kind in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = item["spec"]["template"]
            yield Pods(where, template["spec"], template["metadata"].get("labels", {}), space, kind != "Job")
        elif kind == "InferenceService":
            predictor = item["spec"]["predictor"]
            yield Pods(where, predictor, predictor.get("labels", {}), space, True)
        elif kind == "TrainingRuntime":
            for job in item["spec"]["template"]["spec"]["replicatedJobs"]:
                template = job["template"]["spec"]["template"]
                yield Pods(where, template["spec"], template["metadata"].get("labels", {}), space, False)
        elif "containers" in str(item.get("spec", {})):
            yield Pods(f"{where}: unknown kind of workload", {}, {}, space, False)


def confined(objects: Objects) -> list[str]:
    """No root, no way to become it, nothing of the node, nothing written to the image."""
    found = []
    for pod in pods(objects):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser") or not context.get("runAsGroup"):
            found.append(f"{pod.where}: may run as root")
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            found.append(f"{pod.where}: system calls are not filtered")
        if any(pod.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            found.append(f"{pod.where}: shares a namespace of the node")
        if any("hostPath" in volume for volume in pod.spec.get("volumes", [])):
            found.append(f"{pod.where}: mounts a folder of the node")
        for where, container, _ in pod.containers:
            own = container.get("securityContext", {})
            if own.get("runAsNonRoot") is False or own.get("runAsUser") == 0 or own.get("privileged"):
                found.append(f"{where}: runs as root")
            if own.get("allowPrivilegeEscalation") is not False:
                found.append(f"{where}: may gain privileges")
            if own.get("capabilities") != {"drop": ["ALL"]}:
                found.append(f"{where}: keeps capabilities")
            if own.get("readOnlyRootFilesystem") is not True:
                found.append(f"{where}: may write to its image")
    return found


def limited(objects: Objects) -> list[str]:
    """Requests and limits of processor and memory everywhere, and sizes on what fills a node's disk or memory."""
    found = []
    for pod in pods(objects):
        for where, container, _ in pod.containers:
            for kind in ("requests", "limits"):
                missing = {"cpu", "memory"} - set(container.get("resources", {}).get(kind, {}))
                found += [f"{where}: no {kind} of {name}" for name in sorted(missing)]
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                found.append(f"{pod.where}: volume {volume['name']} has no size limit")
    return found


def pinned(objects: Objects) -> list[str]:
    """Every image by digest."""
    return [
        f"{where}: image {container['image']} is not pinned by digest"
        for pod in pods(objects)
        for where, container, _ in pod.containers
        if not PINNED.fullmatch(container["image"])
    ]


def probed(objects: Objects) -> list[str]:
    """What serves is probed in all three ways; the reward service by its canary alone."""
    found = []
    for pod in pods(objects):
        for where, container, main in pod.containers:
            if not (main and pod.serves):
                continue
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                if name not in container:
                    found.append(f"{where}: no {name}")
                elif container[name].get("timeoutSeconds", 1) < 5:  # the kubelet's own second is short on a busy node
                    found.append(f"{where}: {name} does not say how long an answer may take, or says less than 5 s")
                elif pod.labels.get("app.kubernetes.io/name") == "rewards":
                    path = "/live" if name == "livenessProbe" else "/ready"
                    if container[name].get("httpGet") != {"path": path, "port": "health"}:
                        found.append(f"{where}: {name} does not ask the launcher for the canary's golden value")
    return found


def secretive(objects: Objects) -> list[str]:
    """No secret's value anywhere; references only to those that the operator makes."""
    found = [
        f"Secret {item['metadata']['name']}: secrets are not kept here" for item in objects if item["kind"] == "Secret"
    ]
    for item in objects:
        for text in _texts(item):
            if re.search(r"://[^/\s:@$]+:(?!\$\()[^/\s@]+@", text) or re.search(
                r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text
            ):
                found.append(f"{item['kind']} {item['metadata']['name']}: holds a credential")
    for pod in pods(objects):
        for where, container, _ in pod.containers:
            named = {entry["name"] for entry in container.get("env", []) if "secretKeyRef" in str(entry)}
            words = " ".join(container.get("command", []) + container.get("args", []))
            if any(f"$({name})" in words for name in named):
                found.append(f"{where}: shows a secret in its arguments, to all who list processes")
            if container.get("envFrom"):
                found.append(f"{where}: takes a whole map for its environment; name the keys")
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference is not None and reference["key"] not in SECRETS.get(reference["name"], set()):
                    found.append(
                        f"{where}: refers to {reference['name']}/{reference['key']}, which nobody is told to make"
                    )
                if reference is None and re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable["name"]):
                    found.append(f"{where}: {variable['name']} is not a reference to a secret")
    return found


def modest(objects: Objects) -> list[str]:
    """Least privilege at the API server."""
    found = []
    for item in objects:
        name = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            found.append(f"{name}: reaches beyond the namespace")
        for rule in item.get("rules", []) if item["kind"] == "Role" else []:
            if "*" in rule["apiGroups"] + rule["resources"] + rule["verbs"]:
                found.append(f"{name}: has a wildcard")
            if "secrets" in rule["resources"] and (not rule.get("resourceNames") or rule["verbs"] != ["get"]):
                found.append(f"{name}: reads more secrets than the one it needs")
            if set(rule["resources"]) & {"pods/exec", "rolebindings", "roles", "serviceaccounts/token"}:
                found.append(f"{name}: may give itself more")
    for pod in pods(objects):
        if pod.spec.get("automountServiceAccountToken") is not False:
            found.append(f"{pod.where}: gets a token for the API server that it does not need")
        if pod.spec.get("serviceAccountName", "default") == "default":
            found.append(f"{pod.where}: has no account of its own")
    return found


def complete(objects: Objects) -> list[str]:
    """Whatever is named exists: ConfigMaps, claims, accounts, services; and nothing strays into another namespace."""
    existing = {(item["kind"], item["metadata"]["name"]) for item in objects}
    found = []
    for item in objects:
        space = item["metadata"].get("namespace")
        expected = None if item["kind"] in CLUSTER_SCOPED else OURS
        # Beside the steps of an engine that is installed by itself: their account and their volume.
        beside = {
            "PersistentVolumeClaim workspace",
            "ServiceAccount pipeline-step",
            "RoleBinding crystalforge-pipeline-step",
        }
        if space != expected and not (space == "kubeflow" and f"{item['kind']} {item['metadata']['name']}" in beside):
            found.append(f"{item['kind']} {item['metadata']['name']}: is in namespace {space}")
    spaces = [item for item in objects if item["kind"] == "Namespace" and item["metadata"]["name"] == OURS]
    if not spaces or spaces[0]["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        found.append(f"Namespace {OURS}: pods are not held to the restricted standard")
    for pod in pods(objects):
        named = [("ServiceAccount", pod.spec.get("serviceAccountName"))]
        for volume in pod.spec.get("volumes", []):
            named.append(("ConfigMap", volume.get("configMap", {}).get("name")))
            named.append(("PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName")))
        for _, container, _ in pod.containers:
            for variable in container.get("env", []):
                named.append(("ConfigMap", variable.get("valueFrom", {}).get("configMapKeyRef", {}).get("name")))
        found += [f"{pod.where}: names {kind} {name}, which does not exist"
                  for kind, name in named if name is not None and (kind, name) not in existing]  # fmt: skip
    return found


def isolated(objects: Objects) -> list[str]:
    """Everything is denied to start with."""
    for item in objects:
        if item["kind"] == "NetworkPolicy" and item["metadata"].get("namespace") == OURS:
            spec = item["spec"]
            if spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
                return []
    return [f"namespace {OURS}: no policy denies all traffic by default"]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


POLICIES: list[Policy] = [confined, limited, pinned, probed, secretive, modest, complete, isolated]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("build", ["local", "a100", "kserve"])
def test_everything_built_keeps_to_the_policies(builds: dict[str, Objects], build: str, policy: Policy) -> None:
    workloads = {pod.where for pod in pods(builds[build])}
    rewards = "InferenceService rewards" if build == "kserve" else "Deployment rewards"
    assert workloads >= {rewards, "Deployment mlflow", "StatefulSet postgres", "TrainingRuntime crystalforge-torchrun"}
    assert policy(builds[build]) == []


Spoil = Callable[[dict[str, Any]], Any]


def _template(item: dict[str, Any]) -> dict[str, Any]:
    return next(pods([item])).spec


def pod(**changes: Any) -> Spoil:
    """Change the pod's own fields; None drops one."""
    return lambda item: _change(_template(item), changes)


def context(**changes: Any) -> Spoil:
    return lambda item: _change(_template(item)["securityContext"], changes)


def main(**changes: Any) -> Spoil:
    """Change the main container's fields."""
    return lambda item: _change(_template(item)["containers"][0], changes)


def own_context(**changes: Any) -> Spoil:
    return lambda item: _change(_template(item)["containers"][0]["securityContext"], changes)


def add(key: str, value: Any) -> Spoil:
    """Append to a list of the main container."""
    return lambda item: _template(item)["containers"][0][key].append(value)


def rule(index: int, **changes: Any) -> Spoil:
    return lambda item: item["rules"][index].update(changes)


def _change(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value


REWARDS, MLFLOW, POSTGRES = ("Deployment", "rewards"), ("Deployment", "mlflow"), ("StatefulSet", "postgres")
STORE, RUNTIME = ("StatefulSet", "object-store"), ("TrainingRuntime", "crystalforge-torchrun")
LAUNCH, DENIAL = ("Role", "launch-training"), ("NetworkPolicy", "default-deny")
NOBODYS = {"secretKeyRef": {"name": "a", "key": "b"}}
CASES: list[tuple[Policy, tuple[str, str], Spoil, str]] = [
    (confined, REWARDS, context(runAsNonRoot=None), "may run as root"),
    (confined, RUNTIME, context(runAsUser=0), "may run as root"),
    (confined, MLFLOW, context(seccompProfile=None), "not filtered"),
    (confined, MLFLOW, pod(hostNetwork=True), "namespace of the node"),
    (confined, MLFLOW, pod(volumes=[{"name": "x", "hostPath": {"path": "/"}}]), "folder of the node"),
    (confined, POSTGRES, own_context(runAsUser=0), "runs as root"),
    (confined, POSTGRES, own_context(privileged=True), "runs as root"),
    (confined, POSTGRES, main(securityContext=None), "may gain privileges"),
    (confined, REWARDS, own_context(capabilities={"add": ["SYS_ADMIN"]}), "keeps capabilities"),
    (confined, REWARDS, own_context(readOnlyRootFilesystem=False), "write to its image"),
    (confined, STORE, lambda o: _template(o)["initContainers"][0].pop("securityContext"), "bucket: may gain"),
    (limited, REWARDS, main(resources={"requests": {"cpu": "1", "memory": "1Gi"}}), "no limits of memory"),
    (limited, RUNTIME, main(resources={"limits": {"cpu": "1", "memory": "1Gi"}}), "no requests of cpu"),
    (limited, MLFLOW, pod(volumes=[{"name": "tmp", "emptyDir": {}}]), "no size limit"),
    (pinned, REWARDS, main(image="crystalforge/rewards:latest"), "not pinned"),
    (pinned, REWARDS, main(image="crystalforge/rewards:0.1.0"), "not pinned"),
    (pinned, RUNTIME, main(image="crystalforge/train"), "not pinned"),
    (probed, MLFLOW, main(livenessProbe=None), "no livenessProbe"),
    (probed, STORE, main(readinessProbe=None), "no readinessProbe"),
    (probed, POSTGRES, main(startupProbe={"exec": {"command": ["pg_isready"]}}), "how long an answer may take"),
    (probed, REWARDS, main(readinessProbe={"tcpSocket": {"port": "grpc"}, "timeoutSeconds": 5}), "canary"),
    (secretive, MLFLOW, add("env", {"name": "DB_PASSWORD", "value": "hunter2"}), "not a reference"),
    (secretive, MLFLOW, add("args", "--key=$(POSTGRES_PASSWORD)"), "in its arguments"),
    (secretive, MLFLOW, add("args", "--uri=postgresql://mlflow:hunter2@db/x"), "credential"),
    (secretive, MLFLOW, main(envFrom=[{"secretRef": {"name": "all"}}]), "name the keys"),
    (secretive, MLFLOW, main(env=[{"name": "X", "valueFrom": NOBODYS}]), "nobody is told"),
    (secretive, ("ServiceAccount", "rewards"), lambda o: o.update(kind="Secret"), "not kept here"),
    (modest, LAUNCH, rule(0, verbs=["*"]), "wildcard"),
    (modest, LAUNCH, rule(0, resources=["secrets"]), "more secrets"),
    (modest, LAUNCH, rule(2, resources=["pods/exec"]), "give itself more"),
    (modest, LAUNCH, lambda o: o.update(kind="ClusterRole"), "beyond the namespace"),
    (modest, REWARDS, pod(automountServiceAccountToken=None), "a token for the API server"),
    (modest, REWARDS, pod(serviceAccountName=None), "account of its own"),
    (complete, REWARDS, pod(volumes=[{"name": "x", "configMap": {"name": "reward"}}]), "does not exist"),
    (complete, RUNTIME, pod(serviceAccountName="nobody"), "does not exist"),
    (complete, MLFLOW, lambda o: o["metadata"].update(namespace="default"), "is in namespace default"),
    (complete, ("Namespace", OURS), lambda o: o["metadata"]["labels"].clear(), "restricted standard"),
    (isolated, DENIAL, lambda o: o["spec"].update(policyTypes=["Egress"]), "no policy denies"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "which", "spoil", "complaint"), CASES)
def test_each_policy_objects_to_what_it_forbids(
    changed: Callable[..., Objects], policy: Policy, which: tuple[str, str], spoil: Spoil, complaint: str
) -> None:
    assert any(complaint in violation for violation in policy(changed(spoil, *which)))


def test_every_policy_has_been_seen_to_object() -> None:
    assert {case[0] for case in CASES} == set(POLICIES)


def test_an_unknown_kind_of_workload_is_not_overlooked(builds: dict[str, Objects]) -> None:
    stranger = {"kind": "SparkApplication", "metadata": {"name": "x"}, "spec": {"driver": {"containers": []}}}
    assert any("unknown kind" in violation for violation in confined([*builds["local"], stranger]))


CREDENTIALS = re.compile(
    r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{30}|gh[pousr]_[A-Za-z0-9]{36}"
    r"|://[^/\s:@$\"'{]+:(?!\$)[^/\s@$\"'{]+@"
)


def test_no_tracked_file_holds_a_credential() -> None:
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        pytest.skip("no reference data: this is no git checkout")
    if shutil.which("git") is None:
        pytest.skip("git is not installed (apt-get install git)")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if name == f"tests/unit/manifests/{Path(__file__).name}" or not path.is_file():  # the samples of this file
            continue
        content = path.read_bytes()
        if b"\0" not in content[:8192] and CREDENTIALS.search(content.decode(errors="replace")):
            found.append(name)
    assert found == []
    assert CREDENTIALS.search("postgresql://mlflow:hunter2@db/x")
