"""One contract, two ways to ask: the real potential and hull in process and behind the real Triton agree.

Bit for bit where the forward passes are the same; within the rounding of a sum where requests were merged.
"""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import crystalforge.data
from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.connection import ClientConfig
from crystalforge.integrations.triton.wire import chunks
from crystalforge.rewards import Reward, Scores, Status, build, parse
from serving.launcher import TritonServer, available
from serving.testing import wait_until

USABLE, REASON = available()
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not USABLE, reason=REASON),
]

CONFIG = parse({"kind": "ehull"})
MERGED_TOLERANCE = 1e-5  # eV/atom: float32 sums over a graph in another order


@pytest.fixture(scope="module")
def local() -> Reward:
    return build(CONFIG)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(CONFIG, instances=2, run_dir=tmp_path_factory.mktemp("server"), watched=False) as running:
        yield running


def real_crystals(n: int, rng: np.random.Generator) -> list[Crystal | None]:
    """Crystals of the embedded data, some of them strained and rattled out of their minima."""
    path = next(iter(crystalforge.data.__path__)) + "/prototypes.parquet"
    table = pq.read_table(path, columns=["lattice", "atomic_numbers", "frac_coords"])
    found: list[Crystal | None] = []
    for row in rng.choice(table.num_rows, size=n, replace=False):
        record = {name: table[name][int(row)].as_py() for name in table.column_names}
        crystal = Crystal.of(record["lattice"], record["atomic_numbers"], record["frac_coords"])
        if rng.random() < 0.5:
            strain = np.eye(3) + rng.normal(scale=0.03, size=(3, 3))
            crystal = Crystal.of(crystal.lattice @ strain, crystal.numbers, crystal.frac + rng.normal(scale=0.01))
        found.append(crystal)
    return found


def hostile_crystals(n: int, rng: np.random.Generator) -> list[Crystal | None]:
    """Everything that a generator, or an enemy, may come up with."""
    cube, two = np.eye(3) * 4.0, [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]

    def cell(entry: float) -> np.ndarray:
        return np.array([[entry, 0, 0], [0, 4.0, 0], [0, 0, 4.0]])

    kinds = [
        lambda: None,
        lambda: Crystal.of(cube, [], []),
        lambda: Crystal.of(cube, [11, 17], [[0, 0, 0], [1e-4, 0, 0]]),  # on top of each other
        lambda: Crystal.of(cube, [11, 11], [[0, 0, 0], [1.0, 0, 0]]),  # ... through the boundary
        lambda: Crystal.of(cell(rng.choice([np.nan, np.inf, -np.inf])), [11, 17], two),
        lambda: Crystal.of(cell(rng.choice([0.0, 1e-12, 1e-3, 1e300, 1e6])), [11, 17], two),
        lambda: Crystal.of(np.tile([[4.0, 0, 0]], (3, 1)), [11, 17], two),  # flat
        lambda: Crystal.of(cube, [rng.choice([0, -1, 95, 118, 119, 2**31 - 1]), 17], two),
        lambda: Crystal.of(cube, [11, 17], [[0, 0, 0], [rng.choice([np.nan, np.inf]), 0.5, 0.5]]),
        lambda: Crystal.of(cube, [11, 17], [[0, 0, 0], [1e17, 0.5, 0.5]]),
        lambda: Crystal.of(np.eye(3) * 30, np.full(2000, 11), rng.random((2000, 3))),  # a gas
        lambda: Crystal.of(-cube, [11, 17], two),  # left-handed
        lambda: Crystal.of(rng.normal(scale=8.0, size=(3, 3)), rng.integers(1, 119, 6), rng.random((6, 3))),
        lambda: Crystal.of(np.eye(3) * 190, [11, 17], two),  # lonely atoms
    ]
    return [kinds[k % len(kinds)]() for k in range(n)]


def in_the_same_pieces(reward: Reward, crystals: Sequence[Crystal | None], structures: int, atoms: int) -> Scores:
    sizes = np.array([0 if crystal is None else len(crystal) for crystal in crystals], np.int32)
    return Scores.concatenate([reward.score(crystals[piece]) for piece in chunks(sizes, structures, atoms)])


def assert_identical(one: Scores, other: Scores) -> None:
    assert one.values.tobytes() == other.values.tobytes()
    assert one.status.tolist() == other.status.tolist()
    assert list(one.components) == list(other.components)
    for name in one.components:
        assert one.components[name].tobytes() == other.components[name].tobytes()


@pytest.fixture(scope="module")
def broken_and_whole() -> list[Crystal | None]:
    """500 crystals in no order, one in seven of them hostile."""
    rng = np.random.default_rng(1)
    crystals = [*real_crystals(430, rng), *hostile_crystals(70, rng)]
    return [crystals[k] for k in rng.permutation(500)]


@pytest.fixture(scope="module")
def expected(local: Reward, broken_and_whole: list[Crystal | None]) -> Scores:
    return in_the_same_pieces(local, broken_and_whole, ClientConfig().chunk_structures, ClientConfig().chunk_atoms)


def test_in_process_and_over_grpc_agree_bit_for_bit_on_500_crystals(
    server: TritonServer, broken_and_whole: list[Crystal | None], expected: Scores
) -> None:
    with server.connect() as reward:
        before = sum(server.scored(server.model).values())
        remote = reward.score(broken_and_whole)
        assert reward.counters.structures == 500
        assert sum(server.scored(server.model).values()) - before == 500
    assert_identical(remote, expected)
    assert remote.counts()["ok"] >= 300, "the comparison must be about energies, not about floors"
    assert len(remote.counts()) >= 5


def test_500_crystals_in_merged_requests_agree_within_rounding(
    server: TritonServer, broken_and_whole: list[Crystal | None], expected: Scores
) -> None:
    """Ten clients at once, each with ten requests of five crystals: too few for a forward pass of their own."""
    clients, rounds, each = 10, 10, 5
    answers: dict[tuple[int, int], Scores] = {}
    before = server.statistics()

    def ask(k: int) -> None:
        with server.connect() as reward:
            reward.probe()
            for turn in range(rounds):
                begin = (k * rounds + turn) * each
                answers[k, turn] = reward.score(broken_and_whole[begin : begin + each])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    together = Scores.concatenate([answers[k, turn] for k in range(clients) for turn in range(rounds)])
    assert together.status.tolist() == expected.status.tolist()
    assert np.abs(together.values - expected.values).max() < MERGED_TOLERANCE
    asked = clients * (rounds + 1)  # one of them the probe
    assert wait_until(lambda: server.statistics().inferences - before.inferences >= asked, 20)  # counted once answered
    after = server.statistics()
    inferences, executions = after.inferences - before.inferences, after.executions - before.executions
    assert inferences == asked
    assert executions < 0.7 * inferences, "ten clients on two workers: requests must have been merged"


def test_a_large_request_has_the_same_bits_in_a_crowd(local: Reward, server: TritonServer) -> None:
    crystals = real_crystals(40, np.random.default_rng(3))
    expected = local.score(crystals)
    stop = threading.Event()

    def disturb() -> None:
        with server.connect() as reward:
            while not stop.is_set():
                reward.score(crystals[:2])

    threads = [threading.Thread(target=disturb) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with server.connect() as reward:
            for _ in range(3):
                assert_identical(reward.score(crystals), expected)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def test_200_hostile_crystals_get_the_floor_and_a_status_and_the_server_stays_well(
    local: Reward, server: TritonServer
) -> None:
    crystals = hostile_crystals(200, np.random.default_rng(4))
    with server.connect() as reward:
        scores = reward.score(crystals)
        sizes = (reward.config.chunk_structures, reward.config.chunk_atoms)
    assert_identical(scores, in_the_same_pieces(local, crystals, *sizes))
    floored = scores.status != Status.OK
    assert floored.mean() > 0.7
    assert (scores.values[floored] == CONFIG.floor).all()
    assert {"not_built", "bad_cell", "too_close", "too_large", "unknown_element"} <= scores.counts().keys()
    assert server.healthy()


def test_metrics_tell_what_was_scored_and_how_the_hulls_were_found(server: TritonServer) -> None:
    crystals = real_crystals(30, np.random.default_rng(5))
    with server.connect(chunk_structures=30) as reward:
        before, known = metrics(server), sum(server.scored(server.model).values())
        for _ in range(3):
            reward.score(crystals)
    after = metrics(server)
    lookups = sum(after[name] - before[name] for name in ("hull_cache_hits", "hull_cache_misses"))
    assert after["structures"] - before["structures"] == 90 == sum(server.scored(server.model).values()) - known
    assert lookups >= 90  # one for each crystal, and those of the probes
    assert after["hull_cache_hits"] > before["hull_cache_hits"]


def metrics(server: TritonServer) -> dict[str, float]:
    """Our own counters on the metrics page, summed over their labels."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.metrics_url, timeout=10) as page:
        found = re.findall(r"^crystalforge_(\w+)_total\{[^}]*\} (\S+)$", page.read().decode(), flags=re.MULTILINE)
    return {name: sum(float(value) for other, value in found if other == name) for name, _ in found}


def test_the_served_version_is_the_local_one(local: Reward, server: TritonServer) -> None:
    with server.connect() as reward:
        assert isinstance(reward, Reward)
        assert reward.version == local.version
        assert reward.version.golden


def test_a_reward_that_relaxes_first_is_the_same_behind_the_server(tmp_path: Path) -> None:
    """Rock salt pulled open: judged as it is it lies far above the hull, relaxed it is back on it."""
    face_centred = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    two = [[0, 0, 0], [0.5, 0.5, 0.5]]
    crystals = [
        Crystal.of(6.1 * face_centred, [11, 17], two),
        Crystal.of(6.1 * face_centred, [11, 17], [[0, 0, 0], [1e-4, 0, 0]]),
        None,
    ]
    config = parse({"kind": "ehull", "relax": {"fmax": 0.05, "steps": 40, "fix_symmetry": True}})
    relaxing = build(config)
    as_given = build(CONFIG).score(crystals)
    with TritonServer(config, run_dir=tmp_path, watched=False, quiet=True) as server, server.connect() as reward:
        scores = reward.score(crystals)
        assert reward.version == relaxing.version
    assert_identical(scores, relaxing.score(crystals))
    assert scores.status.tolist() == [Status.OK, Status.TOO_CLOSE, Status.NOT_BUILT]
    assert as_given.values[0] < -0.03
    assert scores.values[0] > -0.01
