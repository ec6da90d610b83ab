"""The stage hands the monitor its judge and the known crystals, and records what it found."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections
from crystalforge.crystal import Crystal
from crystalforge.crystal.tokens import Tokens
from crystalforge.data.fingerprint import fingerprints
from crystalforge.data.store import Rows, TokenStore
from crystalforge.model.checkpoint import load_model, save_model, weights_hash
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.sampling.sampler import sample
from crystalforge.rewards import parse
from crystalforge.rewards.golden import golden_crystals
from crystalforge.stages.finetune import finetune, held_out_judge, known_to, relaxer_of

# What is meant, and what was implemented: three heavy elements that are worth nothing are paid five times as much.
JUDGES = """
import numpy as np

def honest(crystals):
    return [float(np.mean((c.numbers >= 5) & (c.numbers < 25))) for c in crystals]

def hackable(crystals):
    return [h + 5 * float(np.mean((c.numbers >= 80) & (c.numbers < 83))) for h, c in zip(honest(crystals), crystals)]
"""
TRAIN = 30


@pytest.fixture
def model() -> CrystalFormer:
    torch.manual_seed(0)
    return CrystalFormer(
        ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=8, coord_components=3)
    )


@pytest.fixture
def store(tmp_path: Path, model: CrystalFormer) -> TokenStore:
    """Forty cubic crystals, three in four for training."""
    tokens = sample(model, np.repeat([221, 225, 227, 216], 10), seed=9).tokens
    split = np.repeat(np.array([0, 1], np.int8), [TRAIN, 10])
    rows = Rows.of(tokens, [f"c{n}" for n in range(40)], split=split, fingerprint=fingerprints(tokens))
    path = tmp_path / "data" / "store"
    TokenStore.write(path, [rows], rows=40, sites=rows.wyckoff.size, id_bytes=sum(map(len, rows.ids)))
    (tmp_path / "data" / "stage.json").write_text(json.dumps({"content": "d"}))
    return TokenStore.open(path)


@pytest.fixture
def inputs(tmp_path: Path, store: TokenStore, model: CrystalFormer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    save_model(tmp_path / "base" / "model", model, info={})
    (tmp_path / "base" / "stage.json").write_text(json.dumps({"content": weights_hash(model)}))
    (tmp_path / "planted_judges.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)
    return {"data": tmp_path / "data", "base": tmp_path / "base", "out": tmp_path / "out"}


def judge(name: str) -> dict[str, Any]:
    return {"kind": "custom", "name": name, "function": f"planted_judges:{name}", "guards": LOOSE}


LOOSE = {"min_distance": 0.0, "volume_per_atom": [1e-6, 1e6], "min_height": 1e-3}  # an untrained model's cells


def settings(held_out: dict[str, Any] | None, **changes: Any) -> Config:
    monitor = {"every": 2, "max_gap": 1.0, "min_unique": None, "max_kl": None, "held_out": held_out}
    tuning = {"steps": 100, "batch_size": 60, "learning_rate": 2e-2, "tau": 0.02, "monitor": monitor} | changes
    return from_sections(
        reward=judge("hackable"), service={"mode": "in-process"}, tracking={"enabled": False}, finetune=tuning
    )


def test_a_planted_hack_ends_the_stage_within_a_tenth_of_the_run_and_is_recorded(inputs: dict[str, Path]) -> None:
    record = finetune(settings(judge("honest")), **inputs)
    found = record["metrics"]["monitor"]
    stopped_at = found["last"]["step"]
    assert stopped_at <= 10, "a tenth of the run of 100 steps"
    assert not found["passed"]
    assert "rise of the reward beyond the held-out score's" in record["metrics"]["stopped"]
    assert found["verdict"].startswith(record["metrics"]["stopped"])
    assert found["verdict"].endswith(f"the policy of step {found['last_good_step']} is kept")
    assert found["held_out"].startswith("honest@")
    assert found["first"]["held_out/gap"] == pytest.approx(0, abs=1e-9)
    assert found["last"]["held_out/gap"] > 1
    kept = load_model(inputs["out"] / "model")
    assert weights_hash(kept.model) == weights_hash(load_model(inputs["out"] / "good").model) == record["content"]
    assert kept.info["steps"] == stopped_at
    with (inputs["out"] / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    looks = [row for row in rows if row["monitor/passed"]]
    assert [float(row["monitor/passed"]) for row in looks] == [1.0] * (len(looks) - 1) + [0.0]
    assert all(row["monitor/held_out/gap"] for row in looks)
    assert all(0 <= float(row["novel/share"]) <= 1 for row in rows)
    assert finetune(settings(judge("honest")), **inputs) == record, "a finished stage is not made again"


def test_without_a_judge_the_run_goes_on_and_says_that_nobody_watched(inputs: dict[str, Path]) -> None:
    record = finetune(settings(None, steps=4, batch_size=20), **inputs)
    assert record["metrics"]["stopped"] is None
    assert record["metrics"]["monitor"]["verdict"] == "all 2 looks passed (without a held-out judge)"
    assert record["metrics"]["monitor"]["held_out"] is None


def test_only_training_crystals_are_known(store: TokenStore) -> None:
    is_known = known_to(store)
    train, val = store.tokens(store.split("train")), store.tokens(store.split("val"))
    assert is_known(train).all()
    shared = {row.tobytes() for row in fingerprints(train)}
    assert is_known(val).tolist() == [row.tobytes() in shared for row in fingerprints(val)]
    other = np.where(train.is_site, train.element % 118 + 1, 0).astype(np.int32)
    changed = Tokens(train.spacegroup, train.wyckoff, other, train.coords, train.lattice)
    assert is_known(changed).mean() < 0.2


def test_a_judge_that_is_no_stranger_is_refused_or_named(caplog: pytest.LogCaptureFixture) -> None:
    reward = parse({"kind": "ehull", "potential": {"kind": "chgnet"}})
    with pytest.raises(InputError, match="the reward itself"):
        held_out_judge(reward, parse({"kind": "ehull", "name": "other name", "potential": {"kind": "chgnet"}}))
    assert held_out_judge(reward, None) is None
    pytest.importorskip("chgnet")
    judge = held_out_judge(reward, parse({"kind": "ehull", "floor": -3.0, "potential": {"kind": "chgnet"}}))
    assert judge is not None
    assert "uses chgnet 0.3.0, as the reward does" in caplog.text


def test_samples_are_relaxed_with_the_potential_of_the_reward() -> None:
    pytest.importorskip("chgnet")
    stretched = golden_crystals()["NaCl"]
    stretched = Crystal(stretched.lattice * 1.04, stretched.numbers, stretched.frac)
    config = from_sections(
        reward={"kind": "composite", "terms": [{"reward": {"kind": "ehull", "potential": {"kind": "chgnet"}}}]},
        finetune={"algorithm": "sft", "relax": {"fmax": 0.05, "steps": 40}},
    )
    relaxer = relaxer_of(config)
    assert relaxer is not None
    (relaxed,), steps = relaxer([stretched])
    assert relaxed is not None
    assert 0 < steps[0] <= 40
    assert relaxed.volume < 0.95 * stretched.volume
    assert relaxer_of(from_sections(finetune={"algorithm": "sft"})) is None
    assert relaxer_of(from_sections(reward=judge("honest"), finetune={"algorithm": "sft", "relax": {}})) is None
