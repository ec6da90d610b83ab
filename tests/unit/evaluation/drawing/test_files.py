"""Samples read back from the files that others write."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal.convert import tokenize_many
from crystalforge.evaluation.config import EvaluateConfig
from crystalforge.evaluation.drawing.files import read_samples
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.evaluate import TABLE, evaluate_samples
from crystalforge.evaluation.matching.reference import Reference


def test_an_evaluations_table_gives_its_samples_back(tmp_path, prototypes, make_reward):
    tokens = tokenize_many(prototypes[:6]).tokens
    chances = np.linspace(-40.0, -30.0, len(tokens))
    sources = [
        SampleSet.from_tokens("first", tokens[:4], log_prob=chances[:4], log_prob_base=chances[:4]),
        SampleSet.from_tokens("second", tokens[2:], log_prob=chances[2:], log_prob_base=chances[2:] - 1),
    ]
    nothing = Reference.from_crystals([], [])
    evaluate_samples(sources, make_reward(), nothing, EvaluateConfig(), out=tmp_path, quiet=True)
    for source in sources:
        found = read_samples(source.label, tmp_path / TABLE)
        assert found.identity() == source.identity(), "bit by bit"
        assert np.array_equal(found.log_prob_base, source.log_prob_base)
        assert found.tokens is not None
        assert np.array_equal(found.tokens.spacegroup, source.tokens.spacegroup)
    assert len(read_samples("all of them", tmp_path / TABLE)) == 8


def test_plain_crystals_and_failures(tmp_path, prototypes):
    rows = [prototypes[0], None, prototypes[1]]
    pq.write_table(
        pa.table(
            {
                "lattice": [None if c is None else c.lattice.ravel().tolist() for c in rows],
                "atomic_numbers": [None if c is None else c.numbers.tolist() for c in rows],
                "frac_coords": [None if c is None else c.frac.ravel().tolist() for c in rows],
            }
        ),
        tmp_path / "part-0.parquet",
    )
    found = read_samples("mine", tmp_path)
    assert [crystal is None for crystal in found.crystals] == [False, True, False]
    assert found.crystals[2] is not None
    assert np.array_equal(found.crystals[2].frac, prototypes[1].frac)
    assert np.isnan(found.log_prob).all()
    with pytest.raises(InputError, match="no readable samples"):
        read_samples("mine", tmp_path / "absent.parquet")
    pq.write_table(pa.table({"lattice": [[1.0]]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="atomic_numbers"):
        read_samples("mine", tmp_path / "other.parquet")


def test_a_row_that_is_no_crystal_counts_as_one_that_was_not_built(tmp_path, capsys):
    cell = [4.0, 0, 0, 0, 4.0, 0, 0, 0, 4.0]
    rows = [
        (cell, [55, 17], [0.0, 0, 0, 0.5, 0.5, 0.5]),
        ([4.0] * 6, [55, 17], [0.0, 0, 0, 0.5, 0.5, 0.5]),
        (cell, [55, 17, 17], [0.0, 0, 0, 0.5, 0.5, 0.5]),
        (cell, [0, 17], [0.0, 0, 0, 0.5, 0.5, 0.5]),
        (cell, [200, 17], [0.0, 0, 0, 0.5, 0.5, 0.5]),
        ([float("nan")] * 9, [55], [0.0, 0, 0]),
        (None, None, None),
    ]
    names = ("lattice", "atomic_numbers", "frac_coords")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "x.parquet")
    found = read_samples("x", tmp_path / "x.parquet")
    assert [crystal is not None for crystal in found.crystals] == [True] + [False] * 6
    assert "5 of 7 rows hold no crystal (row 2: expected 9 lattice values" in capsys.readouterr().err
