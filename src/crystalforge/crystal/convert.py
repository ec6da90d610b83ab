"""The way between crystals and tokens, one or many at a time.

>>> salt = Crystal.of([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [11, 17], [[0, 0, 0], [.5, .5, .5]])
>>> tokens = tokenize(salt)
>>> int(tokens.spacegroup[0]), tokens.wyckoff[0, :3].tolist(), len(to_crystals(tokens, primitive=True)[0])
(225, [1, 2, 0], 2)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int64

from crystalforge.common.progress import Progress
from crystalforge.crystal.crystal import Crystal
from crystalforge.crystal.orbits import to_crystals, to_packed
from crystalforge.crystal.symmetry import Reason, TokenizeError, tokenize
from crystalforge.crystal.tokens import Tokens
from crystalforge.crystal.workers import Settings, tokenize_chunk, tokenize_in_processes

__all__ = ["Reject", "Tokenized", "TokenizeError", "to_crystals", "to_packed", "tokenize", "tokenize_many"]

CHUNK = 256  # crystals per message between processes: about half a second of work, so pipes and pickling cost nothing


@dataclass(frozen=True)
class Reject:
    """A crystal that could not be tokenised: its place in the input, its id (None if not given), and why."""

    index: int
    id: str | None
    reason: Reason
    message: str


@dataclass(frozen=True, eq=False)
class Tokenized:
    """Tokens of the crystals that have them, in input order; `index` [B] is each row's place in the input."""

    tokens: Tokens
    index: Int64[np.ndarray, " B"]
    rejects: list[Reject]

    def reasons(self) -> dict[str, int]:
        """How many crystals were rejected for each reason."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())


def tokenize_many(
    crystals: Iterable[Crystal | None],
    *,
    processes: int = 1,
    ids: Sequence[str] | None = None,
    symprec: float = 0.01,
    max_sites: int = 20,
    progress: Progress | None = None,
) -> Tokenized:
    """Tokens of many crystals; those that have none become rejects. Never raises for a bad crystal.

    The input is read as it is needed. The result does not depend on `processes`; with more than one, crystals go to
    worker processes in chunks. ids: names for the rejects, one per crystal. progress: counts crystals.
    """
    settings = Settings(symprec, max_sites)
    chunks = _chunks(crystals)
    if processes > 1:
        results = tokenize_in_processes(chunks, processes, settings)
    else:
        results = (tokenize_chunk(chunk, settings) for chunk in chunks)
    tokens, index, rejects, start = [Tokens.empty(max_sites + 1)], [np.zeros(0, dtype=np.int64)], [], 0
    for result in results:
        tokens.append(result.tokens)
        index.append(result.kept + start)
        for position, reason, message in result.failed:
            place = start + position
            rejects.append(Reject(place, None if ids is None else str(ids[place]), reason, message))
        start += result.size
        if progress is not None:
            progress.update(result.size, note=f"{len(rejects)} rejected" if rejects else "")
    return Tokenized(Tokens.concatenate(tokens), np.concatenate(index), rejects)


def _chunks(crystals: Iterable[Crystal | None]) -> Iterator[list[Crystal | None]]:
    iterator = iter(crystals)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
