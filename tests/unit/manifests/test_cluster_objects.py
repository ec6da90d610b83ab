"""What the tests on a cluster apply, as far as it can be said without one: the overlay in a namespace of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import yaml

Objects = list[dict[str, Any]]
IMAGES = {
    "crystalforge/train": "r.example/train@sha256:" + "a" * 64,
    "crystalforge/rewards": "r.example/rewards@sha256:" + "b" * 64,
    "docker.io/library/postgres": "docker.io/library/postgres:17",
    "ghcr.io/versity/versitygw": "ghcr.io/versity/versitygw:v1",
}


@pytest.fixture(scope="module")
def cluster(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("tests/cluster/conftest.py")


@pytest.mark.parametrize("build", ["local", "a100"])
def test_everything_moves_into_the_tests_own_namespace(
    cluster: ModuleType, builds: dict[str, Objects], build: str
) -> None:
    objects = cluster.moved(builds[build], "elsewhere", IMAGES)
    ours = [item for item in builds[build] if item["metadata"].get("namespace") == "crystalforge"]
    assert len([item for item in objects if item["metadata"].get("namespace") == "elsewhere"]) == len(ours)
    text = yaml.safe_dump_all(objects)
    for left in (".crystalforge.svc", "mlflow.crystalforge:", "namespace: crystalforge\n", "sha256:" + "0" * 64):
        assert left not in text, left
    assert "kubernetes.io/metadata.name: crystalforge" not in text
    assert "http://mlflow.elsewhere.svc.cluster.local:5000" in text, "learners find the registry there"
    assert "mlflow.elsewhere:5000" in text, "and it answers to that name"
    assert not [item for item in objects if item["metadata"].get("namespace", "elsewhere") != "elsewhere"]
