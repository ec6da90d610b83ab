"""The funnel: draw, sort out, judge, relax, sort out again, judge again, until the wish is met or the budget is spent.

Crystals come in rounds of equal size. Everything that is computed of a round depends on the round alone, and what is
decided between rounds (who is a duplicate of whom, when it is enough) is decided in their order, so that the outcome
depends neither on timing nor on where a call was interrupted. All steps are at work at once: while one round relaxes,
the next ones are drawn and judged; a few rounds ahead bound the memory.

Every result is a file under `work/`, written by the worker that computed it before anybody is told; a later call finds
it there.
"""

from __future__ import annotations

import json
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from crystalforge.crystal import Crystal
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.rewards.guards import check
from crystalforge.rewards.protocol import Status
from crystalforge.screening.candidates import Candidate, Round, Step, flags_against, relaxed_crystal
from crystalforge.screening.config import ScreenConfig
from crystalforge.screening.jobs import WISH, crystal_of, plain
from crystalforge.screening.known import Seen, moved, volume_change
from crystalforge.screening.pool import Job, Pool
from crystalforge.thermo import HullStore

AHEAD = 3  # rounds begun beyond the oldest unfinished one


class Funnel:
    """One screening.

    candidates: those that all steps have seen. counts: how many passed and fell where; calls: how many crystals each
    judge was asked about; seconds: what the workers spent on it; each of the rounds that are through. Settled rounds
    alone count: so the figures are the same however the work fell out in time.
    """

    def __init__(
        self,
        folder: Path,
        config: ScreenConfig,
        pool: Pool,
        reference: Reference,
        hull: HullStore,
        *,
        on_progress: Callable[[Funnel], None],
    ) -> None:
        self._folder, self._config, self._pool, self._hull = folder, config, pool, hull
        self._generated = Seen(reference, config.matcher)
        self._relaxed = Seen(reference, config.matcher)
        self._shaken = Seen(reference, config.matcher)
        self._rounds: dict[int, Round] = {}
        self._admitted = self._settled = 0  # rounds whose crystals were sorted out; that are through
        self._sorted_again = self._sorted_shaken = 0
        self._on_progress = on_progress
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.candidates: list[Candidate] = []
        self.ended = ""

    def live(self) -> Counter[str]:
        """`counts` with those of the rounds that are at work."""
        total = Counter(self.counts)
        for one in self._rounds.values():
            total.update(one.counts)
        return total

    @property
    def fulfilled(self) -> int:
        """Candidates that are what was asked for."""
        return sum(candidate.fulfils(self._config) for candidate in self.candidates)

    def run(self) -> None:
        """Until the wish is met or the budget is spent. Raises what a worker raised."""
        self._begin_rounds()
        while not self._enough():
            try:
                job, error = self._pool.done.get(timeout=self._left())
            except queue.Empty:  # out of time
                continue
            if error is not None:
                raise error
            self._finished(job)
            self._on_progress(self)
        self._pool.forget()
        self._on_progress(self)

    # ---- when to end

    def _enough(self) -> bool:
        budget = self._config.budget
        if self.fulfilled >= self._config.top:
            self.ended = "the wish is met"
        elif not self._rounds and self._last_round():
            self.ended = "the budget of crystals is spent"
        elif not self._rounds and self._spent_calls():
            self.ended = "the budget of calls is spent"
        elif budget.seconds is not None and time.monotonic() - self._began >= budget.seconds:
            self.ended = "the budget of seconds is spent"
        return bool(self.ended)

    def _left(self) -> float | None:
        seconds = self._config.budget.seconds
        return None if seconds is None else max(0.01, seconds - (time.monotonic() - self._began))

    def _last_round(self) -> bool:
        return self._next_round() * self._config.round >= self._config.budget.crystals

    def _spent_calls(self) -> bool:
        most = self._config.budget.calls
        return most is not None and sum(self.calls.values()) >= most

    def _next_round(self) -> int:
        return self._settled + len(self._rounds)

    # ---- rounds

    def _begin_rounds(self) -> None:
        # With a budget of calls one round at a time: what is begun must not depend on timing.
        ahead = 1 if self._config.budget.calls is not None else AHEAD
        while len(self._rounds) < ahead and not self._last_round() and not self._spent_calls():
            number = self._next_round()
            found = self._rounds[number] = Round(number)
            # Rounds are whole, even where the budget ends within one: their names must say what is in them.
            payload = {"first": number * self._config.round, "count": self._config.round}
            self._ask(found, Step.DRAW, f"draw-{number:05d}", "draw", payload)

    def _ask(self, found: Round, step: int, name: str, kind: str, payload: dict[str, Any]) -> None:
        found.open_jobs.add(name)
        if (self._folder / f"{name}.json").exists():
            self._pool.done.put((Job((0,), 0, name, kind, {}), None))
        else:
            self._pool.ask((found.number, -step), name, kind, payload)

    def _finished(self, job: Job) -> None:
        found = next((one for one in self._rounds.values() if job.name in one.open_jobs), None)
        assert found is not None, f"nobody asked for {job.name}"
        found.open_jobs.discard(job.name)
        if not found.open_jobs:
            self._advance(found)

    def _advance(self, found: Round) -> None:
        """Take a round whose jobs are done to its next step, and whatever that sets free."""
        if found.step == Step.DRAW:
            found.drawn = self._read(f"draw-{found.number:05d}")
            while (one := self._rounds.get(self._admitted)) is not None and one.drawn is not None:
                self._admitted += 1
                self._admit(one)
        elif found.step == Step.SCORE:
            self._select(found)
        elif found.step == Step.RELAX:
            self._collect_relaxed(found)
            found.step = Step.AFTER
            self._sort_again()
        elif found.step == Step.AFTER:
            self._shake(found)
        elif found.step == Step.SHAKE:
            self._collect_shaken(found)
            found.step = Step.AGAIN
            self._sort_shaken()
        elif found.step == Step.AGAIN:
            self._ask_others(found)
        elif found.step == Step.OTHERS:
            self._collect_others(found)
            found.step = Step.DONE
        self._settle()

    def _admit(self, found: Round) -> None:
        """Sort out what is known or came before; let the first judge see the rest."""
        drawn = found.drawn
        assert drawn is not None
        found.seconds["draw"] += drawn["seconds"]
        found.counts["drawn"] += drawn["drawn"]
        for status, number in drawn["status"].items():
            if status != "ok":
                found.counts[f"fell: {status}"] += number
        for row in drawn["crystals"]:
            found.counts["sound"] += 1
            crystal = crystal_of(row["crystal"])
            verdict = "known" if row["remembered"] else self._generated.verdict(crystal)
            if verdict != "new":
                found.counts[f"fell: {verdict}"] += 1
                continue
            found.counts["new"] += 1
            found.survivors.append(Candidate(row["index"], row["spacegroup"], row["log_prob"], crystal))
        found.drawn = None
        found.step = Step.SCORE
        judge = self._config.judge_names[0]
        self._in_pieces(found, f"before-{judge}", found.survivors, lambda c: c.generated, judge)

    def _select(self, found: Round) -> None:
        """Relax what the first judge lets pass."""
        judge = self._config.judge_names[0]
        self._collect(found, f"before-{judge}", found.survivors, "before", judge)
        found.counts["judged"] += len(found.survivors)
        kept = []
        for candidate in found.survivors:
            energy = candidate.before[judge]["e_above_hull"]
            if energy is None:
                found.counts["fell: not judged"] += 1
            elif energy > self._config.promising:
                found.counts["fell: far above the hull"] += 1
            else:
                kept.append(candidate)
        found.counts["promising"] += len(kept)
        found.survivors, found.step = kept, Step.RELAX
        config = self._config
        settings = {"fmax": config.fmax, "steps": config.steps, "keep_symmetry": config.keep_symmetry}
        for number, piece in enumerate(_pieces(kept, self._config.piece)):
            payload = {"crystals": [plain(candidate.generated) for candidate in piece], **settings}
            self._ask(found, Step.RELAX, f"relax-{found.number:05d}-{number:03d}", "relax", payload)
        if not kept:
            self._advance(found)

    def _collect_relaxed(self, found: Round) -> None:
        for candidate, *where in self._moved(found, "relax", _pieces(found.survivors, self._config.piece)):
            candidate.rest(*where)

    def _moved(self, found: Round, what: str, pieces: Sequence[Sequence[Candidate]]) -> Iterable[tuple[Any, ...]]:
        """Candidates, and where they came to rest: crystal, energy, converged, steps."""
        for number, piece in enumerate(pieces):
            said = self._read(f"{what}-{found.number:05d}-{number:03d}")
            found.seconds[what] += said["seconds"]
            found.calls[what] += len(piece)
            crystals = [None if crystal is None else crystal_of(crystal) for crystal in said["crystals"]]
            yield from zip(piece, crystals, said["energy"], said["converged"], said["steps"], strict=True)

    def _sort_again(self) -> None:
        """In the order of the rounds: relaxed crystals that are unsound, known, or came before."""
        while (one := self._rounds.get(self._sorted_again)) is not None and one.step is Step.AFTER:
            self._sorted_again += 1
            asked = len(one.survivors)
            one.survivors = self._different(one, self._relaxed, "relaxed")
            one.counts["relaxed"] += asked - one.counts["fell: relaxed to nothing sound"]
            one.counts["different"] += len(one.survivors)
            judge = self._config.judge_names[0]
            self._in_pieces(one, f"after-{judge}", one.survivors, relaxed_crystal, judge)

    def _different(self, one: Round, seen: Seen, how: str) -> list[Candidate]:
        status = check([candidate.relaxed for candidate in one.survivors], self._config.geometry, None)
        kept = []
        for candidate, code in zip(one.survivors, status, strict=True):
            crystal = candidate.relaxed
            if crystal is None or code != Status.OK:
                one.counts[f"fell: {how} to nothing sound"] += 1
                continue
            verdict = seen.verdict(crystal)
            if verdict != "new":
                one.counts[f"fell: {how}, {verdict}"] += 1
                continue
            candidate.rmsd = moved(self._config.matcher, candidate.generated, crystal)
            candidate.volume_change = volume_change(candidate.generated, crystal)
            kept.append(candidate)
        return kept

    def _shake(self, found: Round) -> None:
        """See whether what the first judge still believes in is in a minimum, where it came to rest at all."""
        judge, config = self._config.judge_names[0], self._config
        self._collect(found, f"after-{judge}", found.survivors, "after", judge)
        found.survivors, found.step = self._below_limit(found, judge), Step.SHAKE
        settings = {"shake": config.shake, "fmax": config.fmax, "steps": config.steps}
        for number, piece in enumerate(self._to_shake(found)):
            payload = {
                "crystals": [plain(relaxed_crystal(candidate)) for candidate in piece],
                "indices": [candidate.index for candidate in piece],
            }
            self._ask(found, Step.SHAKE, f"shake-{found.number:05d}-{number:03d}", "shake", payload | settings)
        if not found.open_jobs:
            self._advance(found)

    def _to_shake(self, found: Round) -> list[Sequence[Candidate]]:
        at_rest = [candidate for candidate in found.survivors if candidate.converged]
        return _pieces(at_rest, self._config.piece) if self._config.shake else []

    def _collect_shaken(self, found: Round) -> None:
        for candidate, crystal, *where in self._moved(found, "shake", self._to_shake(found)):
            if crystal is not None:
                candidate.shaken(crystal, *where, held=self._config.keep_symmetry)
            found.counts["saddles"] += bool(candidate.fall)

    def _sort_shaken(self) -> None:
        """In the order of the rounds: what fell to something unsound, known, or that came before."""
        while (one := self._rounds.get(self._sorted_shaken)) is not None and one.step is Step.AGAIN:
            self._sorted_shaken += 1
            one.survivors = self._different(one, self._shaken, "shaken")
            judge = self._config.judge_names[0]
            self._in_pieces(one, f"again-{judge}", [c for c in one.survivors if c.fell()], relaxed_crystal, judge)

    def _ask_others(self, found: Round) -> None:
        """Let the other judges see what the first one still believes in."""
        judge = self._config.judge_names[0]
        self._collect(found, f"again-{judge}", [c for c in found.survivors if c.fell()], "after", judge)
        kept = self._below_limit(found, judge)
        found.counts["believed by one"] += len(kept)
        found.survivors, found.step = kept, Step.OTHERS
        for other in self._config.judge_names[1:]:
            self._in_pieces(found, f"after-{other}", kept, relaxed_crystal, other, empty=False)
            self._in_pieces(found, f"before-{other}", kept, lambda c: c.generated, other, empty=False)
        if self._config.wish is not None:
            self._in_pieces(found, "wish", kept, relaxed_crystal, WISH, empty=False)
        if not found.open_jobs:
            self._advance(found)

    def _below_limit(self, found: Round, judge: str) -> list[Candidate]:
        kept = []
        for candidate in found.survivors:
            if candidate.energies([judge])[judge] <= self._config.limit:
                kept.append(candidate)
            else:
                found.counts["fell: above the limit"] += 1
        return kept

    def _collect_others(self, found: Round) -> None:
        for other in self._config.judge_names[1:]:
            self._collect(found, f"after-{other}", found.survivors, "after", other)
            self._collect(found, f"before-{other}", found.survivors, "before", other)
        if self._config.wish is not None:
            for piece, said in self._answers(found, "wish", found.survivors):
                for candidate, value in zip(piece, said["reward"], strict=True):
                    candidate.property = value
        for candidate in found.survivors:
            candidate.flags = flags_against(candidate, self._config, self._hull)

    def _settle(self) -> None:
        """Count what rounds that are through have brought, in their order; stop at the first that brings enough."""
        while (one := self._rounds.get(self._settled)) is not None and one.step is Step.DONE:
            if self.fulfilled >= self._config.top:
                return
            del self._rounds[self._settled]
            self._settled += 1
            self.candidates += one.survivors
            one.counts["believed by all"] = sum(
                candidate.standing(self._config).agreement(self._config.limit) == 1 for candidate in one.survivors
            )
            one.counts["without a red flag"] = sum(candidate.fulfils(self._config) for candidate in one.survivors)
            for total, part in ((self.counts, one.counts), (self.calls, one.calls), (self.seconds, one.seconds)):
                total.update(part)
        if self.fulfilled < self._config.top:
            self._begin_rounds()

    # ---- jobs of many crystals

    def _in_pieces(
        self,
        found: Round,
        what: str,
        candidates: Sequence[Candidate],
        crystal: Callable[[Candidate], Crystal],
        judge: str,
        *,
        empty: bool = True,
    ) -> None:
        """Ask a judge; where there is nobody to be asked about, the round goes on at once (`empty`)."""
        step = found.step
        for number, piece in enumerate(_pieces(candidates, PIECE)):
            name = f"{what}-{found.number:05d}-{number:03d}"
            payload = {"judge": judge, "crystals": [plain(crystal(candidate)) for candidate in piece]}
            self._ask(found, step, name, "score", payload)
        if empty and not candidates:
            self._advance(found)

    def _answers(
        self, found: Round, what: str, candidates: Sequence[Candidate]
    ) -> Iterable[tuple[Sequence[Candidate], dict[str, Any]]]:
        for number, piece in enumerate(_pieces(candidates, PIECE)):
            said = self._read(f"{what}-{found.number:05d}-{number:03d}")
            found.seconds[what] += said["seconds"]
            found.calls[what] += len(piece)
            yield piece, said

    def _collect(self, found: Round, what: str, candidates: Sequence[Candidate], when: str, judge: str) -> None:
        for piece, said in self._answers(found, what, candidates):
            for row, candidate in enumerate(piece):
                getattr(candidate, when)[judge] = {
                    name: said[name][row] for name in ("e_above_hull", "energy_per_atom") if name in said
                }

    def _read(self, name: str) -> dict[str, Any]:
        return json.loads((self._folder / f"{name}.json").read_text())


PIECE = 64  # crystals scored at a time


def _pieces(candidates: Sequence[Candidate], size: int) -> list[Sequence[Candidate]]:
    return [candidates[first : first + size] for first in range(0, len(candidates), size)]
