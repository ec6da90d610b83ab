"""Whatever a client may send to the real server: rubbish, floods, too much at once, and several clients together."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest

import crystalforge
from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.wire import canary, encode
from crystalforge.rewards import RewardUnavailable, Status
from serving.launcher import TritonServer
from serving.testing import EXIT, NAN, RAISE, crystal, crystals, lengths, says_nothing_of, send_raw, wait_until


def test_nan_gets_the_floor_and_its_status(server: TritonServer) -> None:
    with server.connect() as reward:
        scores = reward.score([crystal(3.0), crystal(3.0, NAN), crystal(5.0)])
    assert scores.status.tolist() == [Status.OK, Status.NOT_FINITE, Status.OK]
    assert np.allclose(scores.values[[0, 2]], [3.0, 5.0])
    assert np.isfinite(scores.values).all()


def test_a_judge_at_an_address_answers_as_columns_and_is_a_reward(server: TritonServer) -> None:
    judge = crystalforge.judge(address=server.grpc_url, name=server.model)
    found = judge([crystal(3.0), None, crystal(5.0)])
    assert found["reward"].tolist()[::2] == [3.0, 5.0]
    assert found["status"].tolist() == ["ok", "not built", "ok"]
    with server.connect() as reward:
        assert judge.version.digest == reward.version.digest
        assert judge.score([crystal(4.0)]).values.tolist() == reward.score([crystal(4.0)]).values.tolist()
    with pytest.raises(RewardUnavailable, match=r"\(model nothing\) does not serve this model"):
        crystalforge.judge(address=server.grpc_url, name="nothing")([crystal(3.0)])


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
        send_raw(server, flood)
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
    send_raw(server, good)
    with pytest.raises(InferenceServerException) as caught:
        send_raw(server, {**good, **MALFORMED[how]})
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert says_nothing_of(server, str(caught.value))


def test_missing_inputs_and_wrong_types_are_refused(server: TritonServer) -> None:
    from tritonclient.utils import InferenceServerException

    good = {name: tensor[None] for name, tensor in encode([canary()]).items()}
    for tensors, types in [
        ({name: good[name] for name in ("lattice", "n_atoms")}, {}),
        ({**good, "n_atoms": good["n_atoms"].astype(np.int64)}, {"n_atoms": "INT64"}),
        ({**good, "frac": good["frac"].astype(np.float32)}, {"frac": "FP32"}),
    ]:
        with pytest.raises(InferenceServerException) as caught:
            send_raw(server, tensors, **types)
        assert "INVALID_ARGUMENT" in str(caught.value.status())
        assert says_nothing_of(server, str(caught.value))
    assert server.healthy()


def test_a_reward_that_raises_for_a_crystal_fails_that_crystal_alone(server: TritonServer) -> None:
    with server.connect() as reward:
        scores = reward.score([crystal(3.0), crystal(3.0, RAISE), crystal(5.0)])
    assert scores.status.tolist() == [Status.OK, Status.FAILED, Status.OK]
    assert np.allclose(scores.values[[0, 2]], [3.0, 5.0])
    assert server.healthy()


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
    # And the probes: Triton counted what the clients counted, a moment after it answered.
    assert wait_until(lambda: server.statistics().inferences - before.inferences >= 160 + 8, 20)
    after = server.statistics()
    inferences, executions = after.inferences - before.inferences, after.executions - before.executions
    assert inferences == 160 + 8
    assert executions < 0.7 * inferences, "eight clients on two workers must be merged"
    assert sum(after.structures.values()) - sum(before.structures.values()) == 160


def test_a_reward_that_tries_to_end_its_process_fails_its_request_alone(server: TritonServer) -> None:
    workers = server.worker_pids
    with server.connect(patience_s=0) as reward:
        reward.probe()
        with pytest.raises(RewardUnavailable, match=r"failed on this request; ticket [0-9a-f]{8}") as caught:
            reward.score([crystal(3.0), crystal(3.0, EXIT)])
        assert np.allclose(reward.score(crystals(3)).values, lengths(3))
    assert says_nothing_of(server, str(caught.value))
    ticket = str(caught.value).split("ticket ")[1][:8]
    assert f"[{ticket}]" in server.log_path.read_text()  # where the whole story is
    assert "ended in" in server.log_path.read_text()
    assert server.worker_pids == workers
