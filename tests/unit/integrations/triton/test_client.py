"""The client against a server that misbehaves: a real gRPC endpoint speaking Triton's protocol, answering as told.

The real Triton cannot be made to answer rubbish; these tests need one that does. What the real one does is tested in
tests/integration and tests/contract.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.client import RemoteReward
from crystalforge.integrations.triton.connection import ClientConfig
from crystalforge.integrations.triton.wire import About, text_to_bytes
from crystalforge.rewards.protocol import Reward, RewardUnavailable

ABOUT = About("ehull", "ab" * 32, ("one", "two"), -0.25, 2, 8, 4096, 50_000)
TYPES = {"values": "FP64", "status": "INT32", "components": "FP64", "digest": "UINT8", "about": "UINT8"}
Tensors = dict[str, np.ndarray]


class Misbehaving(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Scores each crystal with minus the length of its first lattice vector, then lets `spoil` at the answer."""

    def __init__(self) -> None:
        self.spoil: Callable[[Tensors, Any], Tensors | None] = lambda tensors, context: tensors
        self.respell: Callable[[Any], None] = lambda response: None
        self.about, self.probe_value = ABOUT, ABOUT.canary
        self.calls = 0
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self.lock:
            self.calls += 1
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            lattice = np.frombuffer(request.raw_input_contents[0], np.float64).reshape(-1, 3, 3)
            about = any(output.name == "about" for output in request.outputs)
            n = len(lattice)
            values = np.full(n, self.probe_value) if about else -np.linalg.norm(lattice[:, 0], axis=1)
            tensors: Tensors = {
                "values": values,
                "status": np.zeros(n, np.int32),
                "components": np.stack([values, 2 * values], axis=1),
                "digest": text_to_bytes(ABOUT.digest),
                "about": self.about.to_bytes(),
            }
            if not about:
                tensors = self.spoil(tensors, context) or {}
            response = service_pb2.ModelInferResponse(model_name=request.model_name)  # type: ignore[attr-defined]
            for name, array in tensors.items():
                output = response.outputs.add(name=name, datatype=TYPES[name])
                output.shape.extend([1, *array.shape])
                response.raw_output_contents.append(np.ascontiguousarray(array).tobytes())
            if not about:
                self.respell(response)
            return response
        finally:
            with self.lock:
                self.busy -= 1


@contextmanager
def serving(port: int = 0) -> Iterator[tuple[Misbehaving, str]]:
    service = Misbehaving()
    endpoint = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, endpoint)
    port = endpoint.add_insecure_port(f"127.0.0.1:{port}")
    endpoint.start()
    yield service, f"127.0.0.1:{port}"
    endpoint.stop(0)


@pytest.fixture
def server() -> Iterator[tuple[Misbehaving, str]]:
    with serving() as found:
        yield found


@contextmanager
def black_hole() -> Iterator[int]:
    """A port where nobody answers at all, as behind a dead node: Linux drops what a full queue cannot hold."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.5).close()
        yield listener.getsockname()[1]


def crystals(n: int) -> list[Crystal | None]:
    return [Crystal.of(np.eye(3) * (k + 1), [11], [[0, 0, 0]]) for k in range(n)]


def client(url: str, **fields: Any) -> RemoteReward:
    return RemoteReward(url, "ehull", config=ClientConfig(**{"chunk_structures": 4, "patience_s": 0.0, **fields}))


def test_answers_come_back_in_order_whatever_the_timing(server: tuple[Misbehaving, str]) -> None:
    service, url = server

    def late_first(tensors: Tensors, context: Any) -> Tensors:
        time.sleep(0.2 if tensors["values"][0] == -1.0 else 0.0)
        return tensors

    service.spoil = late_first
    with client(url) as reward:
        assert isinstance(reward, Reward)
        scores = reward.score(crystals(30))
        assert scores.values.tolist() == [-(k + 1.0) for k in range(30)]
        assert scores.components["two"].tolist() == [-2 * (k + 1.0) for k in range(30)]
        assert (reward.counters.requests, reward.counters.structures, reward.counters.probes) == (8, 30, 1)
        assert service.most == ABOUT.instances  # one request per worker is under way, no more


def test_no_crystals_is_an_empty_answer_with_the_components(server: tuple[Misbehaving, str]) -> None:
    with client(server[1]) as reward:
        scores = reward.score([])
        assert len(scores) == 0
        assert list(scores.components) == ["one", "two"]


SPOILED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "nan": (lambda t: {**t, "values": np.where(np.arange(4) == 2, np.nan, t["values"])}, "not finite"),
    "infinite": (lambda t: {**t, "values": t["values"] - np.inf}, "not finite"),
    "short": (lambda t: {**t, "values": t["values"][:3]}, "3 values and 4 statuses for 4 crystals"),
    "long": (lambda t: {**t, "status": np.zeros(5, np.int32)}, "4 values and 5 statuses"),
    "unknown status": (lambda t: {**t, "status": np.full(4, 99, np.int32)}, "unknown status 99"),
    "components missing": (lambda t: {k: v for k, v in t.items() if k != "components"}, "'components' is missing"),
    "columns": (lambda t: {**t, "components": t["components"][:, :1]}, "components of shape"),
    "rank": (lambda t: {**t, "values": t["values"][None]}, "expected FP64 with rank 1"),
    "no digest": (lambda t: {k: v for k, v in t.items() if k != "digest"}, "'digest' is missing"),
    "another reward": (lambda t: {**t, "digest": text_to_bytes("cd" * 32)}, "pinned to abababababab"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_wrong_answer_is_an_error_and_is_not_asked_for_again(server: tuple[Misbehaving, str], how: str) -> None:
    service, url = server
    spoil, says = SPOILED[how]
    service.spoil = lambda tensors, context: spoil(tensors)
    with client(url, patience_s=30) as reward:
        with pytest.raises(RewardUnavailable, match=says):
            reward.score(crystals(4))
        assert service.calls == 2  # the probe and the one request
        assert reward.counters.structures == 0


@pytest.mark.parametrize("field", ["bytes", "type"])
def test_an_answer_whose_bytes_do_not_fit_is_an_error(server: tuple[Misbehaving, str], field: str) -> None:
    service, url = server

    def respell(response: Any) -> None:
        if field == "bytes":
            response.raw_output_contents[0] = response.raw_output_contents[0][:-8]
        else:
            response.outputs[0].datatype = "INT64"

    service.respell = respell
    with client(url) as reward, pytest.raises(RewardUnavailable, match="malformed answer"):
        reward.score(crystals(4))


def test_only_unavailable_is_tried_again(server: tuple[Misbehaving, str]) -> None:
    service, url = server
    refusals = {"left": 2, "code": grpc.StatusCode.UNAVAILABLE, "text": "going away"}

    def refuse(tensors: Tensors, context: Any) -> Tensors:
        if refusals["left"] > 0:
            refusals["left"] -= 1
            context.abort(refusals["code"], refusals["text"])
        return tensors

    service.spoil = refuse
    with client(url, patience_s=30) as reward:
        assert reward.score(crystals(4)).values[0] == -1.0
        assert reward.counters.retries == 2
        refusals.update(left=1, code=grpc.StatusCode.INTERNAL, text="Stub process 'ehull_0_0' is not healthy.")
        assert reward.score(crystals(4)).values[0] == -1.0  # a dead worker computed nothing either
        for code, text, says in [
            (grpc.StatusCode.INTERNAL, "the reward failed on this request; ticket 1", "ticket 1"),
            (grpc.StatusCode.INVALID_ARGUMENT, "malformed request: no", "malformed request"),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", "size of the message"),
            (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header", "token"),
        ]:
            refusals.update(left=10, code=code, text=text)
            with pytest.raises(RewardUnavailable, match=says):
                reward.score(crystals(4))
            assert refusals["left"] == 9
        assert reward.counters.structures == 8  # each answered crystal once


def test_one_failing_chunk_fails_the_call(server: tuple[Misbehaving, str]) -> None:
    service, url = server

    def fail_third(tensors: Tensors, context: Any) -> Tensors:
        if tensors["values"][0] == -9.0:
            context.abort(grpc.StatusCode.INTERNAL, "ticket 7")
        return tensors

    service.spoil = fail_third
    with client(url) as reward, pytest.raises(RewardUnavailable, match="ticket 7"):
        reward.score(crystals(40))


def test_a_late_answer_is_an_error_that_names_the_deadline(server: tuple[Misbehaving, str]) -> None:
    service, url = server
    service.spoil = lambda tensors, context: time.sleep(1.0) or tensors
    with client(url, deadline_s=0.3) as reward, pytest.raises(RewardUnavailable, match=r"deadline of 0\.3 s"):
        reward.score(crystals(1))


def test_a_pinned_version_is_refused_before_anything_is_scored(server: tuple[Misbehaving, str]) -> None:
    service, url = server
    with RemoteReward(url, "ehull", expected_version="12" * 32, config=ClientConfig(patience_s=0)) as reward:
        with pytest.raises(RewardUnavailable, match=r"abababababab.*pinned to 121212121212"):
            reward.score(crystals(1))
        assert service.calls == 1
    with RemoteReward(url, "ehull", expected_version=ABOUT.digest) as reward:
        assert reward.version == ABOUT.version


def test_a_server_whose_probe_has_another_value_is_refused(server: tuple[Misbehaving, str]) -> None:
    service, url = server
    service.probe_value = ABOUT.canary + 0.01
    with client(url) as reward, pytest.raises(RewardUnavailable, match=r"probe with -0\.24, but it gave -0\.25"):
        reward.score(crystals(1))


def test_a_wire_of_another_version_is_refused(server: tuple[Misbehaving, str]) -> None:
    service, url = server
    service.about = replace(ABOUT, wire=2)
    with client(url) as reward, pytest.raises(RewardUnavailable, match="wire version 2, this client 1"):
        reward.version  # noqa: B018


def test_nobody_there_names_the_server_and_the_remedy() -> None:
    with client("127.0.0.1:9", patience_s=0.3) as reward:
        began = time.monotonic()
        with pytest.raises(RewardUnavailable, match=r"127\.0\.0\.1:9 .*cannot be reached.*\n.*Remedy") as caught:
            reward.score(crystals(1))
        assert 0.05 < time.monotonic() - began < 10
    assert "waited" in str(caught.value)


@pytest.mark.parametrize(("tls", "deadline_s"), [(False, 4.0), (True, 120.0)])
def test_a_node_that_does_not_answer_at_all_is_no_fault_of_tls(tls: bool, deadline_s: float) -> None:
    with black_hole() as port, client(f"127.0.0.1:{port}", patience_s=3.0, deadline_s=deadline_s, tls=tls) as reward:
        began = time.monotonic()
        with pytest.raises(RewardUnavailable, match=r"cannot be reached \(waited"):
            reward.score(crystals(1))
        assert 2.0 < time.monotonic() - began < 30, "its patience, and one attempt to connect at most"


def test_a_node_that_comes_back_is_found_again() -> None:
    result: dict[str, Any] = {}
    with ExitStack() as away:
        port = away.enter_context(black_hole())
        with client(f"127.0.0.1:{port}", patience_s=60.0) as reward:
            worker = threading.Thread(target=lambda: result.update(scores=reward.score(crystals(3))))
            worker.start()
            time.sleep(1.0)
            away.close()
            with serving(port):
                worker.join(30)
                assert not worker.is_alive()
        assert result["scores"].values.tolist() == [-1.0, -2.0, -3.0]


def test_files_of_the_configuration_are_checked_at_once(tmp_path: Any) -> None:
    for field in ("root_certificate", "token_file"):
        with pytest.raises(InputError, match=r"absent\.pem: no such file"):
            RemoteReward("127.0.0.1:9", "ehull", config=ClientConfig(**{field: tmp_path / "absent.pem"}))
    with pytest.raises(ValueError, match="both certificate and key"):
        ClientConfig(certificate=tmp_path / "client.pem")
