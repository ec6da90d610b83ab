"""For tests of a reward server: a reward that goes wrong on request, and what it takes to treat a server badly."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.wire import INPUTS, SCORE_OUTPUTS
from crystalforge.rewards import parse
from serving.launcher import TritonServer

SLEEP, NAN, RAISE, EXIT = 50, 49, 48, 47
"""Atomic numbers that make `size` sleep two seconds, answer NaN, raise, or try to end its process."""


def size(crystals: Sequence[Crystal], pause: float = 0.0, scale: float = 1.0) -> list[float]:
    """A reward that is up in seconds: the longest first lattice vector wins, atomic numbers choose what goes wrong."""
    time.sleep(pause)
    numbers = [set(crystal.numbers.tolist()) for crystal in crystals]
    if any(SLEEP in kinds for kinds in numbers):
        time.sleep(2.0)
    if any(RAISE in kinds for kinds in numbers):
        raise RuntimeError(f"failed in {__file__}")
    if any(EXIT in kinds for kinds in numbers):
        raise SystemExit(f"ended in {__file__}")
    lengths = [scale * float(np.linalg.norm(crystal.lattice[0])) for crystal in crystals]
    return [np.nan if NAN in kinds else length for kinds, length in zip(numbers, lengths, strict=True)]


def size_reward(**options: Any) -> Any:
    """The configuration of `size` as a reward."""
    return parse({"kind": "custom", "function": "serving.testing:size", "options": options})


def crystal(length: float, number: int = 11) -> Crystal:
    """One atom in a cell whose first vector has this length, which is its value."""
    return Crystal.of(np.diag([length, 4.0, 4.0]), [number], [[0, 0, 0]])


def crystals(n: int) -> list[Crystal | None]:
    """`n` crystals of different values."""
    return [crystal(length) for length in lengths(n)]


def lengths(n: int) -> np.ndarray:
    """The values of `crystals(n)`."""
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


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def send_raw(server: TritonServer, tensors: dict[str, np.ndarray], **types: str) -> Any:
    """Send tensors as they are, without our client's care."""
    import tritonclient.grpc as triton

    inputs = []
    for name, array in tensors.items():
        tensor = triton.InferInput(name, list(array.shape), types.get(name, INPUTS[name]))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        return client.infer(server.model, inputs, outputs=[triton.InferRequestedOutput(n) for n in SCORE_OUTPUTS])


def says_nothing_of(server: TritonServer, text: str) -> bool:
    """Whether a text that reached a client keeps the server's paths and code to itself."""
    forbidden = [str(server.run_dir), "site-packages", "Traceback", "model.py", str(Path.home()), ".py", "/tmp"]
    return not any(word in text for word in forbidden)


class Authority:
    """A certificate authority of one's own: real certificates, good for two days, as PEM files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.certificate = folder, folder / "ca.pem"
        self._openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2"
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for 127.0.0.1, signed by this authority."""
        self._openssl("req", *_NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (self._folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", "names",
        )  # fmt: skip
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
