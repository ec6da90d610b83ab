"""Maximum likelihood: it learns, it resumes exactly, it refuses what it cannot use."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.data.store import Rows, TokenStore
from crystalforge.model.checkpoint import load_model, weights_hash
from crystalforge.model.config import ModelConfig
from crystalforge.model.likelihood import log_prob
from crystalforge.model.network import CrystalFormer
from crystalforge.training.config import OptimizerConfig, PretrainConfig
from crystalforge.training.engine import TorchEngine
from crystalforge.training.pretrain import pretrain, training_rows
from crystalforge.training.ranks import Ranks
from crystalforge.training.steps import evaluate, pieces, train_step

SMALL = ModelConfig(layers=1, heads=2, head_size=4, width=8, embedding=4, first_wyckoff_hidden=8)
SITES = ModelConfig(
    layout="sites", layers=1, heads=2, head_size=4, width=8, embedding=4, norm="rms", gated=True, coord_head="anchored"
)
MakeStore = Callable[..., TokenStore]
ROUNDING = 2e-4  # nats: float32 sums over up to 100 tokens in another order


def config(**settings: object) -> PretrainConfig:
    defaults = {"epochs": None, "steps": 12, "batch_size": 8, "optimizer": {"learning_rate": 1e-2}}
    return PretrainConfig.model_validate(defaults | settings)


def final(model_dir: Path) -> str:
    return weights_hash(load_model(model_dir).model)


def test_it_learns_and_says_so(make_store: MakeStore, tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    result = pretrain(
        SMALL, config(steps=80, validate_every=40), make_store(60, 12), tmp_path / "run", seed=1,
        on_metrics=lambda step, metrics: seen.append((step, metrics)),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in seen] == [line["step"] for line in lines]
    losses = [line["val/nll"] for line in lines if "val/nll" in line]
    assert losses[-1] < losses[0] < 150
    assert lines[0]["train/nll"] > lines[-2]["train/nll"]
    last = lines[-1]
    assert last["val/nll"] == pytest.approx(
        sum(last[f"val/nll_{name}"] for name in ("wyckoff", "element", "coords", "lattice"))
    )
    assert result.metrics["val/nll"] == losses[-1]
    assert result.metrics["steps"] == 80
    loaded = load_model(result.model_dir)
    assert loaded.info["stage"] == "pretrain"
    rows = make_store(60, 12).split("val")
    again = evaluate(loaded.model, make_store(60, 12), rows)
    assert again["val/nll"] == pytest.approx(losses[-1], abs=ROUNDING)


def test_the_same_seed_gives_the_same_weights(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(40, 8)
    hashes = [
        final(pretrain(SMALL, config(), store, tmp_path / str(n), seed=s).model_dir) for n, s in enumerate((1, 1, 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_can_be_made_longer(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(40, 8)
    whole = pretrain(SMALL, config(steps=17), store, tmp_path / "whole", seed=1)
    pretrain(SMALL, config(steps=6), store, tmp_path / "parts", seed=1)
    parts = pretrain(SMALL, config(steps=17), store, tmp_path / "parts", seed=1)
    assert final(whole.model_dir) == final(parts.model_dir)
    again = pretrain(SMALL, config(steps=17), store, tmp_path / "parts", seed=1)
    assert again.metrics == parts.metrics


def test_a_run_killed_again_and_again_ends_the_same(make_store: MakeStore, tmp_path: Path) -> None:
    """SIGKILL at random instants, start-up and saving included."""
    store = make_store(40, 8)
    steps = 60
    script = Path(__file__).with_name("killed.py")
    paths = os.pathsep.join(p for p in sys.path if p)

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(script), str(store.path), str(out), "5", str(steps)],
            env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    undisturbed = start(tmp_path / "whole")
    assert undisturbed.wait(timeout=300) == 0
    chance = random.Random(3)
    out, kills = tmp_path / "killed", 0
    for wait_for in (14, 35):
        child = start(out)
        deadline = time.monotonic() + 200
        while child.poll() is None and time.monotonic() < deadline:
            if any(int(p.name[5:]) >= wait_for for p in (out / "snapshots").glob("step-*")):
                time.sleep(chance.uniform(0, 0.05))
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 1  # the last may come too late on a fast machine
    assert start(out).wait(timeout=300) == 0
    assert final(out / "model") == final(tmp_path / "whole" / "model")

    def untimed(run: str) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_s")} for line in lines]

    assert [line["step"] for line in untimed("killed")] == [line["step"] for line in untimed("whole")]
    for ours, theirs in zip(untimed("killed"), untimed("whole"), strict=True):
        # A window of means that a kill cut short restarts at the snapshot; validations must agree exactly.
        if "val/nll" in theirs:
            assert ours == theirs


def test_a_run_may_begin_with_a_models_weights(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(40, 8)
    first = pretrain(SMALL, config(), store, tmp_path / "first", seed=1)
    idle = pretrain(SMALL, config(steps=0), store, tmp_path / "idle", seed=2, start=first.model_dir)
    assert final(idle.model_dir) == final(first.model_dir)
    second = pretrain(SMALL, config(steps=30), store, tmp_path / "second", seed=2, start=first.model_dir)
    assert second.metrics["val/nll"] < first.metrics["val/nll"]
    wide = SMALL.model_copy(update={"width": 16})
    with pytest.raises(InputError, match="width is 8, asked for 16"):
        pretrain(wide, config(), store, tmp_path / "wide", seed=2, start=first.model_dir)


def test_other_descriptions_are_drawn_anew_each_time_and_the_same_when_repeated(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(40, 8)
    hashes = [
        final(pretrain(SMALL, config(redescribe=value), store, tmp_path / str(n), seed=1).model_dir)
        for n, value in enumerate((True, True, False))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_damaged_snapshot_costs_time_not_the_run(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(40)
    whole = pretrain(SMALL, config(steps=12, checkpoint_every=4), store, tmp_path / "whole", seed=1)
    pretrain(SMALL, config(steps=8, checkpoint_every=4), store, tmp_path / "hurt", seed=1)
    newest = max((tmp_path / "hurt" / "snapshots").iterdir()) / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    hurt = pretrain(SMALL, config(steps=12, checkpoint_every=4), store, tmp_path / "hurt", seed=1)
    assert final(whole.model_dir) == final(hurt.model_dir)


def test_another_run_in_the_same_folder_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(20)
    pretrain(SMALL, config(steps=2), store, tmp_path / "run", seed=1)
    for settings, seed in (({"batch_size": 4}, 1), ({}, 2)):
        with pytest.raises(InputError, match="another model, data set, seed"):
            pretrain(SMALL, config(steps=4, **settings), store, tmp_path / "run", seed=seed)


def test_an_empty_split_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training split is empty"):
        pretrain(SMALL, config(), make_store(0, 4), tmp_path / "run", seed=1)


def test_impossible_crystals_are_named(make_store: MakeStore, tmp_path: Path) -> None:
    tokens = make_store(10).tokens(slice(None))
    lattice = tokens.lattice.copy()
    lattice[3, 0] = 0.1
    store = make_store(10, tokens=replace(tokens, lattice=lattice), name="bad")
    with pytest.raises(InputError, match=r"record 3 \(c3\).*outside"):
        pretrain(SMALL, config(), store, tmp_path / "run", seed=1)
    assert pretrain(SMALL, config(law="reference", steps=1), store, tmp_path / "run", seed=1).metrics["steps"] == 1


def test_a_model_too_short_for_the_data_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sites, the model takes 9 at most"):
        pretrain(SMALL.model_copy(update={"max_sites": 10}), config(), make_store(20), tmp_path / "run", seed=1)


def test_fewer_crystals_than_a_batch_still_train(make_store: MakeStore, tmp_path: Path) -> None:
    result = pretrain(SMALL, config(batch_size=100, steps=3), make_store(5), tmp_path / "run", seed=1)
    assert result.metrics["epoch"] == 2
    assert "val/nll" not in result.metrics


def test_no_step_at_all_gives_the_initial_model(make_store: MakeStore, tmp_path: Path) -> None:
    result = pretrain(SMALL, config(steps=0), make_store(5, 5), tmp_path / "run", seed=1)
    assert result.metrics["steps"] == 0
    assert result.metrics["val/nll"] > 0


def test_the_clock_can_end_a_run(make_store: MakeStore, tmp_path: Path) -> None:
    began = time.monotonic()
    result = pretrain(SMALL, config(steps=None, max_seconds=0.5), make_store(20), tmp_path / "run", seed=1)
    assert result.metrics["steps"] > 0
    assert time.monotonic() - began < 30


def test_it_stops_when_validation_no_longer_improves(make_store: MakeStore, tmp_path: Path) -> None:
    """At an absurd learning rate nothing improves."""
    settings = config(steps=200, validate_every=2, patience=3, optimizer={"learning_rate": 3.0})
    result = pretrain(SMALL, settings, make_store(20, 10), tmp_path / "run", seed=1)
    assert result.metrics["steps"] < 100


@pytest.mark.parametrize("fast", [{"bucket": True}, {"piece_tokens": 30}])
def test_how_a_batch_is_cut_does_not_change_its_gradient(make_store: MakeStore, fast: dict[str, int]) -> None:
    """Truncated pieces against one padded batch of all slots."""
    store = make_store(24)
    rows = store.split("train")
    torch.manual_seed(0)
    model = CrystalFormer(SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    gradients = []
    for limit in (10**9, int(fast.get("piece_tokens", 600))):
        model.zero_grad()
        total = 0.0
        for piece in pieces(store, rows, limit):
            scores = log_prob(model, piece if limit < 10**9 else piece.with_slots(21)).total
            (-scores.sum() / len(rows)).backward()
            total += float(scores.detach().sum())
        gradients.append((total / len(rows), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=ROUNDING)
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_ranks_share_a_batch_and_their_gradients_add_up(make_store: MakeStore) -> None:
    """Without dropout the gradients of two ranks sum to that of one process."""

    class Apart(Ranks):
        """A rank that the test adds up itself."""

        def sum(self, values: torch.Tensor) -> torch.Tensor:
            return values

        def equalise(self, tensors: Iterable[torch.Tensor]) -> None:
            pass

    class Gathering(TorchEngine):
        def step(self) -> float:  # keeps the gradient for the test
            self.steps += 1
            return 0.0

    store = make_store(11)
    gradients = []
    for world in (1, 2):
        total: list[torch.Tensor] = []
        for rank in range(world):
            torch.manual_seed(0)
            quiet = SMALL.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
            engine = Gathering(CrystalFormer(quiet).double(), OptimizerConfig(), Apart(rank, world))
            train_step(engine, store, store.split("train"), config(), seed=1)
            parts = [p.grad for p in engine.parameters if p.grad is not None]
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        gradients.append(total)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # coordinates come in float32


def test_pieces_cover_the_batch_within_their_limit(make_store: MakeStore) -> None:
    store = make_store(24)
    rows = np.sort(store.split("train"))[::-1].copy()
    parts = list(pieces(store, rows, 200))
    assert sum(len(part) for part in parts) == 24
    assert all(part.slots * 5 * len(part) <= 200 or len(part) == 1 for part in parts)
    drawn = np.concatenate([part.element.sum(dim=1).numpy() for part in parts])  # in another order: by length
    assert sorted(drawn.tolist()) == sorted(store.tokens(rows).element.sum(axis=1).tolist())


@pytest.mark.parametrize("model", [SMALL, SITES], ids=["tokens", "sites"])
def test_bfloat16_learns_as_float32_does(model: ModelConfig, make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(60, 12)
    losses = {}
    for precision in ("float32", "bfloat16"):
        optimizer = OptimizerConfig.model_validate({"learning_rate": 1e-2, "precision": precision})
        result = pretrain(model, config(steps=40, optimizer=optimizer), store, tmp_path / precision, seed=1)
        losses[precision] = result.metrics["val/nll"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] != losses["float32"]


def test_crystals_too_far_above_the_hull_are_passed_over_and_unknown_ones_are_not(
    make_store: MakeStore, tmp_path: Path
) -> None:
    tokens = make_store(30).tokens(np.arange(30))
    above = np.tile([0.05, np.nan, 0.3], 10)
    kept = np.flatnonzero(~(above > 0.1))
    stores = {}
    for name, rows in (("all", np.arange(30)), ("kept", kept)):
        content = Rows.of(
            tokens[rows],
            [f"c{row}" for row in rows],
            split=np.zeros(len(rows), np.int8),
            properties={"e_above_hull": above[rows]},
        )
        TokenStore.write(
            tmp_path / name,
            [content],
            rows=len(rows),
            sites=content.wyckoff.size,
            id_bytes=sum(map(len, content.ids)),
        )
        stores[name] = TokenStore.open(tmp_path / name)
    limited = config(epochs=2, steps=None, max_e_above_hull=0.1)
    np.testing.assert_array_equal(training_rows(stores["all"], limited), kept)
    first = pretrain(SMALL, limited, stores["all"], tmp_path / "first", seed=1)
    second = pretrain(SMALL, config(epochs=2, steps=None), stores["kept"], tmp_path / "second", seed=1)
    assert first.metrics["steps"] == second.metrics["steps"] == 2 * 3  # 20 of 30 crystals, 8 a batch
    assert final(first.model_dir) == final(second.model_dir)


def test_the_rate_falls_to_nothing_by_the_clock(make_store: MakeStore, tmp_path: Path) -> None:
    settings = config(steps=None, max_seconds=2.0, cooldown=0.5, log_every=1, optimizer={"learning_rate": 1e-3})
    pretrain(SMALL, settings, make_store(24), tmp_path / "run", seed=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["learning_rate"] == 1e-3
    assert lines[-1]["seconds"] >= 2.0
    for before, line in pairwise(lines):  # the rate of a step is that of the time at which the one before had ended
        expected = 1e-3 * min(1.0, max(0.0, 1.0 - before["seconds"] / 2.0) / 0.5)
        assert line["learning_rate"] == pytest.approx(expected)
    assert 0 < lines[-1]["learning_rate"] < 5e-4
    with pytest.raises(ValueError, match="max_seconds"):
        config(cooldown=0.5)
