"""A screening killed many times at random instants: does it come to the same list, and is anything computed twice?

    python benchmarks/screen_kills.py --kills 20 --group 5

`--group`: how many of the kills hit the workers as well, as a power cut would. What they were at is then computed
again; a kill of the screening alone must not lead to a single repetition. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from _common import finish

COMMAND = [sys.executable, "-m", "crystalforge.cli", "screen", "-m", "mp20", "--set", "tracking.enabled=false"]


def main() -> None:
    """Read the arguments, kill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--group", type=int, default=0, help="kills that hit the workers too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("rest", nargs="*", default=["--top", "5", "--set", "screen.round=32"], help="after --: options")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in ("undisturbed", "killed")}
        began = time.monotonic()
        subprocess.run([*COMMAND, *arguments.rest, "-o", str(places["undisturbed"])], check=True, capture_output=True)
        whole = time.monotonic() - began
        groups = set(chance.sample(range(arguments.kills), arguments.group))
        done = 0
        for number in range(arguments.kills):
            process = subprocess.Popen(
                [*COMMAND, *arguments.rest, "-o", str(places["killed"])],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(chance.uniform(0, whole))
            workers = _children(process.pid)
            done += process.poll() is not None
            process.send_signal(signal.SIGKILL)
            if number in groups:
                for worker in workers:
                    os.kill(worker, signal.SIGKILL)
            process.wait()
        subprocess.run([*COMMAND, *arguments.rest, "-o", str(places["killed"])], check=True, capture_output=True)
        tables = [pq.read_table(place / "shortlist.parquet") for place in places.values()]
        repeated = {name: _repeated(place / "work") for name, place in places.items()}
        finish(
            {
                "kills": arguments.kills,
                "of which with the workers": arguments.group,
                "ended before the kill": done,
                "crystals": len(tables[0]),
                "same list": tables[0].equals(tables[1]),
                "jobs computed twice": repeated,
            }
        )


def _children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def _repeated(work: Path) -> int:
    """Jobs that were begun more than once, by the workers' own notes."""
    jobs = Counter(
        json.loads(line)["job"] for file in work.glob("calls-*.jsonl") for line in file.read_text().splitlines()
    )
    return sum(count > 1 for count in jobs.values())


if __name__ == "__main__":
    main()
