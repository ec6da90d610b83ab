"""Every object of another project's kind against that project's own definition: what an API server would say of its
shape at `--dry-run=server`, without one. Rules in CEL and admission webhooks are left to a real server."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from crystalforge.integrations.trainjob.manifest import TrainJobConfig, manifest

Objects = list[dict[str, Any]]
PLACE = Path(os.environ.get("CRYSTALFORGE_CRDS", Path(__file__).resolve().parents[3] / "build" / "crds"))
THEIRS = ("kubeflow.org", "x-k8s.io", "kserve.io", "coreos.com")


def closed(schema: Any) -> Any:
    """A structural schema as JSON schema: a field that it does not name is an error, not dropped in silence."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | {key: schema[key] for key in ("pattern",) if key in schema}
    found = {key: closed(value) for key, value in schema.items() if key not in ("format", "description", "default")}
    if "properties" in schema:
        found["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    if schema.get("nullable") and "type" in schema:
        found["type"] = [schema["type"], "null"]
    return found


@pytest.fixture(scope="module")
def definitions() -> dict[tuple[str, str], Draft202012Validator]:
    """A validator by apiVersion and kind."""
    files = sorted(PLACE.glob("*.yaml")) if PLACE.is_dir() else []
    if not files:
        pytest.skip(f"no reference data in {PLACE}: python tests/unit/manifests/crds.py build/crds")
    found = {}
    for file in files:
        for crd in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
            names, group = crd["spec"]["names"], crd["spec"]["group"]
            for version in crd["spec"]["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"] |= {"metadata": {"type": "object"}}
                found[f"{group}/{version['name']}", names["kind"]] = Draft202012Validator(schema)
    return found


def faults(definitions: dict[tuple[str, str], Draft202012Validator], item: dict[str, Any]) -> list[str]:
    """What the definition of the object's kind objects to."""
    validator = definitions[item["apiVersion"], item["kind"]]
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(item)]


@pytest.mark.parametrize("build", ["local", "a100", "kserve"])
def test_every_object_is_one_that_its_definition_knows(
    definitions: dict[tuple[str, str], Draft202012Validator], builds: dict[str, Objects], build: str
) -> None:
    theirs = [item for item in builds[build] if item["apiVersion"].split("/")[0].endswith(THEIRS)]
    assert theirs
    for item in theirs:
        assert faults(definitions, item) == [], f"{item['kind']} {item['metadata']['name']}"


def test_every_training_job_is_one_that_its_definition_knows(
    definitions: dict[tuple[str, str], Draft202012Validator], example: dict[str, Any]
) -> None:
    config = TrainJobConfig(nodes=4, processes_per_node=8, env={"A": "b"}, queue="gpus", deadline_s=60, image="i")
    for job in (example, manifest("pretrain-1", ["pretrain"], config, "forge")):
        assert faults(definitions, job) == []


def test_what_a_definition_does_not_know_is_seen(
    definitions: dict[tuple[str, str], Draft202012Validator], builds: dict[str, Objects], example: dict[str, Any]
) -> None:
    by_kind = {item["kind"]: copy.deepcopy(item) for item in [*builds["a100"], *builds["kserve"], example]}
    by_kind["TrainJob"]["spec"]["trainer"]["numNodes"] = "four"
    by_kind["TrainingRuntime"]["spec"]["mlPolicy"]["torch"]["numProcPerNode"] = "auto"  # a field of older releases
    by_kind["ClusterQueue"]["spec"]["queueingStrategy"] = "Random"
    by_kind["PodMonitor"]["spec"]["endpoints"] = []
    by_kind["InferenceService"]["spec"]["predictor"]["containers"][0]["readynessProbe"] = {}
    for kind in ("TrainJob", "TrainingRuntime", "ClusterQueue", "PodMonitor", "InferenceService"):
        assert faults(definitions, by_kind[kind]), kind
