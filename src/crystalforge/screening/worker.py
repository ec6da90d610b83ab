"""A worker process: takes jobs from its pipe, leaves each result as a file, and says so.

The result is on the disk before it is told, and a worker finishes the job it is at when its screening has been killed:
whatever was computed is never computed again. What it is asked to compute is noted in `calls-<process>.jsonl` as it
begins, so that this can be counted.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from typing import IO, Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file


def work(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Until the pipe is closed."""
    import torch

    from crystalforge.screening.jobs import Workbench

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted screening lets its workers finish
    torch.set_num_threads(1)
    model, config, seed, folder = pickle.load(requests)
    bench = Workbench(model, config, seed)
    while True:
        try:
            name, kind, payload = pickle.load(requests)
        except EOFError:
            return
        answer: Any = name
        try:
            with (folder / f"calls-{os.getpid()}.jsonl").open("a") as calls:
                calls.write(json.dumps({"job": name, "kind": kind, "count": _size(payload)}) + "\n")
            began = time.monotonic()
            result = bench.do(kind, payload)
            result["seconds"] = round(time.monotonic() - began, 3)
            with atomic_file(folder / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(result))
        except InputError as error:
            answer = error
        except Exception as error:  # a defect: told with its place, and raised by whoever asked
            import traceback

            answer = RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # nobody listens any more; the file is there
            return


def _size(payload: dict[str, Any]) -> int:
    return len(payload["crystals"]) if "crystals" in payload else int(payload["count"])


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between the pickles
    sys.stdout = sys.stderr
    work(sys.stdin.buffer, channel)
