"""Tokenising many crystals: rejects, order, processes; and crystals that tokens cannot make."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.common.progress import Progress
from crystalforge.crystal import Crystal, Tokens, convert, workers
from crystalforge.crystal.convert import Tokenized, TokenizeError, to_crystals, to_packed, tokenize, tokenize_many

FIELDS = ("spacegroup", "wyckoff", "element", "coords", "lattice")


def rock_salt(edge: float = 5.6, cation: int = 11) -> Crystal:
    half = edge / 2
    return Crystal.of([[0, half, half], [half, 0, half], [half, half, 0]], [cation, 17], [[0, 0, 0], [0.5] * 3])


def jumble(n: int, seed: int = 0) -> Crystal:
    """n atoms without any symmetry: n sites."""
    rng = np.random.default_rng(seed)
    return Crystal.of(rng.random((3, 3)) + 8 * np.eye(3), rng.integers(1, 90, n), rng.random((n, 3)))


BAD: list[tuple[Crystal | None, str, str]] = [
    (None, "missing", "could not be read"),
    (Crystal.of(np.eye(3), [], []), "empty", "no atoms"),
    (rock_salt(cation=119), "element", "atomic number 119"),
    (rock_salt(cation=0), "element", "atomic number 0"),
    (rock_salt(edge=float("nan")), "not_finite", "not a finite number"),
    (Crystal.of(np.eye(3), [1], [[0, 0, np.inf]]), "not_finite", "not a finite number"),
    (Crystal.of(np.zeros((3, 3)), [1], [[0, 0, 0]]), "degenerate_cell", "no volume"),
    (Crystal.of([[1, 0, 0], [0, 1, 0], [1, 1, 0]], [1], [[0, 0, 0]]), "degenerate_cell", "no volume"),
    (Crystal.of(4 * np.eye(3), [1, 1], [[0, 0, 0], [0, 0, 1e-4]]), "symmetry", "overlap"),
    (jumble(21), "too_many_sites", "21 symmetry-inequivalent sites, at most 20"),
]


def assert_same(first: Tokenized, second: Tokenized) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first.tokens, name), getattr(second.tokens, name))
    np.testing.assert_array_equal(first.index, second.index)
    assert first.rejects == second.rejects


def test_rock_salt_is_two_fixed_sites() -> None:
    tokens = tokenize(rock_salt())
    assert tokens.spacegroup.tolist() == [225]
    assert tokens.wyckoff.shape == (1, 21)
    assert sorted(tokens.wyckoff[0, :2].tolist()) == [1, 2]
    np.testing.assert_allclose(tokens.lattice[0], [2.8, 2.8, 2.8, np.pi / 2, np.pi / 2, np.pi / 2])


@pytest.mark.parametrize(("crystal", "reason", "words"), [case for case in BAD if case[0] is not None])
def test_a_bad_crystal_has_a_reason_and_a_message(crystal: Crystal, reason: str, words: str) -> None:
    with pytest.raises(TokenizeError, match=words) as caught:
        tokenize(crystal)
    assert caught.value.reason == reason
    assert isinstance(caught.value, InputError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, str(copy)) == (reason, str(caught.value))


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_crystals_become_rejects_in_their_place(processes: int) -> None:
    mixed = [rock_salt(), *(crystal for crystal, _, _ in BAD), rock_salt(6.0)]
    result = tokenize_many(mixed, processes=processes, ids=[f"id{place}" for place in range(len(mixed))])
    assert result.index.tolist() == [0, len(mixed) - 1]
    assert [reject.reason for reject in result.rejects] == [reason for _, reason, _ in BAD]
    assert [reject.index for reject in result.rejects] == list(range(1, len(mixed) - 1))
    assert [reject.id for reject in result.rejects] == [f"id{place}" for place in range(1, len(mixed) - 1)]
    for reject, (_, _, words) in zip(result.rejects, BAD, strict=True):
        assert words in reject.message
    assert result.reasons()["element"] == 2


def test_the_number_of_processes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "CHUNK", 7)
    given = [jumble(seed % 23 + 1, seed) if seed % 5 else rock_salt(5 + seed / 100) for seed in range(60)]
    assert_same(tokenize_many(given), tokenize_many(iter(given), processes=3))


def test_workers_do_not_mind_threads_or_an_unguarded_main() -> None:
    """The conditions under which forked pools hang and spawned ones refuse."""
    code = (
        "import threading, time, numpy as np\n"
        "threading.Thread(target=time.sleep, args=(3,), daemon=True).start()\n"
        "from crystalforge.crystal import Crystal\n"
        "from crystalforge.crystal.convert import tokenize_many\n"
        "crystals = [Crystal.of(np.eye(3) * (3 + i / 10), [29], [[0, 0, 0]]) for i in range(6)]\n"
        "print(tokenize_many(crystals, processes=2).tokens.spacegroup.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str([221] * 6)


def test_a_crystal_that_kills_its_worker_is_a_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is a real process that really dies, at one crystal."""
    monkeypatch.setattr(convert, "CHUNK", 3)
    program = (
        "import os, sys\n"
        "from crystalforge.crystal import workers\n"
        "plain = workers.tokenize_chunk\n"
        "def deadly(chunk, settings):\n"
        "    if any(crystal is not None and 79 in crystal.numbers for crystal in chunk):\n"
        "        os._exit(139)\n"
        "    return plain(chunk, settings)\n"
        "workers.tokenize_chunk = deadly\n"
        "workers._serve(sys.stdin.buffer, os.fdopen(os.dup(1), 'wb'))\n"
    )
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", program])
    result = tokenize_many([rock_salt(cation=z) for z in (11, 19, 79, 37, 55)], processes=2)
    assert result.index.tolist() == [0, 1, 3, 4]
    assert [(reject.index, reject.reason) for reject in result.rejects] == [(2, "crash")]


def test_a_defect_in_a_worker_is_raised_here_and_children_end(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, sys\n"
        "from crystalforge.crystal import workers\n"
        "workers.tokenize = None\n"
        "workers._serve(sys.stdin.buffer, os.fdopen(os.dup(1), 'wb'))\n"
    )
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", program])
    before = _children()
    with pytest.raises(TypeError, match="not callable"):
        tokenize_many([rock_salt()], processes=2)
    assert _children() == before


def test_stopping_half_way_leaves_no_children() -> None:
    before = _children()
    chunks: Iterator[list[Crystal | None]] = ([rock_salt()] for _ in range(100))
    results = workers.tokenize_in_processes(chunks, 2, workers.Settings(0.01, 20))
    assert next(results).kept.tolist() == [0]
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert _children() == before


def _children() -> set[str]:
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as stream:
            found |= set(stream.read().split())
    return found


def test_input_is_read_as_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "CHUNK", 2)
    read, lock, most = 0, threading.Lock(), 0

    def source() -> Iterator[Crystal]:
        nonlocal read
        for _ in range(40):
            with lock:
                read += 1
            yield rock_salt()

    results = workers.tokenize_in_processes(convert._chunks(source()), 2, workers.Settings(0.01, 20))
    for done, _ in enumerate(results, start=1):
        most = max(most, read - 2 * done)
    assert most <= 2 * 4  # two chunks of two for each of two processes


def test_progress_counts_crystals() -> None:
    stream = io.StringIO()
    with Progress("tokenize", total=3, unit="crystal", stream=stream) as progress:
        tokenize_many([rock_salt(), None, rock_salt()], progress=progress)
    assert "3/3 crystal" in stream.getvalue()
    assert "1 rejected" in stream.getvalue()


def test_nothing_in_nothing_out() -> None:
    for processes in (1, 2):
        result = tokenize_many([], processes=processes)
        assert (len(result.tokens), len(result.index), result.rejects) == (0, 0, [])


def test_longer_crystals_on_request() -> None:
    tokens = tokenize(jumble(21), max_sites=30)
    assert tokens.wyckoff.shape == (1, 31)
    assert tokens.n_sites.tolist() == [21]


def tokens_of(**changes: object) -> Tokens:
    fields = {name: getattr(tokenize(rock_salt()), name).copy() for name in FIELDS}
    return Tokens(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "cell",
    [
        [-2.8, 2.8, 2.8, 1.5, 1.5, 1.5],
        [0.0, 2.8, 2.8, 1.5, 1.5, 1.5],
        [np.nan, 2.8, 2.8, 1.5, 1.5, 1.5],
        [2.8, 2.8, 2.8, 0.4, 0.4, 1.5],  # the third angle exceeds the sum of the others
        [2.8, 2.8, 2.8, 2.2, 2.2, 2.2],  # the three exceed a full turn
        [2.8, 2.8, 2.8, 1.5, 1.5, 3.2],
        [2.8, 2.8, np.inf, 1.5, 1.5, 1.5],
    ],
)
def test_an_impossible_cell_makes_no_crystal(cell: list[float]) -> None:
    wyckoff, element = np.zeros((1, 21), np.int32), np.zeros((1, 21), np.int32)
    wyckoff[0, 0], element[0, 0] = 1, 29
    tokens = Tokens(np.array([1], np.int32), wyckoff, element, np.zeros((1, 21, 3)), np.array([cell]))
    assert to_crystals(tokens) == [None]
    assert to_packed(tokens).n_atoms.tolist() == [0]


def test_malformed_tokens_make_no_crystal() -> None:
    good = tokens_of()
    for changes in (
        {"spacegroup": np.array([231], np.int32)},
        {"spacegroup": np.array([0], np.int32)},
        {"wyckoff": np.zeros_like(good.wyckoff)},
        {"wyckoff": np.where(good.wyckoff > 0, 20, 0).astype(np.int32)},  # 225 ends at l
        {"element": np.zeros_like(good.element)},
        {"element": np.where(good.wyckoff > 0, 119, 0).astype(np.int32)},
        {"coords": np.full_like(good.coords, np.nan)},
    ):
        assert to_crystals(tokens_of(**changes)) == [None], changes


def test_good_crystals_keep_their_places_among_bad_ones() -> None:
    bad = tokens_of(spacegroup=np.array([0], np.int32))
    made = to_crystals(Tokens.concatenate([tokens_of(), bad, tokens_of()]), primitive=True)
    assert [None if crystal is None else len(crystal) for crystal in made] == [2, None, 2]
    assert to_crystals(Tokens.empty()) == []


def test_prescribed_lattice_components_are_not_read() -> None:
    wrong = tokens_of(lattice=np.array([[2.8, 9.0, 7.0, 1.0, 1.1, 1.2]]))
    made, plain = to_crystals(wrong)[0], to_crystals(tokens_of())[0]
    assert made is not None
    assert plain is not None
    np.testing.assert_allclose(made.lattice, plain.lattice, atol=1e-12)


def test_a_point_off_its_representative_is_moved_onto_it() -> None:
    """(0, 0.3, 0) is an image of (0.3, 0, 0): the same orbit of position e."""
    fields = {"wyckoff": np.zeros((1, 21), np.int32), "element": np.zeros((1, 21), np.int32)}
    fields["wyckoff"][0, 0], fields["element"][0, 0] = 5, 8
    orbits = []
    for point in ([0.3, 0, 0], [0, 0.3, 0]):
        coords = np.zeros((1, 21, 3))
        coords[0, 0] = point
        made = to_crystals(tokens_of(coords=coords, **fields))[0]
        assert made is not None
        orbits.append({tuple(np.round(atom, 9) % 1.0) for atom in made.frac})
    assert orbits[0] == orbits[1]
    assert len(orbits[0]) == 24


def test_single_precision_tokens_give_the_same_atoms() -> None:
    tokens = tokenize(jumble(8))
    rounded = Tokens(
        tokens.spacegroup, tokens.wyckoff, tokens.element, tokens.coords.astype(np.float32).astype(np.float64),
        tokens.lattice.astype(np.float32).astype(np.float64),
    )  # fmt: skip
    exact, single = to_crystals(tokens)[0], to_crystals(rounded)[0]
    assert exact is not None
    assert single is not None
    np.testing.assert_allclose(single.frac @ single.lattice, exact.frac @ exact.lattice, atol=2e-5)
