"""Write every pipeline as the workflow engine's IR, and every overlay as plain manifests: `make render`.

python -m pipelines.render build
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from kfp import compiler

from pipelines.catalog import PIPELINES
from pipelines.cluster import ClusterConfig

OVERLAYS = Path(__file__).resolve().parent.parent / "manifests" / "overlays"


def render(target: Path) -> list[Path]:
    """Compile into `target/pipelines` and build into `target/manifests`; returns what was written.

    Overlays are left out, with a line that says so, where kubectl is not installed.
    """
    written = []
    for name, build in PIPELINES.items():
        path = target / "pipelines" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(build(ClusterConfig()), str(path))
        written.append(path)
    overlays = sorted(OVERLAYS.iterdir()) if OVERLAYS.exists() else []
    if overlays and shutil.which("kubectl") is None:
        print("overlays left out: kubectl is not installed", file=sys.stderr)
        overlays = []
    for overlay in overlays:
        path = target / "manifests" / f"{overlay.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        built = subprocess.run(["kubectl", "kustomize", str(overlay)], check=True, capture_output=True, text=True)
        path.write_text(built.stdout)
        written.append(path)
    return written


if __name__ == "__main__":
    for item in render(Path(sys.argv[1] if len(sys.argv) > 1 else "build")):
        print(item)
