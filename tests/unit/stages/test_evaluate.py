"""The evaluation stage with more than two models, seeds of one method, samples from a file and second opinions."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections
from crystalforge.stages.evaluate import evaluate, named_paths

SECTIONS = {
    "seed": 0,
    "data": {"source": {"kind": "prototypes"}, "limit": 120},
    "model": {"layers": 1, "heads": 1, "head_size": 8, "width": 16, "embedding": 8, "dropout": 0.0},
    "pretrain": {"epochs": 1, "batch_size": 64},
    "reward": {"kind": "property", "source": {"kind": "descriptor", "quantity": "density"}},
    "service": {"mode": "in-process"},
    "finetune": {"steps": 1, "batch_size": 8, "checkpoint_every": 1, "learning_rate": 1e-3},
    "evaluate": {
        "samples": 12,
        "chunk": 8,
        "nearest": False,
        "coverage": {"crystals": 6},
        "held_out": [{"kind": "property", "source": {"kind": "descriptor", "quantity": "volume_per_atom"}}],
    },
    "tracking": {"enabled": False},
}


def configured(**sections: object) -> Config:
    return from_sections(**{**SECTIONS, **sections})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the stages' outputs data, base, ppo-0 and ppo-1."""
    from crystalforge.stages.finetune import finetune
    from crystalforge.stages.ingest import ingest
    from crystalforge.stages.pretrain import pretrain

    place = tmp_path_factory.mktemp("trained")
    ingest(configured(), place / "data")
    pretrain(configured(), place / "data", place / "base")
    for seed in (0, 1):
        finetune(configured(seed=seed), place / "data", place / "base", place / f"ppo-{seed}")
    return place


def test_models_seeds_and_files_side_by_side(trained: Path, tmp_path: Path) -> None:
    models = [("ppo", trained / "ppo-0"), ("ppo", trained / "ppo-1"), ("bare", trained / "base" / "model")]
    record = evaluate(configured(), trained / "data", trained / "base", None, tmp_path / "a", models=models)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert list(summary["models"]) == ["base", "ppo", "bare"]
    assert summary["models"]["ppo"]["experiments"] == 2
    assert summary["models"]["ppo"]["n"] == 24
    assert summary["models"]["bare"]["metrics"] == summary["models"]["base"]["metrics"], "the same weights"
    assert set(summary["comparison"]) == {"ppo", "bare"}
    assert set(json.loads((tmp_path / "a" / "histories.json").read_text())) == {
        "pretrain", "finetune ppo", "finetune ppo 2",
    }  # fmt: skip
    assert set(summary["coverage"]) == {"base", "ppo", "bare"}
    assert summary["coverage"]["base"]["cov_precision"]["n"] == 6
    assert summary["coverage"]["base"]["wdist_density"]["value"] > 0
    assert "Beside real crystals" in (tmp_path / "a" / "report.html").read_text()
    table = pq.read_table(tmp_path / "a" / "crystals.parquet")
    assert {"held_out_reward", "held_out_status"} <= set(table.column_names)
    assert evaluate(configured(), trained / "data", trained / "base", None, tmp_path / "a", models=models) == record

    again = evaluate(
        configured(), trained / "data", None, None, tmp_path / "b",
        samples=[("ppo", tmp_path / "a" / "crystals.parquet"), ("base", tmp_path / "a" / "crystals.parquet")],
    )  # fmt: skip
    assert again["content"] != record["content"]
    other = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert other["baseline"] == "ppo"
    assert other["models"]["base"]["metrics"]["mean_reward"] == summary["models"]["base"]["metrics"]["mean_reward"]


def test_space_groups_and_protocols_may_be_named(trained: Path, tmp_path: Path) -> None:
    config = configured(
        evaluate={**SECTIONS["evaluate"], "spacegroups": [225], "protocols": ["crystalformer-rl", "cdvae"]}
    )
    evaluate(config, trained / "data", trained / "base", None, tmp_path / "a", models=[("ppo", trained / "ppo-0")])
    table = pq.read_table(tmp_path / "a" / "crystals.parquet")
    assert set(table.column("spacegroup").to_pylist()) == {225}
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["protocol"]["name"] == "crystalformer-rl"
    further = summary["further"]["cdvae"]
    assert further["protocol"]["matcher"]["stol"] == 0.5
    novel = table.column("novel:cdvae").to_pylist()[:12]
    assert further["models"]["base"]["metrics"]["novel_rate"]["value"] == sum(novel) / 12


def test_another_reference_decides_what_is_novel(trained: Path, tmp_path: Path) -> None:
    """Against a store that holds the samples themselves nothing is novel."""
    from importlib.resources import files

    from crystalforge.stages.ingest import ingest

    crystals = pq.read_table(str(files("crystalforge.data") / "prototypes.parquet"))
    drawn = tmp_path / "drawn.parquet"
    pq.write_table(crystals.select(["lattice", "atomic_numbers", "frac_coords"]).slice(3000, 10), drawn)
    ingest(configured(data={"source": {"kind": "parquet", "path": str(drawn)}}), tmp_path / "known")
    shares = []
    for number, more in enumerate(({}, {"reference": str(tmp_path / "known")})):
        settings = configured(evaluate={**SECTIONS["evaluate"], **more})
        out = tmp_path / str(number)
        evaluate(settings, trained / "data", None, None, out, samples=[("drawn", drawn)])
        summary = json.loads((out / "summary.json").read_text())
        shares.append(summary["models"]["drawn"]["metrics"]["novel_rate"]["value"])
    assert shares[0] > 0.5
    assert shares[1] == 0


def test_mistakes_are_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(configured(), trained / "data", None, None, tmp_path / "c")
    with pytest.raises(InputError, match="no samples here"):
        evaluate(configured(), trained / "data", None, None, tmp_path / "c", samples=[("x", tmp_path / "no")])
    with pytest.raises(InputError, match="name=path"):
        named_paths(["just-a-path"], "--model")


def test_what_a_model_learned_of_space_groups_is_in_its_divergence(trained: Path, tmp_path: Path) -> None:
    """The base's weights with other shares: the groups drawn are others, and KL is that of the shares."""
    import numpy as np

    from crystalforge.model.checkpoint import load_model, save_model

    loaded = load_model(trained / "base" / "model")
    tilt = np.zeros(230)
    tilt[224] = 3.0  # rock salts and their kin
    save_model(tmp_path / "model", loaded.model, info=loaded.info | {"spacegroup_tilt": tilt.tolist()})
    evaluate(
        configured(evaluate=SECTIONS["evaluate"] | {"samples": 200, "coverage": None}), trained / "data",
        trained / "base", None, tmp_path / "out", models=[("tilted", tmp_path / "model")],
    )  # fmt: skip
    table = pq.read_table(tmp_path / "out" / "crystals.parquet").to_pandas()
    base, tilted = (table[table.label == name] for name in ("base", "tilted"))
    assert (tilted.spacegroup == 225).mean() > 2 * (base.spacegroup == 225).mean()
    ratio = tilted.log_prob - tilted.log_prob_base
    for _, same in ratio.groupby(tilted.spacegroup == 225):
        assert np.ptp(same) < 1e-3  # rounding of float32
    assert ratio[tilted.spacegroup == 225].mean() - ratio[tilted.spacegroup != 225].mean() == pytest.approx(
        3.0, abs=1e-3
    )
    assert ratio.mean() > 0.1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["models"]["tilted"]["metrics"]["kl_to_base"]["value"] == pytest.approx(ratio.mean(), abs=1e-6)
