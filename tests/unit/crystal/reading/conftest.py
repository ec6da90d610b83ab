"""Where the CIF files of the tests lie."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

CIFS = Path(__file__).parents[3] / "data" / "cif"


@pytest.fixture
def make() -> SimpleNamespace:
    """As in the tests of data: the folder of CIF files."""
    return SimpleNamespace(cifs=CIFS)
