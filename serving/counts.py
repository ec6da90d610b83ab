"""What a reward server has done so far: Triton's own counts, and ours from its metrics page."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """Triton's own counts for one model since its start, probes included.

    inferences: requests answered; executions: calls of the model (fewer when requests were merged); failures:
    requests that ended in an error; structures: crystals scored, by status (from our metrics, without
    probes).
    """

    inferences: int
    executions: int
    failures: int
    structures: dict[str, int]


def scored_by(metrics_url: str, model: str) -> dict[str, int]:
    """Crystals scored by a model since its start, by status; nothing else is counted there, probes least of all."""
    pattern = re.compile(r"crystalforge_structures_total\{([^}]*)\} ([0-9.e+]+)")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(metrics_url, timeout=10) as page:
        text = page.read().decode()
    result: dict[str, int] = {}
    for labels, value in pattern.findall(text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if pairs.get("model") == model and float(value) > 0:
            result[pairs["status"]] = result.get(pairs["status"], 0) + int(float(value))
    return result
