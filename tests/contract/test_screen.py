"""The screening as users start it: the how-to's commands as written, and a process that is killed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
QUIET = ["--set", "tracking.enabled=false"]
SMALL = ["screen", "-m", "mp20", "--top", "3", "--max-crystals", "96", "-j", "2", *QUIET]
SMALL += ["--set", "screen.judges=[{kind: ehull, name: chgnet}]", "--set", "screen.confirm=[]"]
SMALL += ["--set", "screen.round=24", "--set", "screen.piece=3", "--set", "screen.steps=40", "--seed", "3"]


def wishes() -> list[list[str]]:
    """The how-to's examples of wishes."""
    page = (ROOT / "docs/how-to/screen.md").read_text()
    block = re.findall(r"```sh\n(.*?)```", page.partition("## Wishes")[2], flags=re.DOTALL)[0]
    return [shlex.split(line)[1:] for line in block.splitlines()]


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crystalforge.cli", *arguments],
        cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(arguments: list[str], cwd: Path) -> dict:
    process = start(arguments, cwd)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("wish", wishes(), ids=lambda wish: wish[-1])
def test_the_how_to_s_wishes_as_written(wish: list[str], tmp_path: Path) -> None:
    pytest.importorskip("sevenn")
    record = run([*wish, *QUIET], tmp_path)
    out = tmp_path / wish[-1]
    table = pq.read_table(out / "shortlist.parquet")
    assert len(table) == record["metrics"]["listed"] == len(list((out / "cif").glob("*.cif")))
    assert len(table) == 1
    allowed = {"salts": {17, 20, 37}, "heusler": {12, 13, 45}, "alloys": {12, 20, 30, 46}}[wish[-1]]
    for row in table.to_pylist():
        assert set(row["atomic_numbers"]) <= allowed
        assert wish[-1] == "alloys" or set(row["atomic_numbers"]) == allowed
        assert (row["symbol"], row["nearest_id"]) != (None, None)
        if row["fulfils"]:
            assert max(row["chgnet_e_above_hull"], row["7net-0_e_above_hull"]) <= 0.1
            assert all(flag["level"] != "red" for flag in row["flags"])
    page = (out / "report.html").read_text()
    assert "What the others fell at" in page


def test_a_mistake_is_one_message(tmp_path: Path) -> None:
    process = start(["screen", "-m", "mp20", "--formula", "MgAl2O4", "--chemical-system", "Na-Cl", "-o", "x"], tmp_path)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "chemical_system and composition name different elements" in err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


@pytest.mark.timeout(1800)  # half a minute of work, on a machine that has nothing else to do
def test_killed_at_any_instant_it_comes_to_the_same_list(tmp_path: Path) -> None:
    """SIGKILL to the screening alone: its workers finish what they are at, and nothing is computed twice."""
    undisturbed = run([*SMALL, "-o", "a"], tmp_path)
    chance = random.Random(0)
    work = tmp_path / "b" / "work"
    for results in (0, 3, 6):  # how many lie there when it is killed, on a fast machine and on a slow one
        process = start([*SMALL, "-o", "b"], tmp_path)
        while process.poll() is None and len(list(work.glob("*.json"))) <= results:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = run([*SMALL, "-o", "b"], tmp_path)
    assert again["content"] == undisturbed["content"]
    tables = [pq.read_table(tmp_path / name / "shortlist.parquet") for name in "ab"]
    assert tables[0].equals(tables[1])
    lines = [
        json.loads(line)
        for file in (tmp_path / "b" / "work").glob("calls-*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert max(Counter(line["job"] for line in lines).values()) == 1
    assert run([*SMALL, "-o", "b"], tmp_path)["key"] == again["key"], "a finished one costs nothing"
