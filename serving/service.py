"""What one worker of the reward service does with a batch of requests; knows nothing of Triton.

The rule that keeps runs repeatable: a request of `merge_below` crystals or more is computed by itself, so its
answer does not depend on who else asks at that moment. Smaller requests (a person, a probe, a notebook) are
merged into common forward passes, where the last bits may depend on the neighbours (measured below 1e-5
eV/atom).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crystalforge.crystal import Crystal
from crystalforge.integrations.triton.wire import About, WireError, canary, chunks, component_table, decode
from crystalforge.rewards.protocol import Reward, Scores


@dataclass(frozen=True)
class Limits:
    """How a worker cuts its work.

    chunk_structures, chunk_atoms: the largest forward pass; merge_below: requests with fewer crystals are
    merged; max_atoms: a request with more atoms is refused (a single larger crystal is accepted: it gets its
    status).
    """

    chunk_structures: int = 64
    chunk_atoms: int = 4096
    merge_below: int = 16
    max_atoms: int = 50_000


Pass = list[int]  # indices of the requests whose crystals share one forward pass


def plan(sizes: Sequence[int], atoms: Sequence[int], limits: Limits) -> list[Pass]:
    """Group requests: large ones alone, small ones together while they fit into one pass, in order."""
    alone = [[i] for i, size in enumerate(sizes) if size >= limits.merge_below]
    small = [i for i, size in enumerate(sizes) if size < limits.merge_below]
    groups: list[Pass] = []
    structures = total = 0
    for i in small:
        fits = structures + sizes[i] <= limits.chunk_structures and total + atoms[i] <= limits.chunk_atoms
        if groups and fits:
            groups[-1].append(i)
            structures, total = structures + sizes[i], total + atoms[i]
        else:
            groups.append([i])
            structures, total = sizes[i], atoms[i]
    return alone + groups


class RewardService:
    """A reward with the frame around it: limits, merging, and errors that are safe to send."""

    def __init__(self, reward: Reward, limits: Limits, *, instances: int = 1) -> None:
        self.reward, self.limits = reward, limits
        first = reward.score([canary()])
        version = reward.version
        self.about = About(
            version.name, version.digest, tuple(first.components), float(first.values[0]), instances,
            limits.chunk_structures, limits.chunk_atoms, limits.max_atoms, dict(version.golden),
        )  # fmt: skip

    def answer(self, requests: Sequence[Mapping[str, np.ndarray]]) -> list[Scores | WireError | Exception]:
        """One answer per request: scores, WireError (the client's fault), or whatever the reward raised."""
        answers: list[Scores | WireError | Exception] = [RuntimeError("not answered")] * len(requests)
        crystals: list[list[Crystal | None]] = []
        valid: list[int] = []
        for i, tensors in enumerate(requests):
            try:
                decoded = decode(tensors)
                self._check_size(decoded)
            except WireError as error:
                answers[i] = error
                continue
            crystals.append(decoded)
            valid.append(i)
        counts = [np.array([0 if c is None else len(c) for c in request], np.int32) for request in crystals]
        for group in plan([len(c) for c in crystals], [int(n.sum()) for n in counts], self.limits):
            together = [crystal for j in group for crystal in crystals[j]]
            try:
                scores = self._score(together, np.concatenate([counts[j] for j in group]))
            except Exception as error:
                for j in group:
                    answers[valid[j]] = error
                continue
            begin = 0
            for j in group:
                rows = slice(begin, begin + len(crystals[j]))
                begin = rows.stop
                answers[valid[j]] = Scores(
                    scores.values[rows], scores.status[rows],
                    {name: column[rows] for name, column in scores.components.items()},
                )  # fmt: skip
        return answers

    def counters(self) -> dict[str, int]:
        """What the reward itself counts (cache hits), since its start."""
        return getattr(self.reward, "counters", dict)()

    def table(self, scores: Scores) -> np.ndarray:
        """The components as a [B, K] table in the announced order."""
        return component_table(scores, self.about.components)

    def _check_size(self, crystals: Sequence[Crystal | None]) -> None:
        atoms = sum(len(crystal) for crystal in crystals if crystal is not None)
        if len(crystals) > 1 and atoms > self.limits.max_atoms:
            raise WireError(
                f"the request has {atoms:,} atoms in {len(crystals):,} crystals; one request may have "
                f"at most {self.limits.max_atoms:,}: send it in pieces"
            )

    def _score(self, crystals: Sequence[Crystal | None], n_atoms: np.ndarray) -> Scores:
        pieces = chunks(n_atoms, self.limits.chunk_structures, self.limits.chunk_atoms)
        return Scores.concatenate([self.reward.score(crystals[piece]) for piece in pieces])
