"""What was scored comes back as it was, or not at all."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from crystalforge.crystal.tokens import Tokens
from crystalforge.rewards.protocol import Scores
from crystalforge.rl import journal


@pytest.fixture
def scored() -> journal.Scored:
    rng = np.random.default_rng(0)
    wyckoff = np.array([[1, 2, 3, 0], [1, 0, 0, 0], [2, 2, 0, 0]], dtype=np.int32)
    mask = wyckoff > 0
    tokens = Tokens(
        np.array([225, 12, 12], dtype=np.int32),
        wyckoff,
        (mask * rng.integers(1, 118, (3, 4))).astype(np.int32),
        mask[..., None] * rng.random((3, 4, 3)),
        rng.random((3, 6)) * 9,
    )
    scores = Scores(
        np.array([0.1, -1.0, 3.0]), np.array([0, 3, 0], dtype=np.int32), {"e_above_hull": np.array([0.2, np.nan, 0.1])}
    )
    return journal.Scored(np.array([10, 11, 12]), tokens, scores, np.array([-30.5, -1e3, -7.25]))


def test_a_step_comes_back_bit_for_bit(tmp_path, scored):
    path = journal.step_file(tmp_path, 7)
    journal.write(path, 7, scored)
    back = journal.recall(path, scored.index)
    assert back is not None
    for name in ("spacegroup", "wyckoff", "element", "coords", "lattice"):
        np.testing.assert_array_equal(getattr(back.tokens, name), getattr(scored.tokens, name))
        assert getattr(back.tokens, name).dtype == getattr(scored.tokens, name).dtype
    np.testing.assert_array_equal(back.scores.values, scored.scores.values)
    np.testing.assert_array_equal(back.scores.status, scored.scores.status)
    np.testing.assert_array_equal(back.scores.components["e_above_hull"], scored.scores.components["e_above_hull"])
    np.testing.assert_array_equal(back.log_prob, scored.log_prob)
    assert [step for step, _ in journal.steps(tmp_path)] == [7]
    assert list(journal.steps(tmp_path, before=7)) == []


def test_a_record_of_other_crystals_is_not_taken(tmp_path, scored, caplog):
    path = journal.step_file(tmp_path, 0)
    journal.write(path, 0, scored)
    assert journal.recall(path, scored.index + 3) is None
    assert "other crystals" in caplog.text
    assert journal.recall(journal.step_file(tmp_path, 1), scored.index) is None


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_record_is_said_to_be_so_and_not_taken(tmp_path, scored, caplog, harm):
    path = journal.step_file(tmp_path, 0)
    journal.write(path, 0, scored)
    content = bytearray(path.read_bytes())
    if harm == "truncate":
        content = content[: len(content) // 2]
    else:
        for at in range(40, 400, 3):
            content[at] ^= 0xFF
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert journal.recall(path, scored.index) is None
    assert str(path) in caplog.text


def test_held_out_scores_come_back_for_their_crystals_only(tmp_path, scored):
    path = journal.step_file(tmp_path, 0)
    journal.write_scores(path, scored.index, scored.scores)
    back = journal.recall_scores(path, scored.index)
    assert back is not None
    np.testing.assert_array_equal(back.values, scored.scores.values)
    assert journal.recall_scores(path, scored.index[:2]) is None


def test_uniqueness_ignores_the_order_of_sites_and_free_coordinates(scored):
    t = scored.tokens
    swapped = t.element[:, [1, 0, 2, 3]]  # the two sites of crystal 2 have the same letter
    twin = Tokens(t.spacegroup, t.wyckoff, swapped, t.coords * 0.5, t.lattice * 2)
    assert journal.material_keys(t)[2] == journal.material_keys(twin)[2]
    assert journal.material_keys(t)[0] != journal.material_keys(twin)[0]
    assert journal.unique_share(Tokens.concatenate([t, t])) == 0.5
