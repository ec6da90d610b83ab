"""Stage 1: any source of crystals -> one store of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.stages.base import Stage

if TYPE_CHECKING:
    from crystalforge.config import Config


def ingest(config: Config, out: Path, data_version: str | None = None) -> dict[str, Any]:
    """Read `config.data`'s source, tokenise, split and store under `out/store`; unusable records go to
    `out/rejects.jsonl`. Returns the stage's record.

    data_version: what tells two states of the source behind one path apart, such as DVC's hash; none, or empty: that
    of the files on this machine (`integrations.dvc.source_version`). Another version is read anew, and what changed in
    it alone is tokenised. Raises InputError when nothing usable is left.
    """
    if not data_version:  # empty from a pipeline that was submitted where the data are not
        from crystalforge.integrations.dvc import source_version

        data_version = source_version(config.data)
    version = {"data_version": data_version} if data_version else {}
    with Stage("ingest", config, out, sections=("data",), options=version) as stage:
        if stage.finished is None:
            from crystalforge.data.ingest import ingest as run

            manifest = run(config.data, out)
            lineage = {"data_hash": manifest["data_hash"], "data_source": config.data.source.kind} | version
            stage.finish(manifest["data_hash"], manifest["counts"], lineage)
            stage.dataset(config.data.source.kind, stage.outcome)
            stage.artifact(out / "manifest.json")
    return stage.outcome
