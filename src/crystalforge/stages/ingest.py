"""Stage 1: any source of crystals -> one store of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.stages.base import Stage

if TYPE_CHECKING:
    from crystalforge.config import Config


def ingest(config: Config, out: Path) -> dict[str, Any]:
    """Read `config.data`'s source, tokenise, split and store under `out/store`; unusable records go to
    `out/rejects.jsonl`. Returns the stage's record. Raises InputError when nothing usable is left."""
    with Stage("ingest", config, out, sections=("data",)) as stage:
        if stage.finished is None:
            from crystalforge.data.ingest import ingest as run

            manifest = run(config.data, out)
            stage.finish(manifest["data_hash"], manifest["counts"])
            stage.dataset(config.data.source.kind, stage.outcome)
            stage.artifact(out / "manifest.json")
    return stage.outcome
