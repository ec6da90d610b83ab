"""Where the schemas of other projects' kinds come from, by release: python tests/unit/manifests/crds.py build/crds

The definitions are not kept here: they are large, and their projects' own. `test_crds.py` holds every object that is
built against the ones in `build/crds`, or in the folder that CRYSTALFORGE_CRDS names.
"""

from __future__ import annotations

import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Release:
    """One project's definitions at one release: file by file, below `folder` of its repository."""

    repository: str
    tag: str
    folder: str
    files: tuple[str, ...]

    def address(self, file: str) -> str:
        return f"https://raw.githubusercontent.com/{self.repository}/{self.tag}/{self.folder}/{file}"


RELEASES = (
    Release(
        "kubeflow/trainer", "v2.3.0", "manifests/base/crds",
        ("trainer.kubeflow.org_trainjobs.yaml", "trainer.kubeflow.org_trainingruntimes.yaml"),
    ),
    Release(
        "kubernetes-sigs/kueue", "v0.19.2", "config/components/crd/bases",
        ("kueue.x-k8s.io_clusterqueues.yaml", "kueue.x-k8s.io_localqueues.yaml", "kueue.x-k8s.io_resourceflavors.yaml"),
    ),
    Release(
        "kserve/kserve", "v0.20.0", "config/crd/full", ("serving.kserve.io_inferenceservices.yaml",),
    ),
    Release(
        "prometheus-operator/prometheus-operator", "v0.93.0", "example/prometheus-operator-crd",
        ("monitoring.coreos.com_podmonitors.yaml", "monitoring.coreos.com_prometheusrules.yaml"),
    ),
)  # fmt: skip


def main(target: Path) -> None:
    """Fetch every definition into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for release in RELEASES:
        for file in release.files:
            with urllib.request.urlopen(release.address(file), timeout=60) as answer:
                (target / file).write_bytes(answer.read())
            print(target / file, release.tag)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/crds"))
