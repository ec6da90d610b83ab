"""What benchmarks say alike: shares, and beside the figures the machine, its load, the versions. Prints JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crystalforge.common.files import write_json
from crystalforge.evaluation.metrics.statistics import wilson

# Widest first: what decides the speed of matrix products on a processor.
VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")


def _cpuinfo(key: str) -> str:
    """The first value of `key` in the system's description of its processors; empty where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def machine() -> dict[str, Any]:
    """The processor, how many cores of it this process may use, its widest vector instructions, and how busy it is."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "vectors": next((name for name in VECTORS if name in flags), ""),
        "load_average": round(os.getloadavg()[0], 2),
    }


def finish(result: Mapping[str, Any], out: Path | None = None, *, packages: Iterable[str] = ("torch",)) -> None:
    """Print `result` with the machine and the versions of `packages`; write it to `out` too where asked.

    What the result itself says of the machine (threads, device) is kept beside.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    whole = {**result, "machine": {**machine(), **result.get("machine", {})}, "versions": versions}
    print(json.dumps(whole, indent=2))
    if out is not None:
        write_json(out, whole)


def share(count: int, n: int) -> dict[str, float | int | None]:
    """count of n with its Wilson interval, for JSON."""
    found = wilson(count, n).as_dict()
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
