"""All algorithms at the same reward budget from one base -> one table, and a page of the documentation."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalforge.common.errors import InputError
from crystalforge.common.files import atomic_file, sha256_json, write_json
from crystalforge.stages.base import Stage

if TYPE_CHECKING:
    from crystalforge.config import Config
    from crystalforge.rl.contest.contest import Outcome

UNCLEAR = "unclear"  # the interval of the gain holds zero
FIGURE, DPI = "efficiency.png", 160
CAPTION = "Attained share of L* − L(base) against scored crystals, for each algorithm"
BEGIN, END = "<!-- contest: begin -->", "<!-- contest: end -->"
FIGURES = ("reward", "held_out", "unique", "novel", "stable", "floors", "kl", "cpu_seconds")
COLUMNS = (
    "| | mean reward | over the base | | held out, over the base | stable | unique | novel | KL to base, nats "
    "| attained | filtered | scored | CPU s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def contest(
    config: Config, data: Path, base: Path, out: Path, page: Path | None = None, figure: Path | None = None
) -> dict[str, Any]:
    """Let all take part as `config.contest` says; leaves `outcomes.json` (each participant and seed), `summary.json`,
    `table.md` and `efficiency.png` (attained share against scored crystals) in `out`, and puts the table between the
    marks in the file `page`, with the figure, which is also written to `figure`.

    Goes on where an interrupted call stopped. Returns the stage's record; its metrics are each gain over the base.
    Raises InputError when `page` has no marks.
    """
    inputs = {"data": data, "base": base}
    if page is not None:
        _split(page)  # before hours of work, not after
    with Stage("contest", config, out, sections=("reward", "finetune", "contest"), inputs=inputs) as stage:
        if stage.finished is None:
            from crystalforge.data.store import TokenStore
            from crystalforge.integrations.triton.service import open_reward
            from crystalforge.rewards.screen import Screen
            from crystalforge.rl.contest import contest as rl
            from crystalforge.stages.finetune import held_out_judge, known_to, relaxer_of

            store = TokenStore.open(data / "store")
            outcomes: list[Outcome] = []
            stranger = held_out_judge(config.reward, config.contest.held_out, source="contest.held_out")
            with open_reward(config, out) as reward:
                ground = rl.Ground(
                    base / "model",
                    reward,
                    store.spacegroup_weights("train"),
                    out,
                    is_known=known_to(store),
                    relaxer=relaxer_of(config),
                    held_out=stranger,
                    screen=Screen.of(config.reward),
                )
                for outcome in rl.contest(config.contest, config.finetune, ground):
                    print(f"contest: {outcome.label} seed {outcome.seed}: reward {outcome.reward:.3f}", file=sys.stderr)
                    outcomes.append(outcome)
                judges = [str(version.version) for version in (reward, stranger) if version is not None]
            summary = summarise(outcomes)
            write_json(out / "outcomes.json", [outcome.as_dict() for outcome in outcomes])
            write_json(out / "summary.json", summary)
            with atomic_file(out / "table.md") as path:
                path.write_text(table(summary, config, judges))
            stage.artifact(out / "table.md")
            if draw(config, outcomes, out, out / FIGURE):
                stage.artifact(out / FIGURE)
            gains = {f"{label}.gain": row["gain"]["value"] for label, row in summary.items() if row["gain"]}
            stage.finish(sha256_json(summary), gains)
    drawn = figure is not None and (out / FIGURE).exists()
    if figure is not None and drawn:
        with atomic_file(figure) as path:
            path.write_bytes((out / FIGURE).read_bytes())
    if page is not None:
        before, after = _split(page)
        text = (out / "table.md").read_text()
        if figure is not None and drawn:
            text += f"\n![{CAPTION}]({os.path.relpath(figure, page.parent)})\n"
        with atomic_file(page) as path:
            path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return stage.outcome


def draw(config: Config, outcomes: Sequence[Outcome], folder: Path, path: Path) -> bool:
    """Write the figure of the attained share against scored crystals; False where nothing is known to be attainable.

    folder: where the learners' runs lie.
    """
    from crystalforge.studies import efficiency

    tau = config.finetune.tau
    ground = efficiency.Attainable.of(outcomes, tau)
    if ground is None:
        return False
    found = efficiency.courses(folder, outcomes, ground, tau, config.contest.scored)
    if not found:
        return False
    filtered = [ground.share(o.filtered) for o in outcomes if o.kind == "base" and o.filtered is not None]
    figure = efficiency.draw(found, sum(filtered) / len(filtered) if filtered else None)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return True


def summarise(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Each participant over its seeds: figures as estimates with Student-t intervals over seeds, JSON-able.

    `gain` is the mean of the differences from the base of the same seed. Unknown figures are None.
    """
    import numpy as np

    from crystalforge.evaluation.metrics import statistics
    from crystalforge.rl.contest.contest import BASE
    from crystalforge.studies import efficiency

    baseline = {outcome.seed: outcome for outcome in outcomes if outcome.label == BASE}
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.label, []).append(outcome)

    def over_seeds(values: Sequence[float | None]) -> dict[str, Any] | None:
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        return statistics.mean(known).as_dict() if len(known) == len(values) else None

    tau = next(iter(baseline.values())).tau
    ground = efficiency.Attainable.of(outcomes, tau)

    def attained(outcome: Outcome, value: float | None) -> float | None:
        if ground is None or value is None or outcome.tau != tau:  # another tau has another optimum
            return None
        return ground.share(value)

    return {
        label: {
            "kind": group[0].kind,
            "tau": group[0].tau,
            "seeds": [outcome.seed for outcome in group],
            "judged": sum(outcome.judged for outcome in group),
            "scored": [outcome.scored for outcome in group],
            "stopped": [outcome.stopped for outcome in group if outcome.stopped is not None],
            "gain": None if label == BASE else over_seeds([o.reward - baseline[o.seed].reward for o in group]),
            "held_out_gain": None
            if label == BASE
            else over_seeds([_less(o.held_out, baseline[o.seed].held_out) for o in group]),
            **{name: over_seeds([getattr(outcome, name) for outcome in group]) for name in FIGURES},
            "attained": over_seeds([attained(outcome, outcome.objective) for outcome in group]),
            "attained_filtered": over_seeds([attained(outcome, outcome.filtered) for outcome in group]),
        }
        for label, group in groups.items()
    }


def table(summary: Mapping[str, Mapping[str, Any]], config: Config, judges: Sequence[str]) -> str:
    """The summary in Markdown: one table of all, one by strength of the KL term where there are several.

    judges: versions of the reward and, where there is one, of the held-out judge.
    """
    contest, tuning = config.contest, config.finetune
    first = contest.algorithms[0] if contest.algorithms else ""
    sweep = {row["tau"]: row for label, row in summary.items() if label == first or label.startswith(f"{first}-tau")}
    seeds = len(contest.seeds)
    lines = [
        f"{seeds} seeds; every participant had {contest.scored:,} crystals scored, {tuning.batch_size} at a time. "
        f"Models are judged by {contest.judged:,} fresh crystals per seed, searches by the {contest.keep} that they "
        f"return. Reward `{judges[0]}`, tau {tuning.tau:g}, "
        f"{f'held-out judge `{judges[1]}`' if len(judges) > 1 else 'no held-out judge'}. Brackets: 95 % interval over "
        f"seeds (Student t, {seeds - 1} degrees of freedom). CPU seconds are of one core, {_machine()}.",
        "",
        COLUMNS,
        *(_row(label, row) for label, row in summary.items() if "-tau" not in label),
        "",
    ]
    if len(sweep) > 1:
        ordered = [sweep[tau] for tau in sorted(sweep)]
        lines += [
            f"The same by strength of the KL term, for {first}:",
            "",
            COLUMNS,
            *(_row(f"tau = {row['tau']:g}", row) for row in ordered),
            "",
            f"As tau rises the reward {_falls([row['reward']['value'] for row in ordered])} and the KL "
            f"{_falls([row['kl']['value'] for row in ordered])}; theory says that both fall.",
            "",
        ]
    verdicts = {label: _verdict(row["gain"]) for label, row in summary.items() if row["gain"]}
    unclear = [label for label, verdict in verdicts.items() if verdict == UNCLEAR]
    lines.append(
        f"Not shown to differ from the base: {', '.join(unclear)}."
        if unclear
        else "Every interval of the gain excludes zero."
    )
    return "\n".join(lines) + "\n"


def _row(label: str, row: Mapping[str, Any]) -> str:
    gain = row["gain"]
    counts = sorted(set(row["scored"]))
    cells = [
        label,
        _figure(row["reward"], "{:.3f}"),
        _with_interval(gain),
        "" if gain is None else _verdict(gain),
        _with_interval(row["held_out_gain"]),
        _figure(row["stable"], "{:.1%}"),
        _figure(row["unique"], "{:.1%}"),
        _figure(row["novel"], "{:.1%}"),
        _figure(row["kl"], "{:.2f}"),
        _figure(row["attained"], "{:.0%}"),
        _figure(row["attained_filtered"], "{:.0%}"),
        f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}",
        _figure(row["cpu_seconds"], "{:.0f}"),
    ]
    return f"| {' | '.join(cells)} |"


def _figure(figure: Mapping[str, Any] | None, form: str) -> str:
    return "" if figure is None or figure["value"] is None else form.format(figure["value"])


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _with_interval(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    interval = "" if gain["low"] is None else f" [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return f"{gain['value']:+.3f}{interval}"


def _verdict(gain: Mapping[str, Any]) -> str:
    if gain["low"] is None or gain["low"] <= 0 <= gain["high"]:
        return UNCLEAR
    return "better" if gain["low"] > 0 else "worse"


def _falls(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:.3f}" for value in values)
    return f"{'falls' if all(a > b for a, b in pairwise(values)) else 'does not fall steadily'} ({shown})"


def _machine() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _split(page: Path) -> tuple[str, str]:
    """What stands before and after the marks."""
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(
            "has no place for the table", source=page, remedy=f"add the lines {BEGIN!r} and {END!r} where it belongs"
        )
    return before, after
