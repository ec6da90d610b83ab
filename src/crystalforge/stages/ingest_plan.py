"""Before stage 1 on many machines: how its shards are shared out."""

from __future__ import annotations

import json
from pathlib import Path

from crystalforge.stages.component import step


def ingest_plan(workspace: str, data_config: str, parts: int) -> list[str]:
    """Open the source that `data_config` (JSON) describes, bring what is to be downloaded, share its shards out.

    Returns the shares, such as "0/3", "1/3", "2/3": at most `parts` of them, and none without a shard. A user's
    mistake ends the process with one message and exit code 2.
    """
    with step(Path(workspace)):
        from crystalforge.config import from_sections
        from crystalforge.data.ingest import count_shards

        shards = count_shards(from_sections(data=json.loads(data_config)).data, Path(workspace) / "ingest")
        number = max(1, min(parts, shards))
        return [f"{part}/{number}" for part in range(number)]
    raise AssertionError("a user's mistake ends the process")
