"""Training a predictor: it learns, writes what it says, and the rewards load what it wrote."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from crystalforge.common.errors import InputError
from crystalforge.crystal import Crystal
from crystalforge.potentials.predictor.config import VOIGT_COLUMNS, PredictorConfig
from crystalforge.potentials.predictor.data import composition, read_examples, split_compositions, split_rows
from crystalforge.potentials.predictor.predictor import make_network, train_predictor

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def write_examples(path, count=60) -> None:
    """Rock salts whose 'tensor' follows from the lattice constant and the anion."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        a, anion = rng.uniform(4.2, 6.0), int(rng.choice([8, 9, 17]))
        value = 3 * (a - 4) + anion / 4
        row = {
            "lattice": (a * FCC).ravel().tolist(), "atomic_numbers": [12, anion],
            "frac_coords": [0.0, 0, 0, 0.5, 0.5, 0.5],
        }  # fmt: skip
        rows.append(row | dict(zip(VOIGT_COLUMNS, [value] * 3 + [0.0] * 3, strict=True)))
    rows[3]["eps_xx"] = 1000.0
    rows[4]["eps_yz"] = float("nan")
    rows[5]["atomic_numbers"] = [12, 88]
    pq.write_table(pa.Table.from_pylist(rows), path)


def config_for(path, **options) -> PredictorConfig:
    return PredictorConfig(
        data=path, **({"epochs": 12, "batch_size": 8, "learning_rate": 3e-3, "units": 16, "blocks": 1} | options)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("matgl")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("predictor")
    write_examples(folder / "data.parquet")
    seen = []
    result = train_predictor(
        config_for(folder / "data.parquet"), folder / "out", seed=3, on_metrics=lambda step, m: seen.append((step, m))
    )
    return folder, result, seen


def test_it_learns_and_reports(trained):
    _, result, seen = trained
    assert [step for step, _ in seen] == list(range(12))
    assert seen[-1][1]["train_l1"] < 0.5 * seen[0][1]["train_l1"]
    assert result.metrics["mae_test"] < 0.5 * result.metrics["baseline_mae_test"]
    assert result.metrics["n_out_of_bounds"] == 2
    assert result.metrics["n_unusable"] == 1
    assert sum(result.metrics[f"n_{part}"] for part in ("train", "val", "test")) == 57
    assert json.loads((result.model_dir.parent / "metrics.json").read_text()) == result.metrics


def test_the_parity_table_gives_the_metrics(trained):
    _, result, _ = trained
    rows = list(csv.DictReader(result.parity.open()))
    assert len(rows) == 57
    assert {"3", "4", "5"}.isdisjoint(row["index"] for row in rows)
    test = [row for row in rows if row["split"] == "test"]
    errors = [abs(float(row[name]) - float(row[f"{name}_predicted"])) for row in test for name in VOIGT_COLUMNS]
    assert np.mean(errors) == pytest.approx(result.metrics["mae_test"], rel=1e-3)


def test_the_rewards_load_it(trained):
    from crystalforge.potentials.matgl import MatGLProperty
    from crystalforge.rewards import build, parse

    _, result, _ = trained
    crystal = Crystal.of(5.0 * FCC, [12, 8], [[0, 0, 0], [0.5, 0.5, 0.5]])
    values = MatGLProperty(result.model_dir).predict_values([crystal]).values[0]
    assert values[:3] == pytest.approx([5.0] * 3, abs=1.5)
    source = {"kind": "matgl", "path": str(result.model_dir)}
    gap = {"kind": "descriptor", "quantity": "n_elements"}
    reward = build(parse({"kind": "dielectric", "tensor": source, "gap": gap}))
    assert reward.score([crystal]).values[0] == pytest.approx(2 * values[:3].mean(), rel=1e-5)


def test_a_killed_training_ends_with_the_same_model(trained, tmp_path):
    folder, result, _ = trained

    class Killed(Exception):
        pass

    def kill(step, metrics):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train_predictor(config_for(folder / "data.parquet"), tmp_path / "out", seed=3, on_metrics=kill)
    assert not (tmp_path / "out").exists()
    steps = []
    again = train_predictor(
        config_for(folder / "data.parquet"), tmp_path / "out", seed=3, on_metrics=lambda step, _: steps.append(step)
    )
    assert steps == list(range(5, 12))
    assert again.metrics == result.metrics
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the checkpoint is gone"


def test_extra_rows_go_to_training_alone_and_never_show_what_is_judged(tmp_path):
    pytest.importorskip("matgl")
    rng = np.random.default_rng(1)
    tables = {
        "data": [(z, 8) for z in range(19, 60)],
        "extra": [(z, x) for z in range(19, 34) for x in (8, 9)],
    }
    for name, pairs in tables.items():
        rows = [
            {
                "lattice": (rng.uniform(4.5, 5) * FCC).ravel().tolist(),
                "atomic_numbers": list(pair),
                "frac_coords": [0.0, 0, 0, 0.5, 0.5, 0.5],
                "gap": float(sum(pair)),
            }
            for pair in pairs
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    config = config_for(
        tmp_path / "data.parquet", targets=("gap",), epochs=1, split="composition", extra=(tmp_path / "extra.parquet",)
    )
    plain = read_examples(config.model_copy(update={"extra": ()}), frozenset(range(1, 90)), cutoff=5.0, seed=3)
    found = read_examples(config, frozenset(range(1, 90)), cutoff=5.0, seed=3)
    for part in ("val", "test"):
        assert found.split[part].tolist() == plain.split[part].tolist()
        assert (found.table[found.split[part]] == 0).all()
    judged = {composition(found.crystals[row]) for part in ("val", "test") for row in found.split[part]}
    assert not judged & {composition(found.crystals[row]) for row in found.split["train"]}
    shared = sum(f"{min(pair)}:1 {max(pair)}:1" in judged for pair in tables["extra"])
    assert found.left_out["in_val_or_test"] == shared > 0
    assert (found.table == 1).sum() == len(tables["extra"]) - shared


def test_it_starts_from_another_property(trained, tmp_path):
    from crystalforge.potentials.matgl import MatGLProperty, load_matgl

    folder, result, _ = trained
    config = config_for(folder / "data.parquet", targets=("eps_xx",), epochs=1, initial=result.model_dir)
    network, aggregate = make_network(config)
    known = load_matgl(result.model_dir)[0].model.state_dict()
    assert aggregate == "source"
    for name, value in network.state_dict().items():
        assert name.startswith("final_layer.") != torch.equal(value, known[name]) or value.ndim == 0, name
    child = train_predictor(config, tmp_path / "out", seed=0)
    assert MatGLProperty(child.model_dir).elements == {8, 9, 12, 17}, "only what it was trained on"
    with pytest.raises(InputError, match="is missing"):
        make_network(config.model_copy(update={"initial": tmp_path}))


def test_a_composition_keeps_its_split_whatever_else_there_is():
    names = [f"{z}:1 8:{n}" for z in range(10, 90) for n in (1, 2, 3)]
    split = split_compositions(names, (0.8, 0.1, 0.1), seed=0)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(len(names)))
    assert 0.7 < len(split["train"]) / len(names) < 0.9
    fewer = split_compositions(names[::3], (0.8, 0.1, 0.1), seed=0)
    assert [names[row] for row in split["test"] if row % 3 == 0] == [names[3 * row] for row in fewer["test"]]
    assert split_compositions(names, (0.8, 0.1, 0.1), seed=1)["test"].tolist() != split["test"].tolist()


def test_splits_are_disjoint_and_complete():
    split = split_rows(100, (0.8, 0.1, 0.1), seed=0)
    assert {part: len(rows) for part, rows in split.items()} == {"train": 80, "val": 10, "test": 10}
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(100))


def test_bad_data_is_named(tmp_path):
    pytest.importorskip("matgl")
    with pytest.raises(InputError, match="no such file"):
        train_predictor(config_for(tmp_path / "absent.parquet"), tmp_path / "out", seed=0)
    pq.write_table(pa.table({"cif": ["x"]}), tmp_path / "few.parquet")
    with pytest.raises(InputError, match="has the columns cif"):
        train_predictor(config_for(tmp_path / "few.parquet"), tmp_path / "out", seed=0)
    pq.write_table(pa.table({"cif": ["junk"], "gap": [1.0]}), tmp_path / "junk.parquet")
    with pytest.raises(InputError, match="0 usable rows remain of 1"):
        train_predictor(config_for(tmp_path / "junk.parquet", targets=("gap",)), tmp_path / "out", seed=0)
