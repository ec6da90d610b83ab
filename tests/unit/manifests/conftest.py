"""What kustomize makes of the manifests: each overlay, and the base with the components that no overlay uses."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
Objects = list[dict[str, Any]]


def _build(folder: Path) -> Objects:
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    assert not built.stderr, f"kustomize warns: {built.stderr}"
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="session")
def kubectl() -> None:
    """Skip where kubectl is missing: Debian's package is too old for these manifests."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (1.27 or later, see kubernetes.io/docs/tasks/tools)")


@pytest.fixture(scope="session")
def builds(kubectl: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Objects]:
    """Built objects by overlay's name; `kserve` is the local overlay with that component instead of the Deployment."""
    result = {overlay.name: _build(overlay) for overlay in sorted((MANIFESTS / "overlays").iterdir())}
    kserve = tmp_path_factory.mktemp("kserve")
    here = Path(os.path.relpath(MANIFESTS, kserve.resolve()))
    parts = {
        "resources": [here / "base"],
        "components": [
            here / part for part in ("components/kserve", "components/object-store", "overlays/local/images")
        ],
    }
    content = {key: [str(path) for path in paths] for key, paths in parts.items()}
    (kserve / "kustomization.yaml").write_text(yaml.safe_dump({"kind": "Kustomization", **content}))
    return {**result, "kserve": _build(kserve)}


@pytest.fixture(scope="session")
def example() -> dict[str, Any]:
    """The TrainJob that the documentation submits."""
    return yaml.safe_load((MANIFESTS / "examples" / "trainjob.yaml").read_text())


@pytest.fixture
def changed(builds: dict[str, Objects]) -> Callable[[Callable[[dict[str, Any]], None], str, str], Objects]:
    """The local overlay with one object changed: what a policy must object to."""

    def change(mutate: Callable[[dict[str, Any]], None], kind: str, name: str) -> Objects:
        objects = copy.deepcopy(builds["local"])
        found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
        assert len(found) == 1, f"no single {kind} {name} to spoil"
        mutate(found[0])
        return objects

    return change
