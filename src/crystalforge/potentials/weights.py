"""One digest for any model's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def digest_of(state: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """SHA-256 over tensors (name, type, shape, bytes; sorted by name) and JSON-able settings.

    Independent of the device and of the file format, so that the same weights give the same digest
    everywhere.
    """
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, torch.Tensor):
            continue
        array = value.detach().cpu().contiguous()
        total.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        total.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return total.hexdigest()
