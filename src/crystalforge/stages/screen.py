"""From a model and a wish to a ranked list of crystals: the stage around `screening`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.files import atomic_file, sha256_file, sha256_json, write_json
from crystalforge.stages.base import RECORD, Stage
from crystalforge.stages.models import find_model

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.screening.candidates import Candidate
    from crystalforge.screening.funnel import Funnel
    from crystalforge.screening.pool import Pool

SHORTLIST, CIFS, REPORT, FUNNEL = "shortlist.parquet", "cif", "report.html", "funnel.json"
WORK = "work"
INTERVAL = 5.0  # seconds between two lines of progress


def screen(config: Config, out: Path, *, model: Path) -> dict[str, Any]:
    """Screen crystals of `model` until `config.screen` is satisfied; leaves `shortlist.parquet`, `cif/`, `report.html`
    and `funnel.json` in `out`.

    model: a directory of weights, a stage's output, or the name of a shipped model. An interrupted call goes on where
    it was; so does a finished one that is asked for more, or has a larger budget. Returns the stage's record.
    """
    from crystalforge.model.checkpoint import load_model, weights_hash

    weights = find_model(model / "model" if (model / RECORD).is_file() else model)
    settings = config.screen
    content = weights_hash(load_model(weights).model)
    options = {"model": content, "known": None if settings.known is None else sha256_file(settings.known)}
    stage = Stage("screen", config, out, sections=("seed", "screen"), options=options)
    _go_on_with_more(stage)
    with stage:
        if stage.finished is None:
            from crystalforge.rewards.own_hull import embedded_phases
            from crystalforge.screening.funnel import Funnel
            from crystalforge.screening.known import open_reference
            from crystalforge.screening.pool import Pool, alone
            from crystalforge.screening.report import write_report
            from crystalforge.screening.shortlist import ranked, shortlist, write_cifs
            from crystalforge.thermo import HullStore

            work = out / WORK
            began = time.monotonic()
            with alone(work, _say) as lock:
                reference = open_reference(settings.known)
                first = settings.judges[0]
                hull = HullStore.open("embedded" if first.hull == "own" else first.hull, scale=first.hull_scale)
                processes = settings.processes or os.cpu_count() or 1
                show = _Show(settings.top)
                with Pool(work, weights, settings, config.seed, processes, lock) as pool:
                    funnel = Funnel(work, settings, pool, reference, hull, on_progress=show)
                    funnel.run()
                    show.last(funnel)
                    best = ranked(funnel.candidates, settings)
                    confirming = _confirm(pool, work, best, config)
            lineage = {"seed": config.seed, "model": content, "key": stage.key}
            table = shortlist(best, settings, reference, lineage)
            counts = dict(funnel.counts)
            summary = {
                "title": _title(config),
                "ended": funnel.ended,
                "fulfilled": sum(one.fulfils(settings) for one in best),
                "counts": counts,
                "calls": dict(funnel.calls) | confirming,
                "worker_seconds": {name: round(value, 1) for name, value in funnel.seconds.items()},
                "seconds": round(time.monotonic() - began, 1),
                "experiment": {
                    "model": {"path": str(model), "hash": content},
                    "settings": config.sections(("seed", "screen")),
                    "hull": {"phases": len(hull), "reference phases of the judges": len(embedded_phases())},
                },
            }
            _write_table(out / SHORTLIST, table)
            write_cifs(out / CIFS, best)
            write_report(out / REPORT, best, table, settings, summary)
            write_json(out / FUNNEL, {name: value for name, value in summary.items() if name != "experiment"})
            for name in (SHORTLIST, REPORT, FUNNEL):
                stage.artifact(out / name)
            stage.artifact(out / CIFS, CIFS)
            stage.finish(sha256_json([one.index for one in best]), _headline(summary, best, settings))
    return stage.outcome


def _go_on_with_more(stage: Stage) -> None:
    """A finished screening that is asked for more crystals, or given a larger budget, is not finished."""
    made = stage.finished
    if made is not None and made["config"] != stage.config.sections(stage.sections):
        (stage.out / RECORD).unlink()


def _confirm(pool: Pool, work: Path, best: Sequence[Candidate], config: Config) -> dict[str, int]:
    """Ask the judges that took no part of the finished list, relaxed as it is."""
    from crystalforge.screening.jobs import plain

    settings, asked = config.screen, {}
    crystals = [plain(crystal) for one in best if (crystal := one.relaxed) is not None]
    for judge in settings.confirm_names if crystals else []:
        payload = {"judge": judge, "crystals": crystals}
        made = settings.confirm[settings.confirm_names.index(judge)].model_dump(mode="json")
        name = f"confirm-{judge}-{sha256_json([payload, made])[:16]}"
        asked[name] = judge
        if not (work / f"{name}.json").exists():
            pool.ask((0,), name, "score", payload)
    waiting = {name for name in asked if not (work / f"{name}.json").exists()}
    while waiting:
        job, error = pool.done.get()
        if error is not None and job.name in asked:
            raise error
        waiting.discard(job.name)
    for name, judge in asked.items():
        said = json.loads((work / f"{name}.json").read_text())
        for row, one in enumerate(best):
            one.after[judge] = {what: said[what][row] for what in ("e_above_hull", "energy_per_atom") if what in said}
    return {f"confirm-{judge}": len(crystals) for judge in asked.values()}


def _headline(summary: dict[str, Any], best: Sequence[Candidate], settings: Any) -> dict[str, Any]:
    """What the registry and the pipeline show."""
    from crystalforge.screening.shortlist import confirmed_by

    found: dict[str, Any] = {
        "fulfilled": summary["fulfilled"],
        "listed": len(best),
        "ended": summary["ended"],
        "calls": sum(summary["calls"].values()),
        "seconds_of_this_call": summary["seconds"],
        **{name.replace(":", "").replace(" ", "_"): value for name, value in summary["counts"].items()},
    }
    fulfilling = [one for one in best if one.fulfils(settings)]
    for name in settings.confirm_names:
        confirmed = sum(name in confirmed_by(one, settings) for one in fulfilling)
        found[f"confirmed_by_{name}"] = confirmed
        if fulfilling:
            found[f"share_confirmed_by_{name}"] = round(confirmed / len(fulfilling), 4)
    return found


def _title(config: Config) -> str:
    wish = config.screen.constraints
    what = ""
    if wish is not None:
        if wish.composition is not None:
            what = " of " + "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in wish.composition.items())
        elif wish.chemical_system is not None:
            what = " of " + "-".join(wish.chemical_system)
        elif wish.elements is not None:
            what = " of " + ", ".join(wish.elements)
    groups = config.screen.spacegroups
    return f"New crystals{what}" + (f" in space group {', '.join(map(str, groups))}" if groups else "")


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Show:
    """The live funnel: on a terminal redrawn in place, else a line every few seconds."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._began = time.monotonic()
        self._printed = -INTERVAL
        self._terminal = sys.stderr.isatty()
        self._start: int | None = None

    def __call__(self, funnel: Funnel) -> None:
        if self._start is None:
            self._start = funnel.fulfilled
        now = time.monotonic() - self._began
        if now - self._printed >= (0.5 if self._terminal else INTERVAL):
            self._printed = now
            self._print(funnel, now)

    def last(self, funnel: Funnel) -> None:
        """The final state."""
        self._print(funnel, time.monotonic() - self._began)
        if self._terminal:
            _say("")

    def _print(self, funnel: Funnel, now: float) -> None:
        counts = funnel.live()
        names = ("drawn", "sound", "new", "promising", "relaxed", "different", "believed by one", "believed by all")
        steps = " > ".join(f"{counts[name]} {name}" for name in names)
        found = funnel.fulfilled
        gained = found - (self._start or 0)
        left = ""
        if not funnel.ended and gained and found < self._wanted:
            seconds = round(now * (self._wanted - found) / gained)
            left = f", {seconds // 60}:{seconds % 60:02d} left"
        line = f"screen  {steps} > {found}/{self._wanted} found  {counts['drawn'] / max(now, 1e-9):.1f} drawn/s{left}"
        with contextlib.suppress(OSError):
            if self._terminal:
                width = os.get_terminal_size(sys.stderr.fileno()).columns
                print(f"\r\x1b[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
                return
        _say(line)
