"""The Triton side of every reward: tensors in, `serving.service.RewardService`, tensors out.

Triton's Python backend (build 2.51) is silently wrong with numpy 2 through `as_numpy()` and `Tensor(name,
ndarray)`; everything here goes through DLPack, which is right under both. What a client may read of an error
is written here: no message of the interpreter, no path and no traceback leaves this file.
"""

from __future__ import annotations

import json
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]


class TritonPythonModel:
    """One worker: loads the reward that `settings.json` beside this file describes, then answers requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the reward and prove it; an exception here keeps the server from becoming ready."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text())
        sys.path[:0] = [path for path in settings["python_path"] if path not in sys.path]

        import torch

        torch.set_num_threads(1)  # one core per worker; more workers, not more threads
        if args["model_instance_kind"] == "GPU":
            torch.cuda.set_device(int(args["model_instance_device_id"]))  # what `device: cuda` then means

        from crystalforge import rewards
        from crystalforge.rewards import Status
        from serving.service import Limits, RewardService

        reward = rewards.build(rewards.parse(settings["reward"]))
        expected = settings["expected_digest"]
        if expected is not None and reward.version.digest != expected:
            raise RuntimeError(
                f"refusing to serve: the reward is {reward.version}, but digest {expected} was asked for"
            )
        self._service = RewardService(reward, Limits(**settings["limits"]), instances=settings["instances"])
        self._digest = _text(self._service.about.digest)
        self._about = torch.from_numpy(self._service.about.to_bytes()).reshape(1, -1)
        self._name = args["model_name"]
        self._structures = pb_utils.MetricFamily(
            name="crystalforge_structures_total",
            description="Crystals that were scored, by status",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._counters = {
            status.name.lower(): self._structures.Metric(labels={"model": self._name, "status": status.name.lower()})
            for status in Status
        }
        # Kept: a metric dies with its family.
        self._families = {
            name: pb_utils.MetricFamily(
                name=f"crystalforge_{name}_total",
                description=f"{name.replace('_', ' ')} of the reward's workers",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            for name in self._service.counters()
        }
        self._inner = {name: family.Metric(labels={"model": self._name}) for name, family in self._families.items()}
        self._seen = dict.fromkeys(self._inner, 0)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch: an error of one request never becomes an error of another."""
        try:
            answers = self._service.answer([_inputs(request) for request in requests])
            self._publish_counters()
            return [self._respond(*pair) for pair in zip(requests, answers, strict=True)]
        except BaseException as error:  # SystemExit too: Triton would send the text to the clients
            return [_failure(error)] * len(requests)

    def _publish_counters(self) -> None:
        for name, value in self._service.counters().items():
            self._inner[name].increment(value - self._seen[name])
            self._seen[name] = value

    def _respond(self, request: Any, answer: Any) -> Any:
        from serving.service import WireError

        if isinstance(answer, WireError):
            return _error(f"malformed request: {answer}", pb_utils.TritonError.INVALID_ARG)
        if isinstance(answer, Exception):
            return _failure(answer)
        import torch

        wanted = request.requested_output_names()
        if "about" not in wanted:  # probes are not part of anybody's work
            self._count(answer)
        table = {
            "values": torch.from_numpy(np.ascontiguousarray(answer.values)).reshape(1, -1),
            "status": torch.from_numpy(np.ascontiguousarray(answer.status, dtype=np.int32)).reshape(1, -1),
            "components": torch.from_numpy(np.ascontiguousarray(self._service.table(answer)))[None],
            "digest": self._digest,
            "about": self._about,
        }
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor.from_dlpack(name, table[name]) for name in table if name in wanted]
        )

    def _count(self, scores: Any) -> None:
        for status, number in scores.counts().items():
            self._counters[status].increment(number)


def _inputs(request: Any) -> dict[str, np.ndarray]:
    """Copies of the request's tensors without Triton's leading dimension (the memory is Triton's)."""
    return {tensor.name(): np.array(np.from_dlpack(tensor))[0] for tensor in request.inputs()}


def _text(text: str) -> Any:
    import torch

    return torch.tensor(list(text.encode()), dtype=torch.uint8).reshape(1, -1)


def _failure(error: BaseException) -> Any:
    """The answer to a request that failed here: what happened is in the log, under the ticket that the client gets."""
    ticket = uuid.uuid4().hex[:8]
    pb_utils.Logger.log_error(f"[{ticket}] {''.join(traceback.format_exception(error))}")
    return _error(f"the reward failed on this request; ticket {ticket} in the server's log", None)


def _error(message: str, code: int | None) -> Any:
    error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(error=error)
