"""Run the benchmarks, keep their figures, and say what moved: `make bench`.

    python benchmarks/_history.py                 # every benchmark below
    python benchmarks/_history.py sampler train   # some
    python benchmarks/_history.py --no-keep       # compare only

Each class of machine has a file `benchmarks/figures/CLASS.jsonl`, a line for each figure of each run: date, commit,
machine, command, value, the extremes of its repeats. A new value is compared with the last one of the class. It has
moved when the extremes of the two do not overlap; a figure without repeats when it lies outside what the class has
seen in its last five runs, and with fewer than two runs nothing is said. Figures of a busy machine (load above the
number of its cores before the run) are kept with that load, and compared with reserve.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _common import machine

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "figures"
REMEMBERED = 5


@dataclass(frozen=True)
class Figure:
    """A number in a benchmark's JSON. `path`: keys joined by dots. `spread`: where its [least, greatest] stand."""

    name: str
    path: str
    spread: str | None = None
    more_is_better: bool = True


def less(name: str, path: str) -> Figure:
    """A figure that is better when smaller."""
    return Figure(name, path, more_is_better=False)


BENCHMARKS: dict[str, tuple[tuple[str, ...], tuple[Figure, ...]]] = {
    "quickstart": ((), (less("CPU minutes to the quality", "cpu_minutes"),)),
    "sampler": ((), (Figure("crystals/s", "structures_per_s", "structures_per_s_spread"),)),
    "train": (("--threads", "1"), (Figure("samples/CPU-s", "samples_per_cpu_s"),)),
    "ppo": (("--threads", "1"), (less("CPU-s a step", "cpu_seconds_per_step"),)),
    "ddp": (("--steps", "4", "--repeats", "1"), (Figure("samples/CPU-s of two", "processes.1.samples_per_cpu_s"),)),
    "checkpoint": ((), (less("save, s", "pretrain.save.median_s"), less("load, s", "pretrain.load.median_s"))),
    "tokenizer": (("--processes", "1"), (Figure("structures/CPU-s", "cpu_structures_per_s"),)),
    "ingest": (("--rows", "2000", "100000"), (Figure("rows/CPU-s", "sizes.0.tokenize_rows_per_cpu_s"),)),
    "hull": ((), (Figure("warm lookups/s", "lookups_per_s.warm_batched"),)),
    "matching": (("--samples", "500", "--references", "4000"), (Figure("times faster than pairwise", "speedup"),)),
    "evaluate": (("--samples", "300"), (less("matching of 300, s", "seconds.match"),)),
    "reward": ((), (Figure("structures/CPU-s over gRPC", "per_cpu_second.service"),)),
}


def main() -> int:
    """Exit code 1 when a benchmark failed; what moved is told, not punished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which; default: all")
    parser.add_argument("--no-keep", action="store_true", help="do not add the figures to the file")
    options = parser.parse_args()
    unknown = set(options.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    here, failed = machine(), []
    file = FIGURES / f"{machine_class(here)}.jsonl"
    known = read(file)
    print(f"machine class {file.stem}, load {here['load_average']}, {len(known)} figures known")
    for name in options.names or BENCHMARKS:
        arguments, figures = BENCHMARKS[name]
        load = machine()["load_average"]
        result = run(name, arguments)
        if result is None:
            failed.append(name)
            continue
        for figure in figures:
            record = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
                "machine": result["machine"] | {"load_average": load},
                "benchmark": name,
                "command": " ".join(("python", f"benchmarks/{name}.py", *arguments)),
                "figure": figure.name,
                **measured(figure, result),
            }
            print(f"{name:12} {compare(figure, record, earlier(known, name, figure.name))}", flush=True)
            if not options.no_keep:
                append(file, record)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def machine_class(here: Mapping[str, Any]) -> str:
    """A name for machines whose figures can be compared: processor, cores, vector instructions.

    >>> machine_class({"processor": "AMD EPYC", "cores": 2, "vectors": "avx2"})
    'amd-epyc-2-cores-avx2'
    """
    words = f"{here['processor']} {here['cores']} cores {here['vectors']}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def run(name: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The JSON of one benchmark; None, with what it said, when it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        print(f"{name:12} failed:\n{ended.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(ended.stdout[ended.stdout.index("{") :])


def measured(figure: Figure, result: Mapping[str, Any]) -> dict[str, Any]:
    """Value of a figure and, where it was repeated, its extremes."""
    spread = find(result, figure.spread) if figure.spread else None
    low, high = spread or (None, None)
    return {"value": find(result, figure.path), "low": low, "high": high}


def find(result: Any, path: str) -> Any:
    """
    >>> find({"sizes": [{"rows": 3}]}, "sizes.0.rows")
    3
    """
    for key in path.split("."):
        result = result[int(key)] if isinstance(result, list) else result[key]
    return result


def earlier(known: Sequence[Mapping[str, Any]], benchmark: str, figure: str) -> list[Mapping[str, Any]]:
    """The last records of one figure, oldest first."""
    return [each for each in known if (each["benchmark"], each["figure"]) == (benchmark, figure)][-REMEMBERED:]


def compare(figure: Figure, now: Mapping[str, Any], past: Sequence[Mapping[str, Any]]) -> str:
    """One line: the value, the last one, and whether it moved by more than its spread.

    >>> f = Figure("crystals/s", "x", "y")
    >>> last = {"value": 100.0, "low": 95.0, "high": 104.0, "commit": "abc"}
    >>> compare(f, {"value": 80.0, "low": 78.0, "high": 85.0}, [last])
    'crystals/s: 80 (100 at abc), 20.0 % worse, beyond its spread'
    >>> compare(f, {"value": 97.0, "low": 94.0, "high": 99.0}, [last])
    'crystals/s: 97 (100 at abc), within its spread'
    """
    if not past:
        return f"{figure.name}: {now['value']:.4g} (the first of this class)"
    last = past[-1]
    line = f"{figure.name}: {now['value']:.4g} ({last['value']:.4g} at {last['commit']})"
    if now["low"] is not None and last["low"] is not None:
        moved = now["high"] < last["low"] or now["low"] > last["high"]
    elif len(past) > 1:
        values = [each["value"] for each in past]
        moved = not min(values) <= now["value"] <= max(values)
    else:
        return f"{line}, its spread is not known yet"
    if not moved:
        return f"{line}, within its spread"
    change = now["value"] / last["value"] - 1
    better = (change > 0) == figure.more_is_better
    return f"{line}, {abs(change):.1%} {'better' if better else 'worse'}, beyond its spread".replace("%", " %")


def read(file: Path) -> list[dict[str, Any]]:
    """What is known of a class of machines."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def append(file: Path, record: Mapping[str, Any]) -> None:
    """One more line."""
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(record) + "\n")


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, cwd=HERE
    )
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
