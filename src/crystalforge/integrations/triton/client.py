"""`RemoteReward`: the reward behind a Triton server, with the same protocol as one in this process.

Crystals are cut into chunks by their sizes alone, several chunks are under way at once (one per worker of the
server), and answers are put together in order, so that timing never changes a result. Whatever does not look
exactly like an answer of the expected reward is an error: a run stops or waits, it never learns from a wrong
number.

Only a server that is away is waited for, with growing pauses and for a limited time: UNAVAILABLE, and Triton's
INTERNAL "stub process is not healthy", which means the same (the worker is gone, nothing was computed; a
supervised server is started again within seconds). Chunks that were answered before are kept. No other error is
tried again.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalforge.common.errors import missing_extra
from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.connection import ClientConfig, close_all, connect, diagnose, headers, safe
from crystalforge.integrations.triton.wire import (
    ABOUT,
    INPUTS,
    SCORE_OUTPUTS,
    About,
    WireError,
    bytes_to_text,
    canary,
    chunks,
    encode,
)
from crystalforge.rewards.protocol import RewardUnavailable, RewardVersion, Scores, Status

if TYPE_CHECKING:
    import tritonclient.grpc as triton

PROBE_PRIORITY, WORK_PRIORITY = 1, 2  # levels of the model's queue: probes overtake work
# A probe may share a forward pass with other small requests, where the last bits of an energy may differ.
CANARY_TOLERANCE = 1e-4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


@dataclass
class Counters:
    """What this client has been given: answered requests, crystals in them, probes; and calls tried again."""

    requests: int = 0
    structures: int = 0
    probes: int = 0
    retries: int = 0


class RemoteReward:
    """A `Reward` served by Triton.

    >>> reward = RemoteReward("127.0.0.1:8001", "ehull")          # doctest: +SKIP
    >>> reward.score([crystal]).values                            # doctest: +SKIP
    array([-0.021])
    """

    def __init__(
        self, url: str, model: str, *, expected_version: str | None = None, config: ClientConfig | None = None
    ) -> None:
        """Nothing is sent yet.

        url: host:port of the gRPC endpoint. expected_version: the digest of the reward that the run is pinned
        to; without it the first digest seen is the pin. Raises InputError when tritonclient is not installed
        or a file named in `config` cannot be read.
        """
        try:
            import tritonclient.grpc
        except ImportError as error:
            raise missing_extra("tritonclient", "platform", error) from error
        del tritonclient
        self.url, self.model = url.removeprefix("grpc://"), model
        self.config = config or ClientConfig()
        self.counters = Counters()
        self._expected = expected_version
        self._headers = headers(self.config)
        self._about: About | None = None
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._open: list[triton.InferenceServerClient] = []
        # Also at the interpreter's end, where gRPC's own clean-up comes too late and complains.
        weakref.finalize(self, close_all, self._open)
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> RemoteReward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        with self._lock:
            close_all(self._open)
            self._thread = threading.local()

    @property
    def version(self) -> RewardVersion:
        """What the server serves; asked once, then checked with every answer."""
        return self.about().version

    def about(self) -> About:
        """What the server says of itself; RewardUnavailable when it is not what the run is pinned to."""
        if self._about is None:
            self.probe()
        assert self._about is not None
        return self._about

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        """Score B crystals, in order; RewardUnavailable when any of them could not be scored."""
        about = self.about()
        sizes = np.array([0 if crystal is None else len(crystal) for crystal in crystals], dtype=np.int32)
        pieces = chunks(sizes, self.config.chunk_structures, self.config.chunk_atoms)
        if not pieces:
            return Scores(np.zeros(0), np.zeros(0, np.int32), {name: np.zeros(0) for name in about.components})
        if len(pieces) == 1:
            return self._score_chunk(crystals, about)
        if self._pool is None:
            workers = self.config.in_flight or about.instances
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="remote-reward")
        futures = [self._pool.submit(self._score_chunk, crystals[piece], about) for piece in pieces]
        try:
            return Scores.concatenate([future.result() for future in futures])
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def probe(self) -> About:
        """Score one known crystal and compare; RewardUnavailable when the server is away, ill or another one.

        A server whose worker died still says that it is ready; this asks it to work.
        """
        answer = self._infer([canary()], (*SCORE_OUTPUTS, ABOUT), PROBE_PRIORITY)
        try:
            about = About.from_bytes(_tensor(answer, ABOUT, "UINT8", ndim=1))
            self._check_version(about.digest, about.name)
            value = float(self._read(answer, 1, about).values[0])
        except WireError as error:
            raise self._unavailable(f"sent a malformed answer: {error}") from error
        if abs(value - about.canary) > CANARY_TOLERANCE:
            raise self._unavailable(f"scores the probe with {value:.6g}, but it gave {about.canary:.6g} at its start")
        with self._lock:
            self.counters.probes += 1
            self._about = about
        return about

    def statistics(self) -> dict[str, int]:
        """Triton's own counts for this model since the server started (probes included)."""
        from tritonclient.utils import InferenceServerException

        try:
            answer: Any = self._client().get_inference_statistics(
                self.model, headers=self._headers, client_timeout=self.config.deadline_s
            )
        except InferenceServerException as error:
            raise self._unavailable(safe(error)) from None
        counts = answer.model_stats[0]
        return {
            "inferences": int(counts.inference_count),
            "executions": int(counts.execution_count),
            "failures": int(counts.inference_stats.fail.count),
        }

    def _score_chunk(self, crystals: Sequence[Crystal | None], about: About) -> Scores:
        answer = self._infer(crystals, SCORE_OUTPUTS, WORK_PRIORITY)
        try:
            self._check_version(bytes_to_text(_tensor(answer, "digest", "UINT8", ndim=1)), about.name)
            scores = self._read(answer, len(crystals), about)
        except WireError as error:
            raise self._unavailable(f"sent a malformed answer: {error}") from error
        with self._lock:
            self.counters.requests += 1
            self.counters.structures += len(crystals)
        return scores

    def _infer(self, crystals: Sequence[Crystal | None], outputs: Sequence[str], priority: int) -> Any:
        """One request, tried again while the server is away."""
        import tritonclient.grpc as triton
        from tritonclient.utils import InferenceServerException

        inputs = []
        for name, array in encode(crystals).items():
            tensor = triton.InferInput(name, [1, *array.shape], INPUTS[name])
            tensor.set_data_from_numpy(array[None])
            inputs.append(tensor)
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        pause, away_since = FIRST_PAUSE_S, None
        while True:
            try:
                return self._client().infer(
                    self.model, inputs, outputs=wanted, priority=priority, headers=self._headers,
                    client_timeout=self.config.deadline_s, timeout=int(self.config.deadline_s * 1e6),
                )  # fmt: skip
            except InferenceServerException as error:
                reason, away = diagnose(error, self.config.deadline_s, served_before=self._about is not None)
                now = time.monotonic()
                away_since = away_since or now
                if not away:
                    raise self._unavailable(reason) from None
                if now - away_since + pause > self.config.patience_s:
                    waited = f" (waited {now - away_since:.0f} s)" if self.config.patience_s else ""
                    raise self._unavailable(f"{reason}{waited}") from None
            with self._lock:
                self.counters.retries += 1
            self._drop_client()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _read(self, answer: Any, rows: int, about: About) -> Scores:
        """The scores in an answer; WireError unless every number is there and is a number."""
        values = _tensor(answer, "values", "FP64", ndim=1)
        status = _tensor(answer, "status", "INT32", ndim=1)
        table = _tensor(answer, "components", "FP64", ndim=2)
        if values.shape != (rows,) or status.shape != (rows,):
            raise WireError(f"{len(values)} values and {len(status)} statuses for {rows} crystals")
        if table.shape != (rows, len(about.components)):
            raise WireError(f"components of shape {table.shape}, expected ({rows}, {len(about.components)})")
        if not np.isfinite(values).all():
            raise WireError("a value is not finite")
        if not np.isin(status, [int(known) for known in Status]).all():
            raise WireError(f"unknown status {int(status.max())}; is the server newer than this client?")
        columns = {name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(about.components)}
        return Scores(values, status, columns)

    def _check_version(self, digest: str, name: str) -> None:
        with self._lock:
            expected = self._expected = self._expected or digest
        if digest != expected:
            raise RewardUnavailable(
                f"the reward server at {self.url} serves {name} with digest {digest[:12]}, but this run is "
                f"pinned to {expected[:12]}: values of two rewards must not be mixed.\n"
                f"  Remedy: serve the pinned version, or start a new run."
            )

    def _client(self) -> triton.InferenceServerClient:
        """This thread's connection. An old one is given up: the name is looked up anew, and shows replicas that came
        since (round robin goes over all addresses that the name had when the connection was made)."""
        client = getattr(self._thread, "client", None)
        if client is not None and time.monotonic() - self._thread.since > self.config.connection_age_s:
            self._drop_client()
            client = None
        if client is None:
            client = connect(self.url, self.config)
            self._thread.client, self._thread.since = client, time.monotonic()
            with self._lock:
                self._open.append(client)
        return client

    def _drop_client(self) -> None:
        """Forget this thread's connection: a new one does not inherit gRPC's growing pauses."""
        client, self._thread.client = getattr(self._thread, "client", None), None
        with self._lock:
            if client not in self._open:  # closed by `close` meanwhile
                return
            self._open.remove(client)
        client.close()

    def _unavailable(self, reason: str) -> RewardUnavailable:
        return RewardUnavailable(
            f"the reward server at {self.url} (model {self.model}) {reason}.\n"
            f"  Remedy: look at its log and start it again, then repeat the command; finished work is kept."
        )


def _tensor(answer: Any, name: str, kind: str, *, ndim: int) -> np.ndarray:
    """One output without Triton's leading dimension; WireError when it is missing or of another kind."""
    described = answer.get_output(name)
    if described is None:
        raise WireError(f"the output {name!r} is missing")
    if described.datatype != kind or len(described.shape) != ndim + 1 or described.shape[0] != 1:
        raise WireError(f"{name} is {described.datatype} {list(described.shape)}, expected {kind} with rank {ndim}")
    try:
        array = answer.as_numpy(name)
    except ValueError as error:
        raise WireError(f"the bytes of {name} do not fill its shape {list(described.shape)}") from error
    if array is None or array.shape != tuple(described.shape):
        raise WireError(f"the bytes of {name} do not fill its shape {list(described.shape)}")
    return np.array(array[0])
