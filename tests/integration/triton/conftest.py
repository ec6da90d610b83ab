"""A real server with a small reward of our own, so that it is up in seconds; the tests of one file share it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.launcher import TritonServer, available
from serving.service import Limits
from serving.testing import size_reward

USABLE, REASON = available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs the server."""
    for item in items:
        if "integration/triton/" in str(item.path):
            item.add_marker(pytest.mark.triton)
            item.add_marker(pytest.mark.skipif(not USABLE, reason=REASON))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Two workers that take 50 ms for a request; nobody repairs it, so that tests can break it."""
    limits = Limits(chunk_structures=32, chunk_atoms=2000, merge_below=4, max_atoms=20_000)
    with TritonServer(
        size_reward(pause=0.05), instances=2, limits=limits, run_dir=tmp_path_factory.mktemp("server"), watched=False
    ) as running:
        yield running
