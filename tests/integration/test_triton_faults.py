"""What goes wrong in a real service, done to the real server: kills, hangs, floods, rubbish, impostors.

The rewards here are small functions of our own, so that a server is up in seconds; the real potential is behind the
same wire in tests/contract/test_reward_service.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.integrations.triton import ClientConfig, RemoteReward
from crystalforge.integrations.triton_wire import INPUTS, SCORE_OUTPUTS, canary, encode
from crystalforge.rewards import RewardUnavailable, Status, parse
from serving.launcher import ServerSecurity, TritonServer, available
from serving.service import Limits

USABLE, REASON = available()
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not USABLE, reason=REASON),
]

# Longest first lattice vector wins; atomic numbers choose what goes wrong.
REWARD = """
import time
import numpy as np

SLEEP, NAN, RAISE = 50, 49, 48

def size(crystals, pause=0.0, scale=1.0):
    time.sleep(pause)
    numbers = [set(crystal.numbers.tolist()) for crystal in crystals]
    if any(SLEEP in kinds for kinds in numbers):
        time.sleep(2.0)
    if any(RAISE in kinds for kinds in numbers):
        raise RuntimeError("failed in " + __file__)
    lengths = [scale * float(np.linalg.norm(crystal.lattice[0])) for crystal in crystals]
    return [np.nan if NAN in kinds else length for kinds, length in zip(numbers, lengths)]
"""
SLEEP, NAN, RAISE = 50, 49, 48


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on sys.path with a user's own reward in it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "forge_test_reward.py").write_text(REWARD)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def reward_config(**options: Any) -> Any:
    return parse({"kind": "custom", "function": "forge_test_reward:size", "options": options})


@pytest.fixture(scope="module")
def server(module_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Two workers that take 50 ms for a request; nobody repairs it, so that tests can break it."""
    limits = Limits(chunk_structures=32, chunk_atoms=2000, merge_below=4, max_atoms=20_000)
    with TritonServer(
        reward_config(pause=0.05), instances=2, limits=limits, run_dir=tmp_path_factory.mktemp("server"), watched=False
    ) as running:
        yield running


def crystal(length: float, number: int = 11) -> Crystal:
    return Crystal.of(np.diag([length, 4.0, 4.0]), [number], [[0, 0, 0]])


def crystals(n: int) -> list[Crystal | None]:
    return [crystal(3.0 + 0.01 * k) for k in range(n)]


def lengths(n: int) -> np.ndarray:
    return 3.0 + 0.01 * np.arange(n)


def processes(word: str) -> list[str]:
    """Command lines of living processes that mention `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                if word in command:
                    found.append(command)
    return found


def wait_until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def raw(server: TritonServer, tensors: dict[str, np.ndarray], **types: str) -> Any:
    """Send tensors as they are, without our client's care."""
    import tritonclient.grpc as triton

    inputs = []
    for name, array in tensors.items():
        tensor = triton.InferInput(name, list(array.shape), types.get(name, INPUTS[name]))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        return client.infer(server.model, inputs, outputs=[triton.InferRequestedOutput(n) for n in SCORE_OUTPUTS])


def test_a_server_killed_in_the_middle_loses_nothing(server: TritonServer) -> None:
    with server.connect(chunk_structures=8, patience_s=60) as reward:
        reward.probe()
        result: dict[str, Any] = {}
        worker = threading.Thread(target=lambda: result.update(scores=reward.score(crystals(400))))
        worker.start()
        assert wait_until(lambda: reward.counters.requests >= 4, 20)
        server.kill()
        before = reward.counters.requests
        assert before < 50, "killed too late to be in the middle"
        server.restart()
        worker.join(60)
        assert np.allclose(result["scores"].values, lengths(400))
        assert reward.counters.structures == 400  # each crystal counted once, the unanswered chunks sent again
        assert reward.counters.requests == 50
        assert reward.counters.retries >= 1
        # The new server did what was left, not everything once more.
        assert sum(server.scored(server.model).values()) == 400 - 8 * before


def test_a_dead_worker_is_noticed_though_triton_says_it_is_ready(server: TritonServer) -> None:
    import tritonclient.grpc as triton

    assert server.healthy()
    os.kill(server.worker_pids[0], signal.SIGKILL)
    began = time.monotonic()
    assert wait_until(lambda: server.problem() is not None, 10)
    assert time.monotonic() - began < 10
    assert "1 of 2 workers died" in str(server.problem())
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        assert client.is_server_ready()  # which is why nobody asks it
    with (
        server.connect(chunk_structures=4, patience_s=0) as reward,
        pytest.raises(RewardUnavailable, match=r"worker process.*\n.*Remedy"),
    ):
        reward.score(crystals(64))
    server.restart()
    assert server.healthy()


def test_deadline(server: TritonServer) -> None:
    with server.connect(deadline_s=0.5) as reward:
        reward.probe()
        with pytest.raises(RewardUnavailable, match=r"deadline of 0\.5 s"):
            reward.score([crystal(3.0, SLEEP)])
    # The model goes on with what nobody waits for; the server stays well.
    assert server.healthy()


def test_a_server_of_another_version_is_refused(server: TritonServer) -> None:
    url, model = server.grpc_url, server.model
    with RemoteReward(url, model) as reward:
        digest = reward.version.digest
    with RemoteReward(url, model, expected_version=digest) as reward:
        assert np.allclose(reward.score(crystals(3)).values, lengths(3))
    with (
        RemoteReward(url, model, expected_version="f" * 64) as reward,
        pytest.raises(RewardUnavailable, match=f"{digest[:12]}.*pinned to ffffffffffff"),
    ):
        reward.score(crystals(3))
    with RemoteReward(url, "nobody") as reward, pytest.raises(RewardUnavailable, match="does not serve this model"):
        reward.score(crystals(1))


def test_nan_gets_the_floor_and_its_status(server: TritonServer) -> None:
    with server.connect() as reward:
        scores = reward.score([crystal(3.0), crystal(3.0, NAN), crystal(5.0)])
    assert scores.status.tolist() == [Status.OK, Status.NOT_FINITE, Status.OK]
    assert np.allclose(scores.values[[0, 2]], [3.0, 5.0])
    assert np.isfinite(scores.values).all()


def test_a_hundred_thousand_atoms_are_split_and_one_giant_is_judged_too_large(server: TritonServer) -> None:
    rng = np.random.default_rng(0)
    many: list[Crystal | None] = [
        Crystal.of(np.eye(3) * (10 + 0.001 * k), np.full(100, 11), rng.random((100, 3))) for k in range(1000)
    ]
    giant = Crystal.of(np.eye(3) * 150, np.full(100_000, 11), rng.random((100_000, 3)))
    with server.connect(chunk_structures=200, chunk_atoms=10_000) as reward:
        scores = reward.score([*many, giant])
        assert reward.counters.requests == 11
    assert scores.status[-1] == Status.TOO_LARGE
    assert len(scores) == 1001


def test_a_flood_in_one_request_is_refused_in_words(server: TritonServer) -> None:
    from tritonclient.utils import InferenceServerException

    flood = {name: tensor[None] for name, tensor in encode([canary()] * 50_000).items()}
    with pytest.raises(InferenceServerException, match=r"100,000 atoms in 50,000 crystals.*at most 20,000") as caught:
        raw(server, flood)
    assert "INVALID_ARGUMENT" in str(caught.value.status())


MALFORMED: dict[str, dict[str, np.ndarray]] = {
    "too few atoms": {"numbers": np.zeros((1, 2), np.int32)},
    "too many coordinates": {"frac": np.zeros((1, 9, 3))},
    "negative count": {"n_atoms": np.array([[-1]], np.int32)},
    "giant count": {"n_atoms": np.array([[2**31 - 1]], np.int32)},
    "two lattices": {"lattice": np.zeros((1, 2, 3, 3))},
    "flat lattice": {"lattice": np.zeros((1, 9))},
    "no leading one": {"n_atoms": np.array([2], np.int32)},
}


@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_tensors_are_refused_without_a_word_about_the_server(server: TritonServer, how: str) -> None:
    from tritonclient.utils import InferenceServerException

    good = {name: tensor[None] for name, tensor in encode([canary()]).items()}
    raw(server, good)
    with pytest.raises(InferenceServerException) as caught:
        raw(server, {**good, **MALFORMED[how]})
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert says_nothing_of_the_server(str(caught.value), server)


def test_missing_inputs_and_wrong_types_are_refused(server: TritonServer) -> None:
    from tritonclient.utils import InferenceServerException

    good = {name: tensor[None] for name, tensor in encode([canary()]).items()}
    for tensors, types in [
        ({name: good[name] for name in ("lattice", "n_atoms")}, {}),
        ({**good, "n_atoms": good["n_atoms"].astype(np.int64)}, {"n_atoms": "INT64"}),
        ({**good, "frac": good["frac"].astype(np.float32)}, {"frac": "FP32"}),
    ]:
        with pytest.raises(InferenceServerException) as caught:
            raw(server, tensors, **types)
        assert "INVALID_ARGUMENT" in str(caught.value.status())
        assert says_nothing_of_the_server(str(caught.value), server)
    assert server.healthy()


def test_a_reward_that_raises_for_a_crystal_fails_that_crystal_alone(server: TritonServer) -> None:
    with server.connect() as reward:
        scores = reward.score([crystal(3.0), crystal(3.0, RAISE), crystal(5.0)])
    assert scores.status.tolist() == [Status.OK, Status.FAILED, Status.OK]
    assert np.allclose(scores.values[[0, 2]], [3.0, 5.0])
    assert server.healthy()


def says_nothing_of_the_server(text: str, server: TritonServer) -> bool:
    forbidden = [str(server.run_dir), "site-packages", "Traceback", "model.py", str(Path.home()), ".py"]
    return not any(word in text for word in forbidden)


def test_concurrent_clients_get_their_own_answers_and_share_executions(server: TritonServer) -> None:
    before = server.statistics()
    answers: dict[int, list[float]] = {}
    with contextlib.ExitStack() as stack:
        rewards = [stack.enter_context(server.connect()) for _ in range(8)]
        for reward in rewards:
            reward.probe()

        def ask(k: int) -> None:
            answers[k] = [float(rewards[k].score([crystal(3.0 + k + 0.1 * i)]).values[0]) for i in range(20)]

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert sum(reward.counters.requests for reward in rewards) == 160
    for k in range(8):
        assert np.allclose(answers[k], 3.0 + k + 0.1 * np.arange(20))
    after = server.statistics()
    inferences, executions = after.inferences - before.inferences, after.executions - before.executions
    assert inferences == 160 + 8  # and the probes; Triton counted what the clients counted
    assert executions < 0.7 * inferences, "eight clients on two workers must be merged"
    assert sum(after.structures.values()) - sum(before.structures.values()) == 160


def test_administration_is_closed_to_everybody(server: TritonServer) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    evil = b"class TritonPythonModel:\n    pass\n"
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        for attempt in (
            lambda: client.load_model("evil", config='{"backend": "python"}', files={"file:1/model.py": evil}),
            lambda: client.unload_model(server.model),
            lambda: client.get_model_repository_index(),
            lambda: client.update_log_settings({"log_verbose_level": 9}),
            lambda: client.update_trace_settings(server.model, {"trace_level": ["TIMESTAMPS"]}),
            lambda: client.register_system_shared_memory("peek", "/crystalforge-peek", 16),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                attempt()
        assert says_nothing_of_the_server(str(client.get_model_config(server.model)).replace('"model.py"', ""), server)
        assert says_nothing_of_the_server(str(client.get_server_metadata()), server)
    assert not (server.run_dir / "model_repository" / "evil").exists()


def test_loopback_only(server: TritonServer) -> None:
    ports = {int(server.grpc_url.rsplit(":")[-1]), int(server.metrics_url.rsplit(":", 1)[1].split("/")[0])}
    listening = set()
    for line in [*Path("/proc/net/tcp").read_text().splitlines()[1:], *_tcp6()]:
        fields = line.split()
        address, port = fields[1].split(":")
        if fields[3] == "0A" and int(port, 16) in ports:
            listening.add((address.removeprefix("0000000000000000FFFF0000"), int(port, 16)))  # IPv4 seen as IPv6
    assert listening == {("0100007F", port) for port in ports}


def _tcp6() -> list[str]:
    path = Path("/proc/net/tcp6")
    return path.read_text().splitlines()[1:] if path.exists() else []


def test_tls_and_token(module_folder: Path, tmp_path: Path) -> None:
    authority, certificate, key = make_certificates(tmp_path)
    token = tmp_path / "token"
    token.write_text("open-sesame\n")
    right = ClientConfig(root_certificate=authority, token_file=token, patience_s=0)
    security = ServerSecurity(certificate=certificate, key=key, token="open-sesame")
    with TritonServer(
        reward_config(), run_dir=tmp_path / "server", security=security, client=right, watched=False
    ) as server:
        with RemoteReward(server.grpc_url, server.model, config=right) as reward:
            assert np.allclose(reward.score(crystals(5)).values, lengths(5))
        wrong_token = tmp_path / "wrong"
        wrong_token.write_text("open-barley\n")
        other_authority, *_ = make_certificates(tmp_path / "other")
        for config, says in [
            (ClientConfig(patience_s=0), "cannot be reached"),
            (ClientConfig(root_certificate=authority, patience_s=0), "token"),
            (ClientConfig(root_certificate=authority, token_file=wrong_token, patience_s=0), "token"),
            (ClientConfig(root_certificate=other_authority, token_file=token, patience_s=0), "cannot be reached"),
            (ClientConfig(tls=True, token_file=token, patience_s=0), "cannot be reached"),
        ]:
            with (
                RemoteReward(server.grpc_url, server.model, config=config) as reward,
                pytest.raises(RewardUnavailable, match=says),
            ):
                reward.score(crystals(1))
        assert server.statistics().structures == {"ok": 5}


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority and a certificate for 127.0.0.1 signed by it, as PEM files."""
    folder.mkdir(exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=forge test", "-days", "2")
    openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "server.pem", "-days", "2", "-extfile", "names",
    )  # fmt: skip
    return folder / "ca.pem", folder / "server.pem", folder / "server.key"


def test_a_watched_server_recovers_under_a_waiting_client(module_folder: Path, tmp_path: Path) -> None:
    with (
        TritonServer(reward_config(pause=0.02), instances=2, run_dir=tmp_path) as server,
        server.connect(chunk_structures=4) as reward,
    ):
        reward.probe()
        os.kill(server.worker_pids[0], signal.SIGKILL)
        assert np.allclose(reward.score(crystals(200)).values, lengths(200))
        assert wait_until(server.healthy, 30)
        assert reward.counters.structures == 200


def test_golden_values_that_do_not_match_keep_the_server_down(module_folder: Path, tmp_path: Path) -> None:
    wrong = reward_config().model_copy(update={"golden": {"NaCl": 1234.5}})
    with pytest.raises(InputError, match=r"golden values.*1234\.5") as caught:
        TritonServer(wrong, run_dir=tmp_path).start()
    assert "triton.log" in str(caught.value)
    assert not processes(str(tmp_path))


def test_nothing_is_left_behind_when_the_owner_is_killed(module_folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(module_folder)!r})
from pathlib import Path
from crystalforge.rewards import parse
from serving.launcher import TritonServer
config = parse({{"kind": "custom", "function": "forge_test_reward:size"}})
with TritonServer(config, run_dir=Path({str(tmp_path)!r}), quiet=True) as server:
    print("up", server._guard.pid, flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    word, guard = owner.stdout.readline().split()
    assert word == "up"
    regions = list(Path("/dev/shm").glob(f"crystalforge-{guard}-*"))
    assert regions
    assert len(processes(str(tmp_path))) >= 3  # guard, server, worker
    owner.kill()
    owner.wait()
    # The name of the test's folder is in every command line of ours, the owner's included.
    assert wait_until(lambda: not processes(str(tmp_path)), 20)
    assert not [region for region in regions if region.exists()]
