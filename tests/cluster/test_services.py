"""The services on a cluster: accepted, ready, judging rightly, closed to strangers, nothing lost when a part dies."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

Objects = list[dict[str, Any]]

SMALL = {
    "seed": 0,
    "data": {"source": {"kind": "prototypes"}, "limit": 300},
    "model": {"layers": 1, "heads": 2, "head_size": 16, "width": 32, "embedding": 16, "dropout": 0.0},
    "pretrain": {"epochs": 4, "batch_size": 64, "optimizer": {"learning_rate": 5e-3}},
    "finetune": {"steps": 3, "batch_size": 24, "checkpoint_every": 1, "learning_rate": 1e-3},
    "evaluate": {"samples": 24, "nearest": False, "gallery": 2, "candidates": 20},
}

CONNECT = """
import json, socket, sys
found = {}
for name, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((name, port), timeout=5).close()
        found[f"{name}:{port}"] = True
    except OSError as error:
        found[f"{name}:{port}"] = False
print(json.dumps(found))
"""

STATUS = """
import base64, os, sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1] + "/api/2.0/mlflow/experiments/search?max_results=1")
if len(sys.argv) > 2:
    pair = os.environ["MLFLOW_TRACKING_USERNAME"] + ":" + os.environ["MLFLOW_TRACKING_PASSWORD"]
    request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
try:
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def python(script: str, *words: str) -> str:
    """A line of shell that runs it."""
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in (script, *words))
    return f"python3 -c {quoted}"


@pytest.mark.parametrize("overlay", ["local", "a100"])
def test_the_api_server_takes_every_object(
    kube: Any, overlays: dict[str, Objects], move: Callable[..., Objects], overlay: str
) -> None:
    objects = move(overlays[overlay], kube.namespace, kube.images)
    known = [item for item in objects if kube.knows(item["kind"])]
    kube.apply(known, "--dry-run=server")
    unknown = sorted({item["kind"] for item in objects} - {item["kind"] for item in known})
    print(f"{overlay}: {len(known)} objects accepted; no CRD here for {', '.join(unknown) or 'none'}")


def test_the_canary_has_its_golden_value_here_and_by_the_services_name(deployed: Any, learner: dict[str, str]) -> None:
    assert "golden value" in deployed("exec", "deployment/rewards", "--", "python3", "-m", "serving.probe")
    deployed("exec", "deployment/rewards", "--", "python3", "-m", "serving.probe", "--now", "--deadline-s", "60")
    address = f"rewards.{deployed.namespace}.svc.cluster.local:8001"
    deployed.run("canary", f"python3 -m serving.probe {address} ehull --deadline-s 60", labels=learner)


def test_the_policies_let_through_what_is_listed_and_nothing_else(deployed: Any, learner: dict[str, str]) -> None:
    pairs = [("rewards", 8001), ("rewards", 8002), ("rewards", 8003), ("mlflow", 5000), ("postgres", 5432)]
    script = python(CONNECT, json.dumps([*pairs, ("object-store", 9000)]))
    seen = json.loads(deployed.run("learner", script, labels=learner).splitlines()[-1])
    assert {name for name, through in seen.items() if through} == {"rewards:8001", "mlflow:5000"}
    seen = json.loads(deployed.run("stranger", script, labels={"app": "stranger"}).splitlines()[-1])
    assert {name for name, through in seen.items() if through} == set()


def test_the_registry_wants_an_account(deployed: Any, learner: dict[str, str]) -> None:
    address = f"http://mlflow.{deployed.namespace}.svc.cluster.local:5000"
    script = f"{python(STATUS, address)}; {python(STATUS, address, 'account')}"
    assert deployed.run("account", script, labels=learner).split()[-2:] == ["401", "200"]


@pytest.fixture(scope="module")
def discovered(deployed: Any, learner: dict[str, str]) -> str:
    """The main job in a pod, against the served reward and the registry; the hash of the model that it registered."""
    space = deployed.namespace
    values = SMALL | {
        "service": {"mode": "triton", "url": f"rewards.{space}.svc.cluster.local:8001"},
        "tracking": {"uri": f"http://mlflow.{space}.svc.cluster.local:5000"},
    }
    script = (
        f"cat >/tmp/params.yaml <<'END'\n{yaml.safe_dump(values)}END\n"
        "id -u; cd /tmp; crystalforge run --config /tmp/params.yaml --directory /workspace/runs\n"
        "crystalforge fetch --config /tmp/params.yaml models:/crystalforge-generator@candidate -o /workspace/first\n"
        "cp /tmp/params.yaml /workspace/params.yaml; sha256sum /workspace/first/model/model.safetensors\n"
    )
    log = deployed.run("discovery", script, labels=learner, minutes=30)
    assert log.split()[0] == "10001"
    return log.splitlines()[-1].split()[0]


def test_a_registered_model_comes_back_and_is_promoted(deployed: Any, learner: dict[str, str], discovered: str) -> None:
    began = time.monotonic()
    script = (
        "crystalforge fetch --config /workspace/params.yaml models:/crystalforge-generator@candidate -o /tmp/again\n"
        "sha256sum /tmp/again/model/model.safetensors\n"
        "crystalforge promote --config /workspace/params.yaml --min-unique 0 || test $? = 1\n"
    )
    log = deployed.run("fetch", script, labels=learner)
    assert discovered in log
    assert time.monotonic() - began < 180, "not by way of a store that it cannot reach"
    assert "uniqueness passed" in log


@pytest.mark.parametrize("part", ["postgres-0", "object-store-0", "mlflow", "rewards"])
def test_nothing_is_lost_when_a_part_is_killed(
    deployed: Any, learner: dict[str, str], discovered: str, part: str
) -> None:
    if part.endswith("-0"):
        deployed("delete", "pod", part, "--grace-period=0", "--force")
        workload = f"statefulset/{part.removesuffix('-0')}"
    else:
        deployed("delete", "pod", "--selector", f"app.kubernetes.io/name={part}", "--grace-period=0", "--force")
        workload = f"deployment/{part}"
    time.sleep(2.0)
    deployed.ready(workload, "deployment/mlflow", "deployment/rewards")
    script = (
        "crystalforge fetch --config /workspace/params.yaml models:/crystalforge-generator@candidate -o /tmp/again\n"
        "sha256sum /tmp/again/model/model.safetensors\n"
        f"python3 -m serving.probe rewards.{deployed.namespace}.svc.cluster.local:8001 ehull --deadline-s 60\n"
    )
    assert discovered in deployed.run("after", script, labels=learner)


def test_no_log_holds_a_credential(deployed: Any, credentials: dict[str, dict[str, str]], discovered: str) -> None:
    pods = deployed("get", "pods", "-o", "name").split()
    logs = {pod: deployed("logs", pod, "--all-containers", check=False) for pod in pods}
    for name, values in credentials.items():
        for key, value in values.items():
            if key != "username":
                assert not [pod for pod, log in logs.items() if value in log], f"{name}/{key}"
