"""Jobs of several processes under torchrun, killed and taken up again: ranks_worker.py KIND SOURCE OUT.

KIND is pretrain (on the token store SOURCE), ppo, balance or surrogate (of the model SOURCE). OUT/whole is never
disturbed; `killed` dies ten times by SIGKILL, of one rank or of the whole job, between which two of its checkpoints
are damaged; `fewer` goes on alone from where two were killed; `more` goes on with two from where one stopped.
torchrun's own agent starts the ranks; it forks them, which saves importing torch for each. Prints a record of each
kill as a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from crystalforge.crystal.convert import to_crystals
from crystalforge.data.store import TokenStore
from crystalforge.model.checkpoint import load_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.sampling.sampler import sample
from crystalforge.rl.config import FinetuneConfig, MonitorConfig
from crystalforge.rl.finetune import finetune
from crystalforge.rl.testing import ElementReward, ElementScreen
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.pretrain import pretrain
from crystalforge.training.ranks import Ranks, open_ranks

KILLS = 10
STEPS = {"pretrain": 28, "ppo": 14, "balance": 14, "surrogate": 14}
MODEL = ModelConfig(
    layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8, dropout=0.0, attention_dropout=0.0
)
WORTH = dict.fromkeys(range(5, 25), 1.0)
# Balance with all that it has beside PPO: crystals drawn until enough pass, earlier ones, a moving average. At PPO's
# rate it would carry rounding to any size within these steps, and other ranks would end elsewhere.
OWN: dict[str, dict[str, Any]] = {
    "ppo": {},
    "balance": {"learning_rate": 1e-3, "filter": True, "kept": 12, "average": 0.8, "fade": 0.5},
    # And with what nobody scored: from the third step on there are enough judged crystals to guess from. It draws from
    # the policy within a step, where rounding may send a draw elsewhere: at 1e-3 other ranks ended 3e-3 away.
    "surrogate": {
        "algorithm": "balance", "batch_size": 20, "learning_rate": 5e-5, "filter": True, "fade": 0.5,
        "surrogate": {"waves": 2, "batch_size": 25, "minibatch": 15},
    },
}  # fmt: skip


def train(store: Path, out: Path, steps: int, ranks: Ranks) -> None:
    """Pre-training; a batch of nine gives two ranks unequal shares."""
    optimizer = OptimizerConfig(learning_rate=1e-2, ema_decay=0.9)
    config = PretrainConfig(
        epochs=None, steps=steps, batch_size=9, checkpoint_every=3, validate_every=7, log_every=1, optimizer=optimizer
    )
    pretrain(MODEL, config, TokenStore.open(store), out, seed=5, ranks=ranks)


def tune(algorithm: str, base: Path, out: Path, steps: int, ranks: Ranks) -> None:
    """Reinforcement on a reward that costs nothing, with a judge of its own."""
    weights = np.zeros(230)
    weights[[220, 224, 226]] = 1.0
    common = {"batch_size": 16, "learning_rate": 5e-3, "minibatches": 2, "checkpoint_every": 2, "piece_tokens": 200}
    monitor = MonitorConfig(every=4)
    own = {"algorithm": algorithm, "steps": steps, "monitor": monitor} | OWN[algorithm]
    config = FinetuneConfig.model_validate(common | own)
    judge = ElementReward(WORTH, name="other")
    reward = ElementReward(WORTH)
    finetune(config, base, reward, weights, out, seed=3, held_out=judge, screen=ElementScreen(110), ranks=ranks)


JOBS = {"pretrain": train} | {algorithm: partial(tune, algorithm) for algorithm in OWN}


def rank(kind: str, source: str, out: str, steps: int) -> None:
    """What each process does."""
    with open_ranks("cpu") as ranks:
        Path(out, f"rank-{ranks.rank}.pid").write_text(str(os.getpid()))
        JOBS[kind](Path(source), Path(out), steps, ranks)


def session(kind: str, source: Path, out: Path, *, ranks: int = 2, steps: int | None = None) -> int:
    """Start a job from wherever `out` stands; the id of its agent, which leads a process group."""
    out.mkdir(parents=True, exist_ok=True)
    for note in out.glob("*.pid"):
        note.unlink()
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    log = os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        max_restarts=0, monitor_interval=0.05, start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, rank)(kind, str(source), str(out), steps or STEPS[kind])
        os._exit(0)
    except BaseException:
        os._exit(1)


def finished(process: int) -> bool:
    """Wait for a job; whether it ended well."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def last_step(out: Path) -> int:
    """The newest step that is on record."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:  # being written
            continue
    return -1


def strike(process: int, out: Path, target: int, chance: random.Random) -> dict[str, object]:
    """Let the job come to a step, wait a moment and kill a rank of it, or all of it."""
    while last_step(out) < target or len(list(out.glob("*.pid"))) < 2:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            raise RuntimeError(f"the job ended by itself ({status}):\n{(out / 'log').read_text()}")
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.05))
    step, victim = last_step(out), chance.choice(["rank 0", "rank 1", "job"])
    pids = {f"rank {n}": int((out / f"rank-{n}.pid").read_text()) for n in (0, 1)}
    if victim == "job":
        os.killpg(process, signal.SIGKILL)
    else:
        os.kill(pids[victim], signal.SIGKILL)
    failed = not finished(process)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    survivors = [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
    return {"step": step, "victim": victim, "failed": failed, "survivors": survivors}


def damage(out: Path, how: str) -> str | None:
    """Spoil the newest checkpoint's tensors; its name, or None when there are not two."""
    found = sorted((*out.glob("snapshots/step-*"), *out.glob("checkpoints/step-*")))
    if len(found) < 2:
        return None
    file = next(found[-1].glob("[op][po][tl]*.safetensors"), found[-1] / "tensors.safetensors")
    content = bytearray(file.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "flip" else content[:-7])
    return found[-1].name


def main(kind: str, source: Path, out: Path, chance: random.Random) -> None:
    assert finished(session(kind, source, out / "whole")), (out / "whole" / "log").read_text()
    killed = out / "killed"
    targets = sorted(chance.sample(range(STEPS[kind] - 3), KILLS))
    for number, target in enumerate(targets):
        record = strike(session(kind, source, killed), killed, target, chance)
        record["damaged"] = {6: "flip", 8: "truncate"}.get(number)
        if record["damaged"]:
            record["checkpoint"] = damage(killed, str(record["damaged"]))
        print(json.dumps(record), flush=True)
        if number == KILLS // 2:
            shutil.copytree(killed, out / "fewer")
    assert finished(session(kind, source, killed)), (killed / "log").read_text()
    assert finished(session(kind, source, out / "fewer", ranks=1)), (out / "fewer" / "log").read_text()
    assert finished(session(kind, source, out / "more", ranks=1, steps=STEPS[kind] // 2))
    assert finished(session(kind, source, out / "more")), (out / "more" / "log").read_text()


if __name__ == "__main__":
    torch.set_num_threads(1)
    import torch._dynamo  # which every first step of an optimiser imports, for a second and more

    kind, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if kind in OWN:  # all tables are loaded before the first fork
        to_crystals(sample(load_model(source).model, np.full(4, 225), seed=0).tokens, primitive=True)
    main(kind, source, out, random.Random(2))
