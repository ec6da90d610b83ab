"""How much memory does a long screening take, and does it grow?   python benchmarks/screen_memory.py [--crystals 20000]

A screening by CHGNet that cannot end before `--crystals` are drawn. To come through in minutes it relaxes only what is
below 0.05 eV/atom as generated, and two steps far: the memory of a relaxation depends on its largest piece, which the
first rounds already see. Other options after `--` take the place of these; `--out` keeps what the screening leaves.
Sampled every second: proportional set size (shared pages counted once) of the screening and of its workers. growth: MB
for each 1,000 crystals drawn, a line through the second half of the samples. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from _common import finish

COMMAND = [sys.executable, "-m", "crystalforge.cli", "screen", "-m", "mp20", "--set", "tracking.enabled=false"]
WISH = ["--top", "100000", "--set", "screen.judges=[{kind: ehull, name: chgnet}]", "--set", "screen.confirm=[]"]
WISH += ["--set", "screen.promising=0.05", "--set", "screen.steps=2", "--limit", "0.2"]
MB = 1024  # kB


def main() -> None:
    """Read the arguments, screen, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=86_400, help="what has been drawn by then has to do")
    parser.add_argument("--out", type=Path, help="where the screening works; None: a temporary directory")
    parser.add_argument("rest", nargs="*", default=WISH, help="after --: options")
    arguments = parser.parse_args()
    size = ["--max-crystals", str(arguments.crystals), "-j", str(arguments.processes)]
    size += ["--max-seconds", str(arguments.seconds)]
    drawn = [0]
    samples: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder) / "out"
        process = subprocess.Popen(
            [*COMMAND, *arguments.rest, *size, "-o", str(out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        reader = threading.Thread(target=_follow, args=(process, drawn), daemon=True)
        reader.start()
        while process.poll() is None:
            samples.append((drawn[0], memory([process.pid]), memory(children(process.pid))))
            time.sleep(1)
        reader.join()
        assert process.returncode == 0, f"the screening ended with exit code {process.returncode}"
        record = json.loads((out / "funnel.json").read_text())
    rows = np.array(samples)
    whole = rows[:, 1] + rows[:, 2]
    later = (rows[:, 0] >= rows[:, 0].max() / 2) & (rows[:, 2] > 0)  # not while the list is written
    marks = np.linspace(0, rows[:, 0].max(), 9)[1:]
    finish(
        {
            "drawn": record["counts"]["drawn"],
            "counts": record["counts"],
            "processes": arguments.processes,
            "seconds": record["seconds"],
            "peak_mb": round(float(whole.max())),
            "peak_of_the_screening_mb": round(float(rows[:, 1].max())),
            "growth_mb_per_1000": {
                "screening": slope(rows[later, 0], rows[later, 1]),
                "workers": slope(rows[later, 0], rows[later, 2]),
            },
            "screening_mb_at": {str(int(n)): round(float(rows[rows[:, 0] <= n, 1].max())) for n in marks},
        }
    )


def slope(drawn: np.ndarray, size: np.ndarray) -> float | None:
    """MB for each 1,000 crystals; None where there are too few samples."""
    return round(float(np.polyfit(drawn / 1000, size, 1)[0]), 2) if len(np.unique(drawn)) > 2 else None


def memory(processes: list[int]) -> float:
    """MB, shared pages in parts."""
    total = 0.0
    for process in processes:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) / MB if found else 0.0
    return total


def children(parent: int) -> list[int]:
    """Of a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def _follow(process: subprocess.Popen[str], drawn: list[int]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"(\d+) drawn", line)
        drawn[0] = int(found[1]) if found else drawn[0]


if __name__ == "__main__":
    main()
