"""The registry on SQLite: versions by alias and number, promotion by gates, a generator out of it as it went in."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import crystalforge
from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections
from crystalforge.evaluation.metrics import statistics
from crystalforge.integrations.mlflow import registry as models
from crystalforge.integrations.mlflow import tracking
from crystalforge.model.checkpoint import save_model, weights_hash
from crystalforge.model.config import ModelConfig
from crystalforge.model.network import CrystalFormer
from crystalforge.platform.fetch import fetch
from crystalforge.platform.promote import Judged, PromotionGates, judge, promote
from crystalforge.stages.card import model_card

N = 400
GATES = PromotionGates()


def metrics(sun: int, unique: int, e_hull: float, held_out: float | None = None) -> dict[str, Any]:
    """The figures of N crystals of which `sun` are S.U.N. and `unique` unique; energies spread by 0.1 eV/atom."""
    spread = np.random.default_rng(0).normal(0, 0.1, N)
    found = {
        "mean_reward": statistics.mean(spread - e_hull),
        "mean_e_above_hull": statistics.mean(spread + e_hull),
        "unique_rate": statistics.wilson(unique, N),
        "sun_rate": statistics.wilson(sun, N),
    }
    if held_out is not None:
        found["mean_held_out_e_above_hull"] = statistics.mean(spread + held_out)
    return {name: estimate.as_dict() for name, estimate in found.items()}


def summary(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    models = {
        label: {"n": N, "metrics": dict(found), "status": {"ok": N}}
        for label, found in (("base", base), ("tuned", tuned))
    }
    return {
        "protocol": {"name": "crystalformer-rl", "stable_at": 0.1},
        "models": models,
        "baseline": "base",
        "comparison": {"tuned": {"mean_reward": {"value": 0.1, "low": 0.05, "high": 0.15, "n": 2 * N}}},
    }


BASE = metrics(40, 380, 0.20)


def judged(found: Mapping[str, Any], name: str = "it", reward: str = "ab" * 32, protocol: str = "p") -> Judged:
    return Judged(name, {"name": protocol}, reward, found)


def verdicts(candidate: Judged, reference: Judged | None, gates: PromotionGates = GATES) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in judge(candidate, reference, gates)}


def test_a_better_model_passes_every_gate_and_a_repetitive_one_does_not() -> None:
    better = judged(metrics(90, 360, 0.1))
    assert set(verdicts(better, judged(BASE)).values()) == {True}
    collapsed = judged(metrics(90, 190, 0.1))
    assert verdicts(collapsed, judged(BASE))["uniqueness"] is False
    just_below = judged(metrics(90, 215, 0.1))  # 53.75 %, and not for sure above the floor
    assert verdicts(just_below, judged(BASE))["uniqueness"] is False


def test_discovery_must_not_be_worse_with_confidence() -> None:
    assert verdicts(judged(metrics(41, 380, 0.2)), judged(BASE))["discovery"] is True
    assert verdicts(judged(metrics(25, 380, 0.2)), judged(BASE))["discovery"] is False
    # The very same share, but the margin is less than what so few samples can show.
    assert verdicts(judged(BASE), judged(BASE), PromotionGates(margin=0.01))["discovery"] is False


def test_a_held_out_potential_that_contradicts_closes_the_gate() -> None:
    reference = judged(metrics(40, 380, 0.20, held_out=0.20))
    gate = "held-out potential"
    assert verdicts(judged(metrics(90, 380, 0.10, held_out=0.12)), reference)[gate] is True
    assert verdicts(judged(metrics(90, 380, 0.10, held_out=0.30)), reference)[gate] is False, "clearly worse"
    assert verdicts(judged(metrics(90, 380, 0.10, held_out=0.205)), reference)[gate] is False, "sees no gain at all"
    assert verdicts(judged(metrics(90, 380, 0.10)), reference)[gate] is True, "not measured"
    second = metrics(90, 380, 0.10, held_out=0.30)["mean_held_out_e_above_hull"]
    before = metrics(40, 380, 0.20, held_out=0.20)["mean_held_out_e_above_hull"]
    both = judged(metrics(90, 380, 0.10, held_out=0.12) | {"mean_held_out_2_e_above_hull": second})
    reference = judged(dict(reference.metrics) | {"mean_held_out_2_e_above_hull": before})
    assert verdicts(both, reference)[gate] is False, "one of two contradicts"


def test_what_was_judged_otherwise_is_no_comparison() -> None:
    candidate = judged(metrics(90, 380, 0.1))
    assert verdicts(candidate, judged(BASE, reward="cd" * 32))["comparable"] is False
    assert verdicts(candidate, judged(BASE, protocol="q"))["comparable"] is False
    assert set(verdicts(candidate, None).values()) == {True}


class Registry:
    """A tracking database in `root`, and generators registered in it with an evaluation of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = f"sqlite:///{root}/mlflow.db"
        self.config: Config = from_sections(tracking={"uri": self.uri, "directory": str(root)})
        self.api = tracking.client(self.uri)

    def version(self, found: Mapping[str, Any], *, model: str = "tuned", reward: str = "ab" * 32) -> str:
        number = len(list(self.root.glob("stage*")))
        directory = self.root / f"stage{number}"
        with tracking.StageRun(self.uri, "test", self.root, "evaluate", directory) as run:
            (directory / "summary.json").write_text(json.dumps(summary(BASE, found)))
            run.artifact(directory / "summary.json")
            tags = {"model": model, "reward_digest": reward, "evaluation_run_id": run.run_id}
            (directory / "weights").mkdir()
            (directory / "weights" / "w").write_text(str(number))
            version, _ = models.register_files(
                run, directory / "weights", name="crystalforge-generator", alias="candidate", tags=tags, description=""
            )
        return version


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


def test_an_alias_moves_only_when_the_gates_are_passed_and_the_versions_say_why(registry: Registry) -> None:
    first = registry.version(metrics(60, 380, 0.1))
    verdict = promote(registry.config, GATES)
    assert (verdict["promoted"], verdict["version"], verdict["over"]) == (True, first, None)
    assert any("its base model" in line for line in verdict["why"]), "without production, its own base is the measure"
    assert promote(registry.config, GATES)["why"] == ["is production already"]

    worse = registry.version(metrics(20, 380, 0.1))
    verdict = promote(registry.config, GATES)
    assert verdict["promoted"] is False
    tags = registry.api.get_model_version("crystalforge-generator", worse).tags
    assert tags["gate.discovery"].startswith("failed: sun_rate -10.0 %")
    assert tags["gate.uniqueness"].startswith("passed")
    assert tags["promotion"].startswith("refused for production")
    assert models.version_of(registry.api, "models:/crystalforge-generator@production").version == int(first)

    other_judge = registry.version(metrics(300, 380, 0.1), reward="cd" * 32)
    assert promote(registry.config, GATES)["promoted"] is False
    assert "failed" in registry.api.get_model_version("crystalforge-generator", other_judge).tags["gate.comparable"]

    best = registry.version(metrics(100, 380, 0.1))
    assert promote(registry.config, GATES)["over"] == first
    found = models.version_of(registry.api, "models:/crystalforge-generator@production")
    assert str(found.version) == best
    assert found.tags["promotion.over"] == f"version {first}"


def test_a_base_model_is_the_first_and_a_version_without_an_evaluation_is_refused(registry: Registry) -> None:
    first = registry.version(metrics(40, 380, 0.2), model="base")
    verdict = promote(registry.config, GATES, target="shown")
    why = [line.partition(":")[0] for line in verdict["why"]]
    assert why == ["uniqueness passed", "discovery passed", "objective passed"], "nothing to be compared with"
    assert verdict["over"] is None
    tags = registry.api.get_model_version("crystalforge-generator", first).tags
    assert tags["promotion"].startswith("to shown, 2")
    assert "promotion.over" not in tags
    registry.api.delete_model_version_tag("crystalforge-generator", first, "evaluation_run_id")
    with pytest.raises(InputError, match=f"version {first} of crystalforge-generator does not name its evaluation"):
        promote(registry.config, GATES)
    with pytest.raises(InputError, match="--from"):
        promote(registry.config, GATES, source="v1")


@pytest.mark.parametrize("target", ["latest", "LATEST", "v1", "V2", "a b", ""])
def test_no_alias_of_the_registrys_own_opens_a_gate(registry: Registry, target: str) -> None:
    version = registry.version(metrics(60, 380, 0.1))
    with pytest.raises(InputError, match="--to"):
        promote(registry.config, PromotionGates(smallest_unique=1.0), target=target)
    with pytest.raises(InputError, match="give two aliases"):
        promote(registry.config, PromotionGates(smallest_unique=1.0), target="candidate")
    assert "promotion" not in registry.api.get_model_version("crystalforge-generator", version).tags
    assert promote(registry.config, PromotionGates(smallest_unique=1.0), source="latest")["promoted"] is False


def test_a_registration_that_was_cut_short_is_gone_on_with(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w").write_text("x")
    given = {"name": "cut", "alias": "candidate", "tags": {"model_hash": "h"}, "description": ""}

    def register() -> str:
        with tracking.StageRun(registry.uri, "test", registry.root, "register", tmp_path / "stage") as run:
            return models.register_files(run, tmp_path / "weights", **given)[0]

    with monkeypatch.context() as broken:
        broken.setattr("mlflow.MlflowClient.set_registered_model_alias", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                register()
    version = register()
    assert [found.version for found in registry.api.search_model_versions("name = 'cut'")] == [int(version)]
    assert registry.api.get_model_version_by_alias("cut", "candidate").tags["model_hash"] == "h"


def test_a_version_of_the_same_number_in_another_registry_is_another_model(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    found = []
    for name in ("a", "b"):
        root = tmp_path / name
        there = Registry(root)
        torch.manual_seed(len(name) + ord(name))
        save_model(
            root / "m", CrystalFormer(ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8)), info={}
        )
        with tracking.StageRun(there.uri, "test", root, "register", root / "stage") as run:
            version, _ = models.register_generator(
                run, root / "m", name="g", alias="candidate", tags={"model": "tuned"}, description=""
            )
        assert version == "1"
        found.append(fetch(there.config, "models:/g/1", tmp_path / f"fetched-{name}"))
    assert found[0]["key"] != found[1]["key"]
    assert found[0]["content"] != found[1]["content"]


def test_unknown_models_are_named(registry: Registry) -> None:
    for text, says in {
        "models:/nowhere@production": "not registered",
        "models:/crystalforge-generator/999": "not registered",
        "crystalforge-generator": "no model",
        "models:/a@b@c": "no model",
    }.items():
        with pytest.raises(InputError, match=says):
            models.version_of(registry.api, text)
    with pytest.raises(InputError, match="not registered"):
        promote(registry.config, GATES, source="nobody")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("model") / "model"
    save_model(place, CrystalFormer(ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8)), info={})
    return place


def test_a_generator_comes_out_of_the_registry_as_it_went_in(registry: Registry, model: Path, tmp_path: Path) -> None:
    from crystalforge.model.checkpoint import load_model

    addresses = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    digest = weights_hash(load_model(model).model)
    tags = {"model": "tuned", "model_hash": digest, "data_hash": "d" * 64}
    with tracking.StageRun(registry.uri, "test", registry.root, "register", tmp_path / "run") as run:
        version, uri = models.register_generator(
            run, model, name="other", alias="candidate", tags=tags, description="card"
        )
    assert uri == "models:/other@candidate"
    assert crystalforge.load(uri, tracking_uri=registry.uri).hash == digest
    assert crystalforge.load(f"models:/other/{version}", tracking_uri=registry.uri).hash == digest
    with pytest.raises(InputError, match="not registered"):
        crystalforge.load("models:/other@nobody", tracking_uri=registry.uri)
    record = fetch(registry.config, uri, tmp_path / "fetched")
    assert record["content"] == digest
    assert record["metrics"] == {"uri": f"models:/other/{version}", "data_hash": "d" * 64, "model_hash": digest}
    assert weights_hash(load_model(tmp_path / "fetched" / "model").model) == digest
    assert fetch(registry.config, uri, tmp_path / "fetched") == record, "done before"

    registry.api.set_model_version_tag("other", version, "model_hash", "0" * 64)
    with pytest.raises(InputError, match="the registry says 000000000000"):
        fetch(registry.config, uri, tmp_path / "again")
    files = registry.version(metrics(60, 380, 0.1))
    with pytest.raises(InputError, match="is no generator"):
        fetch(registry.config, f"models:/crystalforge-generator/{files}", tmp_path / "files")

    import mlflow

    after = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    assert {name for name in after if "URI" in name or "ID" in name} == {
        name for name in addresses if "URI" in name or "ID" in name
    }, "another registry's turn may come in this process"
    assert mlflow.get_tracking_uri() != registry.uri


def test_a_directory_is_a_base_too_and_is_read_again_when_it_changed(model: Path, tmp_path: Path) -> None:
    config = from_sections(tracking={"enabled": False})
    outer = fetch(config, str(model.parent), tmp_path / "a")
    inner = fetch(config, str(model), tmp_path / "b")
    assert outer["content"] == inner["content"]
    assert outer["key"] == inner["key"]
    torch.manual_seed(1)
    save_model(model, CrystalFormer(ModelConfig(layers=1, heads=2, head_size=8, width=16, embedding=8)), info={})
    assert fetch(config, str(model), tmp_path / "c")["key"] != inner["key"]
    with pytest.raises(InputError, match="no such directory"):
        fetch(config, str(tmp_path / "nowhere"), tmp_path / "d")
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        fetch(config, str(tmp_path), tmp_path / "d")


def test_the_card_says_how_it_was_judged_and_what_it_was_made_of() -> None:
    tags = {"model_hash": "ab" * 32, "reward_digest": "cd" * 32, "reason": "", "base_model": "models:/g/3"}
    card = model_card("g", summary(BASE, metrics(90, 380, 0.1)), "tuned", "it is better", tags)
    assert "| S.U.N. (%) | 22.5 | 18.7 to 26.8 |" in card
    assert "| Mean reward |" in card
    assert "+0.100" in card
    assert "`models:/g/3`" in card
    assert "reason" not in card
    assert "not from first principles" in card


def test_a_run_that_the_workflow_engine_injects_is_adopted(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tracking.experiment_id(registry.api, "test", registry.root)
    injected = registry.api.create_run(experiment, run_name="by the engine").info.run_id
    monkeypatch.setenv(tracking.PARENT_VARIABLE, injected)
    assert tracking.open_parent(registry.api, "another", registry.root, "mine", None) == injected
    with tracking.StageRun(registry.uri, "another", registry.root, "ingest", tmp_path / "stage") as run:
        found = registry.api.get_run(run.run_id)
    assert found.data.tags["mlflow.parentRunId"] == injected
    assert found.info.experiment_id == experiment, "with its parent, whatever the configuration says"
    monkeypatch.setenv(tracking.PARENT_VARIABLE, "0" * 32)
    fresh = tracking.open_parent(registry.api, "test", registry.root, "mine", None)
    assert fresh not in (injected, "0" * 32), "one that is not there is not adopted"


def test_a_run_that_the_engine_opens_for_the_task_itself_is_the_stages_own(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tracking.experiment_id(registry.api, "test", registry.root)
    parent = registry.api.create_run(experiment, run_name="the pipeline's").info.run_id
    nested = registry.api.create_run(experiment, run_name="the task's", tags={tracking.PARENT_TAG: parent}).info.run_id
    monkeypatch.setenv(tracking.PARENT_VARIABLE, nested)
    before = len(registry.api.search_runs([experiment]))
    with tracking.StageRun(registry.uri, "another", registry.root, "ingest", tmp_path / "stage") as run:
        run.metrics(0, {"crystals": 3.0})
    assert run.run_id == nested
    assert len(registry.api.search_runs([experiment])) == before, "no third level below the task's"
    assert registry.api.get_run(nested).data.metrics == {"crystals": 3.0}
    assert registry.api.get_run(nested).data.tags[tracking.PARENT_TAG] == parent


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a web server that knows nothing of MLflow: every path is a page that says 404."""

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_that_is_not_mlflow_s_is_a_message(stranger: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"refused or did not answer.*404") as caught:
        models.version_of(tracking.client(stranger), "models:/x@y")
    assert caught.value.source == stranger
    with (
        pytest.raises(InputError, match="404"),
        tracking.StageRun(stranger, "test", tmp_path, "pretrain", tmp_path / "stage"),
    ):
        raise AssertionError("the stage's work must not begin")
