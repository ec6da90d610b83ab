"""The last step of every pipeline, however it ended: logs, metrics and error notes in one archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

from crystalforge.common.files import atomic_file
from crystalforge.stages.base import ERROR, RECORD

KEPT = ("*.log", "metrics.jsonl", "rejects.jsonl", "config.yaml", "summary.json", RECORD, ERROR)
LARGEST = 50 * 2**20  # bytes of one file; of a longer one, its end
SKIPPED = ("checkpoint", "pipeline")  # engine state, and the workflow engine's own copies of the artifacts


def archive(workspace: str, out: str, *, state: str = "", error: str = "") -> dict[str, str | int]:
    """Write `out` (.tar.gz) with every log below `workspace`; returns the counts and the pipeline's final state."""
    root = Path(workspace)
    files = sorted(
        {
            path
            for pattern in KEPT
            for path in root.rglob(pattern)
            if path.is_file() and not any(part.startswith(SKIPPED) for part in path.relative_to(root).parts[:-1])
        }
    )
    with atomic_file(Path(out)) as temporary, tarfile.open(temporary, "w:gz") as tar:
        for path in files:
            info = tar.gettarinfo(path, arcname=str(path.relative_to(root)))
            with path.open("rb") as stream:
                skipped = max(0, info.size - LARGEST)
                stream.seek(skipped)
                info.size -= skipped  # a log that grows meanwhile is cut where it ended
                tar.addfile(info, stream)
    return {"files": len(files), "state": state, "error": error}
