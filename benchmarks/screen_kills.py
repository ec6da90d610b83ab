"""A screening killed many times at random instants: does it come to the same list, and is anything computed twice?

    python benchmarks/screen_kills.py --kills 20 --group 0

Kills are spread over the whole screening: each waits until a random number of further results lies on the disk, so many
that the last kill still finds work to be done, then for a random moment; one in six comes while nothing but imports is
going on. `--group`: how many of the kills hit the workers as well, as a power cut would. What they were at is then
computed again; a kill of the screening alone must not lead to a single repetition. The budget is of crystals and the
wish cannot be met, so that both must do the same jobs. Counted are the workers' own notes, made as a job begins: the
jobs, those begun more than once, and the crystals that judges were asked about. Prints JSON.
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
from typing import Any

import pyarrow.parquet as pq
from _common import finish

COMMAND = [sys.executable, "-m", "crystalforge.cli", "screen", "-m", "mp20", "--set", "tracking.enabled=false"]
WISH = ["--top", "1000", "--max-crystals", "96", "--set", "screen.round=4", "--set", "screen.piece=1", "-j", "1"]
WISH += [
    "--set",
    "screen.steps=30",
    "--set",
    "screen.judges=[{kind: ehull, name: chgnet}]",
    "--set",
    "screen.confirm=[]",
]
POLL, MOMENT = 0.02, 0.5  # seconds between two looks; random moment after the last result, at most
EARLY = 1 / 6  # part of the kills that come before there is anything to do


def main() -> None:
    """Read the arguments, kill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--group", type=int, default=0, help="kills that hit the workers too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("rest", nargs="*", default=WISH, help="after --: options")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in ("undisturbed", "killed")}
        run(places["undisturbed"], arguments.rest)
        results = len(list((places["undisturbed"] / "work").glob("*.json")))
        groups = set(chance.sample(range(arguments.kills), arguments.group))
        left = []
        for number in range(arguments.kills):
            kill(places["killed"], arguments.rest, chance, results / arguments.kills, number in groups)
            left.append(results - len(list((places["killed"] / "work").glob("*.json"))))
        run(places["killed"], arguments.rest)
        tables = [pq.read_table(place / "shortlist.parquet") for place in places.values()]
        finish(
            {
                "kills": arguments.kills,
                "of which with the workers": arguments.group,
                "results missing after each kill": left,
                "crystals": len(tables[0]),
                "same list": tables[0].equals(tables[1]),
                **{name: counters(place / "work") for name, place in places.items()},
            }
        )


def run(out: Path, options: list[str]) -> None:
    """A screening that nobody kills."""
    subprocess.run([*COMMAND, *options, "-o", str(out)], check=True, capture_output=True)


def kill(out: Path, options: list[str], chance: random.Random, share: float, workers_too: bool) -> None:
    """Begin or go on, and kill. share: results that there are for each kill; half of them are used up on average, as
    workers finish what they are at."""
    work = out / "work"
    had = len(list(work.glob("*.json")))
    further = 0 if chance.random() < EARLY else chance.randint(1, max(1, round(share)))
    process = subprocess.Popen(
        [*COMMAND, *options, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and further and len(list(work.glob("*.json"))) < had + further:
        time.sleep(POLL)
    time.sleep(chance.uniform(0, MOMENT if further else 10 * MOMENT))
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    for worker in workers if workers_too else []:
        os.kill(worker, signal.SIGKILL)
    process.wait()


def counters(work: Path) -> dict[str, Any]:
    """Jobs, those begun more than once, and crystals scored, by the workers' own notes."""
    lines = [json.loads(line) for file in work.glob("calls-*.jsonl") for line in file.read_text().splitlines()]
    jobs = Counter(line["job"] for line in lines)
    scored = sum(line["count"] for line in lines if line["kind"] == "score")
    return {"jobs": len(jobs), "begun twice": sum(n > 1 for n in jobs.values()), "crystals scored": scored}


def _children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


if __name__ == "__main__":
    main()
