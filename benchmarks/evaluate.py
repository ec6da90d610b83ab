"""Where does the time of an evaluation go?   python benchmarks/evaluate.py [--samples N] [--reference N] [--whole]

Prints JSON: seconds of each part of judging N samples (default 1,000) on one core: drawing from a model of the
quickstart's size, validity, the reward (CHGNet and the embedded hull; left out with --no-reward), relaxing some of them
(--relax), matching, nearest known crystals, summary, report, the paper's figures; peak memory. The model's weights are
random, so its crystals are worse than a trained model's; the samples that are judged are therefore distorted copies of
known crystals: the embedded ones, or those of --parquet.

--whole runs the evaluation as the stage does instead, in chunks that are written and read back, and prints its seconds
and its peak memory: with --samples 10000 --no-reward --parquet FILE it is what the largest evaluations need.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import numpy as np
from _common import finish

from crystalforge.crystal import Crystal, Tokens
from crystalforge.crystal.convert import tokenize_many
from crystalforge.evaluation.drawing.samples import SampleSet
from crystalforge.evaluation.judging.judge import judge
from crystalforge.evaluation.judging.relaxing import PotentialRelaxer, chosen_rows, relaxed_table
from crystalforge.evaluation.judging.scoring import score
from crystalforge.evaluation.matching.reference import Reference
from crystalforge.evaluation.metrics.summary import summarise
from crystalforge.evaluation.protocols import protocol
from crystalforge.evaluation.report import write_report
from crystalforge.evaluation.validity import composition_valid, structure_valid
from crystalforge.rewards.protocol import Reward, RewardVersion, Scores, Status
from crystalforge.studies.figures import figures


class NoReward:
    """A reward of zero for everything: leaves the time of the potential out."""

    @property
    def version(self) -> RewardVersion:
        """Nothing judges."""
        return RewardVersion("none", "0" * 12)

    def score(self, crystals: Sequence[Crystal | None]) -> Scores:
        status = np.array([Status.NOT_BUILT if c is None else Status.OK for c in crystals], dtype=np.int32)
        return Scores(np.zeros(len(crystals)), status, {"e_above_hull": np.zeros(len(crystals))})


def samples_of(tokens: Tokens, count: int, seed: int) -> Tokens:
    """Embedded crystals with lattices changed by some 3 %, repeated as often as needed."""
    rng = np.random.default_rng(seed)
    chosen = tokens[rng.integers(len(tokens), size=count)]
    lattice = chosen.lattice.copy()
    lattice[:, :3] *= 1 + rng.normal(0, 0.03, (count, 1))
    return Tokens(chosen.spacegroup, chosen.wyckoff, chosen.element, chosen.coords, lattice)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--reference", type=int, default=2000, help="crystals that count as known")
    parser.add_argument("--parquet", help="known crystals instead of the embedded ones")
    parser.add_argument("--no-reward", action="store_true")
    parser.add_argument(
        "--relax", type=int, default=0, metavar="N", help="relax N of the samples with CHGNet, 50 steps"
    )
    parser.add_argument("--whole", action="store_true", help="time and memory of the whole, not of its parts")
    options = parser.parse_args()
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - began, 2)

    import pyarrow.parquet as pq

    source = options.parquet or str(files("crystalforge.data") / "prototypes.parquet")
    table = pq.read_table(source, columns=["lattice", "atomic_numbers", "frac_coords"])
    table = table.take(np.random.default_rng(0).permutation(len(table))[: options.reference])
    crystals = [Crystal.of(row["lattice"], row["atomic_numbers"], row["frac_coords"]) for row in table.to_pylist()]
    with timed("tokenise the reference"):
        found = tokenize_many(crystals)
    reference = Reference.from_tokens(found.tokens, [str(k) for k in found.index])
    if options.whole:
        whole(samples_of(found.tokens, options.samples, 1), reference, options.no_reward, seconds, timed)
        return
    draw_seconds(options.samples, timed)
    tokens = samples_of(found.tokens, options.samples, 1)
    with timed("build crystals"):
        samples = SampleSet.from_tokens("samples", tokens)
    with timed("validity"):
        for crystal in samples.crystals:
            structure_valid(crystal)
            composition_valid(crystal)
    with timed("load reward"):
        reward = the_reward(options.no_reward)
    with timed("score (validity and reward)"):
        scored = score(samples, reward, lineage={})
    if options.relax:
        from crystalforge.evaluation.config import RelaxSettings

        relaxer = PotentialRelaxer.of(RelaxSettings(steps=50))
        rows = chosen_rows(len(samples), options.relax, 0)
        with timed(f"relax {options.relax}"):
            relaxed_table(relaxer, [samples.crystals[row] for row in rows])
    rules = [protocol("crystalformer-rl")]
    with timed("match"):
        judged = judge(scored, reference, rules, nearest=False, quiet=True)
    with timed("match and nearest known"):
        judged = judge(scored, reference, rules, quiet=True)
    rules_json = {p.name: p.model_dump(mode="json") for p in rules}
    judged = judged.replace_schema_metadata({"protocols": json.dumps(rules_json), "headline": rules[0].name})
    with timed("summary"):
        summary = summarise(judged)
    with tempfile.TemporaryDirectory() as folder, timed("report"):
        write_report(Path(folder) / "report.html", judged, summary, {}, {})
    with tempfile.TemporaryDirectory() as folder, timed("figures and tables of the paper"):
        pq.write_table(judged, Path(folder) / "crystals.parquet")
        figures([folder], Path(folder) / "figures")
    show(options.samples, len(reference), seconds)


def show(samples: int, references: int, seconds: dict[str, float]) -> None:
    """Print what was measured."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {"samples": samples, "references": references, "seconds": seconds, "peak_memory_mb": memory}
    finish(result)


def the_reward(nothing: bool) -> Reward:
    """CHGNet against the embedded hull, or no reward at all."""
    if nothing:
        return NoReward()
    from crystalforge.rewards import build
    from crystalforge.rewards.config import EHullReward

    return build(EHullReward())


def whole(tokens: Tokens, reference: Reference, no_reward: bool, seconds: dict[str, float], timed) -> None:
    """The evaluation as the stage runs it, from samples to report."""
    from crystalforge.evaluation.config import EvaluateConfig
    from crystalforge.evaluation.evaluate import evaluate_samples

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with timed("evaluate"):
            samples = SampleSet.from_tokens("samples", tokens)
            reward = the_reward(no_reward)
            table = evaluate_samples([samples], reward, reference, EvaluateConfig(), out=place, quiet=True)
        with timed("summary and report"):
            write_report(place / "report.html", table, summarise(table), {}, {})
    show(len(tokens), len(reference), seconds)


def draw_seconds(count: int, timed) -> None:
    """Time drawing `count` crystals from a small model with random weights."""
    import torch

    from crystalforge.model.config import ModelConfig
    from crystalforge.model.network import CrystalFormer
    from crystalforge.model.sampling.sampler import draw_spacegroups, sample

    torch.manual_seed(0)
    model = CrystalFormer(ModelConfig(layers=4, heads=4)).eval()
    groups = draw_spacegroups(np.ones(230), count, seed=0)
    with timed("draw"):
        sample(model, groups, seed=0)


if __name__ == "__main__":
    main()
