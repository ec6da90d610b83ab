"""One machine's share of stage 1: some of the shards, into the directory where `ingest` will find them."""

from __future__ import annotations

import json
from pathlib import Path

from crystalforge.stages.component import step


def ingest_part(workspace: str, data_config: str, share: str) -> str:
    """Tokenise the shards of `share` (one of `ingest_plan`'s); returns the share and how many shards it had.

    What was done before is not done again. A user's mistake ends the process with one message and exit code 2.
    """
    with step(Path(workspace)):
        from crystalforge.config import from_sections
        from crystalforge.data.ingest import tokenize_shards

        part, parts = (int(number) for number in share.split("/"))
        data = from_sections(data=json.loads(data_config)).data
        done = tokenize_shards(data, Path(workspace) / "ingest", part=part, parts=parts)
        return f"{share}: {done} shards"
    raise AssertionError("a user's mistake ends the process")
