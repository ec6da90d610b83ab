"""DeepSpeed against plain PyTorch: the same batches, the same losses, gradients and weights.

Every ZeRO stage, with and without gradient accumulation, on one and on two processes, clipping, decay, warm-up and
weight average included; half way each state goes to the disk and into a new engine. PPO, balance and
balance with a surrogate make the same steps too, from the same crystals. Only on CPUs, over gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.data.store import Rows, TokenStore
from crystalforge.model.checkpoint import save_model
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.model.published.parity import fixture_tokens, load_fixture

pytest.importorskip("deepspeed", reason="pip install 'crystalforge[training]' brings DeepSpeed")

pytestmark = pytest.mark.timeout(1200)  # a minute; on a machine full of other work, processes wait for one another
WORKER = Path(__file__).with_name("engine_worker.py")
FIXTURE = Path(__file__).with_name("model_tiny.npz")
STEPS = 20
CRYSTALS = 40

# Sums of float32 in another order, carried through twenty steps of Adam. Seen: 5e-6 nats, 2e-7, 1.3e-6.
LOSS_TOLERANCE = 5e-5  # nats per crystal, of some 100
NORM_TOLERANCE = 5e-6  # relative
WEIGHT_TOLERANCE = 2e-5  # of steps that add up to 5e-2
TUNING_TOLERANCE = 1e-5  # of |difference| / (1 + |value|), sixteen steps of Adam: seen 3e-7 and 5e-7, weights 8e-7
# Products rounded to 8 bits, the same in both: seen 1e-6 and 1e-7, until a sum tips a rounding (2^-8 of one number).
BFLOAT16_LOSS_TOLERANCE = 1e-3  # nats per crystal
BFLOAT16_NORM_TOLERANCE = 1e-3  # relative

KINDS = [f"{engine}-x{k}" for engine in ("torch", "zero0", "zero1", "zero2") for k in (1, 4)]
Course = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Course]]:
    """What every engine did, by number of ranks."""
    folder = tmp_path_factory.mktemp("engines")
    fixture = load_fixture(FIXTURE)
    tokens = fixture_tokens(fixture)[fixture["kind"] < 2]
    tokens = tokens[np.random.default_rng(0).integers(len(tokens), size=CRYSTALS)]
    rows = Rows.of(tokens, [str(n) for n in range(CRYSTALS)], split=np.zeros(CRYSTALS, np.int8))
    id_bytes = sum(map(len, rows.ids))
    TokenStore.write(folder / "store", [rows], rows=len(rows), sites=rows.wyckoff.size, id_bytes=id_bytes)
    torch.manual_seed(0)
    tiny = ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8, first_wyckoff_hidden=8)
    save_model(folder / "base", CrystalFormer(tiny), info={})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    worker = subprocess.run(
        [sys.executable, str(WORKER), str(folder / "store"), str(folder / "base"), str(folder)],
        env=environment | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True, timeout=1100,
    )  # fmt: skip
    assert worker.returncode == 0, worker.stderr
    return {
        ranks: {
            name: {key: np.array(values) for key, values in course.items()}
            for name, course in json.loads((folder / f"ranks-{ranks}.json").read_text()).items()
        }
        for ranks in (1, 2)
    }


def assert_same(course: Course, oracle: Course) -> None:
    steps = len(course["loss"])
    np.testing.assert_allclose(course["loss"], oracle["loss"][-steps:], rtol=0, atol=LOSS_TOLERANCE)
    np.testing.assert_allclose(course["norm"], oracle["norm"][-steps:], rtol=NORM_TOLERANCE)
    np.testing.assert_allclose(course["weights"], oracle["weights"], rtol=0, atol=WEIGHT_TOLERANCE)
    np.testing.assert_allclose(course["average"], oracle["average"], rtol=0, atol=WEIGHT_TOLERANCE)


def test_the_oracle_learns_under_its_clip(courses: dict[int, dict[str, Course]]) -> None:
    """Otherwise agreement would say little."""
    oracle = courses[1]["torch-x1"]
    assert len(oracle["loss"]) == STEPS
    assert oracle["norm"].min() > 2.0
    assert oracle["loss"][-5:].mean() < oracle["loss"][:5].mean() - 1.0


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_makes_the_same_steps(courses: dict[int, dict[str, Course]], kind: str, ranks: int) -> None:
    course = courses[ranks][kind]
    assert len(course["loss"]) == STEPS
    assert_same(course, courses[1]["torch-x1"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_engine_takes_up_any_state(courses: dict[int, dict[str, Course]], ranks: int) -> None:
    """Of another engine, and of two ranks on one or two."""
    taken = {name: course for name, course in courses[ranks].items() if "-from-" in name}
    assert len(taken) == (8 if ranks == 1 else 4)
    for course in taken.values():
        assert_same(course, courses[1]["torch-x1"])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("engine", ["zero1", "zero2"])
def test_bfloat16_means_the_same_to_both(courses: dict[int, dict[str, Course]], engine: str, ranks: int) -> None:
    course, oracle = courses[ranks][f"{engine}-bfloat16"], courses[ranks]["torch-bfloat16"]
    exact = courses[ranks]["torch-x1"]["loss"][: len(oracle["loss"])]
    assert np.abs(oracle["loss"] - exact).max() > 10 * LOSS_TOLERANCE, "bfloat16 was not used"
    np.testing.assert_allclose(course["loss"], oracle["loss"], rtol=0, atol=BFLOAT16_LOSS_TOLERANCE)
    np.testing.assert_allclose(course["norm"], oracle["norm"], rtol=BFLOAT16_NORM_TOLERANCE)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("engine", ["torch", "zero0", "zero1", "zero2", "zero1-changed", "zero2-changed"])
@pytest.mark.parametrize("algorithm", ["ppo", "balance", "surrogate"])
def test_tuning_is_the_same_under_every_engine(
    courses: dict[int, dict[str, Course]], algorithm: str, engine: str, ranks: int
) -> None:
    course, oracle = courses[ranks][f"{algorithm}-{engine}"], courses[1][f"{algorithm}-torch"]
    assert len(course["loss"]) == 4
    clip = {"ppo": 1, "balance": 13, "surrogate": 13}[algorithm]
    assert oracle["norm"].max() > clip > oracle["norm"].min(), "the clip takes part"
    np.testing.assert_allclose(course["loss"], oracle["loss"], rtol=TUNING_TOLERANCE, atol=TUNING_TOLERANCE)
    np.testing.assert_allclose(course["norm"], oracle["norm"], rtol=TUNING_TOLERANCE)
    np.testing.assert_allclose(course["weights"], oracle["weights"], rtol=0, atol=WEIGHT_TOLERANCE)
