"""Sharpened laws by hand, and which lengths and angles are a cell's."""

from __future__ import annotations

import math

import pytest
import torch

from crystalforge.model.sampling.draws import Sharpening, _is_cell


def law_of(*shares: float) -> torch.Tensor:
    return torch.tensor([shares], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("top_p", "left"),
    [
        (0.4, [0, 1, 0, 0]),
        (0.6, [0, 0.625, 0, 0.375]),
        (0.9, [0.1 / 0.9, 5 / 9, 0, 3 / 9]),
        (1.0, [0.1, 0.5, 0.1, 0.3]),
    ],
)
def test_top_p_keeps_the_most_probable_until_their_mass_is_reached(top_p: float, left: list[float]) -> None:
    kept = Sharpening(top_p=top_p - 1e-9 if top_p < 1 else 1.0)(law_of(0.1, 0.5, 0.1, 0.3)).exp()
    assert kept[0].tolist() == pytest.approx(left)


def test_a_temperature_divides_what_top_p_has_left() -> None:
    """Squares of 5/8 and 3/8 at half the temperature; masked choices are gone before."""
    half = Sharpening(temperature=0.5, top_p=0.6)(law_of(0.1, 0.5, 0.1, 0.3)).exp()
    assert half[0].tolist() == pytest.approx([0, 25 / 34, 0, 9 / 34])
    allowed = torch.tensor([[True, False, True, True]])
    assert Sharpening(temperature=2.0)(law_of(0.1, 0.5, 0.1, 0.4), allowed).exp()[0].tolist() == pytest.approx(
        [0.25, 0, 0.25, 0.5]
    )


def test_which_angles_span_a_volume() -> None:
    cells = {
        (90, 90, 90): True, (60, 60, 60): True, (120, 120, 119): True, (120, 120, 121): False, (100, 50, 49): False,
        (100, 50, 52): True, (0, 90, 90): False, (180, 90, 90): False, (-90, 90, 90): False,
    }  # fmt: skip
    lattice = torch.tensor([[1, 2, 3, *(math.radians(angle) for angle in angles)] for angles in cells]).double()
    assert _is_cell(lattice).tolist() == list(cells.values())
    lattice[:2, 1] = torch.tensor([0.0, -1.0])
    assert _is_cell(lattice)[:2].tolist() == [False, False]
