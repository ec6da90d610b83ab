"""Seeds for different purposes from the one seed of a run, so that no two purposes share random numbers."""

from __future__ import annotations

import hashlib


def derived(seed: int, purpose: str) -> int:
    """A seed in [0, 2^63) that depends on both arguments.

    >>> derived(0, "evaluate") != derived(0, "finetune")
    True
    """
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
