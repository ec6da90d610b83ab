"""The reference law and the network against arrays of the published implementation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.model.batch import TokenBatch
from crystalforge.model.likelihood import log_prob
from crystalforge.model.network import CrystalFormer
from crystalforge.model.published.haiku import from_haiku, to_haiku
from crystalforge.model.published.parity import check, fixture_config, fixture_tokens, haiku_parameters, load_fixture
from crystalforge.training.config import OptimizerConfig
from crystalforge.training.engine import TorchEngine

SMALL = Path(__file__).with_name("model_tiny.npz")
SHARED = Path(os.environ.get("CRYSTALFORGE_SHARED", Path(__file__).parents[3] / "shared")) / "parity"
GRADIENT = 1e-6  # relative to the tensor's largest entry: the published rotary table is float32
ADAM_LOSS = 1e-4  # nats, after up to 19 steps that each amplify the rotary table's rounding


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no reference data: {path} is not there, the large fixtures are no part of the repository")
    return path


def load_model(fixture: dict[str, np.ndarray], dtype: torch.dtype) -> CrystalFormer:
    config = fixture_config(fixture)
    model = CrystalFormer(config).to(dtype).eval()
    model.load_state_dict(from_haiku(haiku_parameters(fixture), config))
    return model


def test_small_fixture_agrees_in_float32_and_float64() -> None:
    report, ok = check(SMALL)
    assert ok, report
    assert set(report["arrays"]) == {
        "h",
        *(f"logp_{f}{s}" for f in ("w", "a", "xyz", "l") for s in ("", "_f64", "_f64_rope64")),
    }
    # Computed wholly in float64 nothing but rounding is left.
    assert max(v["max_abs_diff"] for k, v in report["arrays"].items() if k.endswith("_rope64")) < 1e-12


@pytest.mark.parametrize("array", ["params/linear_8/w", "h", "logp_l", "logp_w_f64"])
def test_a_difference_is_found(tmp_path: Path, array: str) -> None:
    fixture = load_fixture(SMALL)
    fixture[array] = fixture[array].copy()
    fixture[array].flat[4] += 0.01  # of h the letter d of a crystal that may have it
    np.savez(tmp_path / "changed.npz", **fixture)
    report, ok = check(tmp_path / "changed.npz")
    assert not ok
    assert max(entry["max_abs_diff"] for entry in report["arrays"].values()) > 1e-4


def test_impossible_tokens_are_impossible_in_both() -> None:
    fixture = load_fixture(SMALL)
    model = load_model(fixture, torch.float64)
    scores = log_prob(model, TokenBatch.from_tokens(fixture_tokens(fixture), dtype=torch.float64), law="reference")
    # Row 1 has unsorted letters, row 2 a site without element; the published values are -4e10 and -1e10.
    assert (scores.wyckoff.isinf().numpy() == (fixture["logp_w"] < -1e9)).all()
    assert (scores.element.isinf().numpy() == (fixture["logp_a"] < -1e9)).all()
    assert scores.wyckoff.isinf().sum() == 1


def test_what_is_no_fixture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"text\.npz"):
        check(tmp_path / "text.npz")
    with pytest.raises(InputError, match="absent"):
        check(tmp_path / "absent.npz")
    np.savez(tmp_path / "partial.npz", G=np.ones(3))
    with pytest.raises(InputError, match="lacks config"):
        check(tmp_path / "partial.npz")


def test_shared_tiny_fixture_agrees() -> None:
    report, ok = check(shared("parity_tiny.npz"))
    assert ok, report


def test_shared_full_size_fixture_agrees(tmp_path: Path) -> None:
    """Every eighth row and one of the edge rows: all 128 take half a minute."""
    fixture = load_fixture(shared("parity_dev.npz"))
    rows = np.append(np.arange(0, 128, 8), 127)
    size = len(fixture["G"])
    for name, values in fixture.items():
        if values.ndim and len(values) == size and not name.startswith("params/"):
            fixture[name] = values[rows]
    np.savez(tmp_path / "part.npz", **fixture)
    report, ok = check(tmp_path / "part.npz")
    assert ok, report
    assert report["parameters"] == 4_833_575


def test_loss_and_gradient_agree_in_float64() -> None:
    fixture = load_fixture(shared("parity_tiny.npz"))
    model = load_model(fixture, torch.float64)
    tokens = fixture_tokens(fixture)[fixture["kind"] < 2]
    scores = log_prob(model, TokenBatch.from_tokens(tokens, dtype=torch.float64).truncated(), law="reference")
    loss = -scores.total.mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(fixture["loss_f64"]), abs=1e-5)
    ours = to_haiku({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model.config)
    theirs = haiku_parameters(fixture, "grad_f64")
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=GRADIENT * max(1.0, np.abs(gradient).max()))


def test_twenty_steps_of_our_engine_follow_the_published_ones() -> None:
    """In pieces of similar length, as training makes them."""
    fixture = load_fixture(shared("parity_tiny.npz"))
    model = load_model(fixture, torch.float64)
    tokens = fixture_tokens(fixture)[fixture["kind"] < 2]
    by_length = np.array_split(np.argsort(tokens.n_sites, kind="stable"), 4)
    pieces = [TokenBatch.from_tokens(tokens[rows], dtype=torch.float64).truncated() for rows in by_length]
    engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-3, decay=0.01))
    for loss_theirs, norm_theirs in zip(fixture["adam_losses_f64"], fixture["adam_gradnorm_f64"], strict=True):
        total = 0.0
        for piece in pieces:
            loss = -log_prob(model, piece, law="reference").total.sum() / len(tokens)
            engine.backward(loss)
            total += float(loss.detach())
        assert total == pytest.approx(float(loss_theirs), abs=ADAM_LOSS)
        assert engine.step() == pytest.approx(float(norm_theirs), rel=1e-4)
    after = to_haiku(model.state_dict(), model.config)
    for name, values in haiku_parameters(fixture, "params_after20").items():
        np.testing.assert_allclose(after[name], values, rtol=0, atol=1e-4)
