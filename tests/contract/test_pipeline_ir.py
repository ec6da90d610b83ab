"""The compiled pipelines keep the engine's schema, and a component's body is one call of its stage."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

import components
from crystalforge.common.errors import InputError
from crystalforge.config import Config, from_sections
from crystalforge.stages.base import find_stage
from pipelines.arguments import arguments
from pipelines.catalog import PIPELINES
from pipelines.cluster import ClusterConfig

OPTIONS = {"base_model": "models:/generator/3", "taus": [0.1, 0.3], "seeds": [0, 1]}
CONFIG = from_sections(seed=7, predictor={"data": "table.parquet"}, data={"source": {"kind": "cif-dir", "path": "x"}})


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("cluster", [None, ClusterConfig()], ids=["local", "cluster"])
def test_the_compiled_pipeline_is_a_pipeline_spec(name: str, cluster: ClusterConfig | None, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    pipeline = PIPELINES[name](cluster)
    values = arguments(pipeline, CONFIG, "/workspace/run", **OPTIONS)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=values)
    documents = list(yaml.safe_load_all(path.read_text()))
    # The parser refuses unknown fields and wrong types: the message is the engine's schema.
    spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    assert spec.schema_version.startswith("2.")
    declared = spec.root.input_definitions.parameters
    assert set(values) == set(declared), "every parameter is given, none is unknown"
    if cluster is not None:
        platform = json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
        for executor in platform.platforms["kubernetes"].deployment_spec.executors.values():
            json_format.ParseDict(
                json_format.MessageToDict(executor), kubernetes_executor_config_pb2.KubernetesExecutorConfig()
            )


def test_parameters_are_the_configuration_and_nothing_is_lost_on_the_way() -> None:
    discovery = PIPELINES["discovery"](None)
    values = arguments(discovery, CONFIG, "w")
    sections = {
        name.removesuffix("_config"): json.loads(text) for name, text in values.items() if name.endswith("_config")
    }
    again = from_sections(seed=json.loads(values["seed"]), predictor={"data": "table.parquet"}, **sections)
    assert again == CONFIG
    # The engine's cache key: same configuration, same text.
    assert arguments(discovery, CONFIG.model_copy(), "w") == values


def test_what_a_pipeline_needs_and_did_not_get_is_named() -> None:
    with pytest.raises(InputError, match="--base-model"):
        arguments(PIPELINES["finetune"](None), CONFIG, "w")
    with pytest.raises(InputError, match=r"predictor\.data"):
        arguments(PIPELINES["train-predictor"](None), Config(), "w")


def test_a_sweep_is_every_tau_with_every_seed_and_nothing_else_differs() -> None:
    values = arguments(PIPELINES["sweep"](None), CONFIG, "w", **OPTIONS)
    settings = [json.loads(variant["finetune_config"]) for variant in values["variants"]]
    assert [(s["tau"], v["seed"]) for s, v in zip(settings, values["variants"], strict=True)] == [
        (0.1, "0"), (0.1, "1"), (0.3, "0"), (0.3, "1"),
    ]  # fmt: skip
    assert len({variant["workspace"] for variant in values["variants"]}) == 4
    assert len({json.dumps(s | {"tau": 0}, sort_keys=True) for s in settings}) == 1


def test_a_sweep_over_algorithms_takes_the_surrogate_along_where_it_belongs() -> None:
    ours = {"algorithm": "balance", "filter": True, "batch_size": 60, "surrogate": {"waves": 2}}
    values = arguments(
        PIPELINES["sweep"](None), from_sections(finetune=ours), "w", **OPTIONS | {"algorithms": ["balance", "ppo"]}
    )
    settings = [json.loads(variant["finetune_config"]) for variant in values["variants"]]
    assert {(s["algorithm"], s["surrogate"] is not None) for s in settings} == {("balance", True), ("ppo", False)}


def test_a_sweep_over_algorithms_gives_each_the_same_budget() -> None:
    options = OPTIONS | {"algorithms": ["ppo", "rloo", "dpo"]}
    values = arguments(PIPELINES["sweep"](None), CONFIG, "w", **options)
    settings = [json.loads(variant["finetune_config"]) for variant in values["variants"]]
    assert [s["algorithm"] for s in settings] == ["ppo"] * 4 + ["rloo"] * 4 + ["dpo"] * 4
    assert len({(s["steps"], s["batch_size"]) for s in settings}) == 1
    assert len({variant["workspace"] for variant in values["variants"]}) == 12
    odd = from_sections(finetune={"batch_size": 64, "group_size": 10})  # groups of ten do not fill a batch
    with pytest.raises(InputError, match="not a multiple of group_size"):
        arguments(PIPELINES["sweep"](None), odd, "w", algorithms=["ppo", "grpo"])


@pytest.mark.parametrize("name", components.__all__)
def test_a_body_calls_its_stage_and_nothing_else(name: str) -> None:
    function = getattr(components, name).python_func
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(body, ast.FunctionDef)
    statements = [statement for statement in body.body if not _is_docstring(statement)]
    assert len(statements) == 2, "one import, one call"
    assert isinstance(statements[0], ast.ImportFrom)
    assert statements[0].module is not None
    assert statements[0].module.startswith("crystalforge.stages.")
    assert isinstance(statements[1], ast.Expr | ast.Return)
    assert isinstance(statements[1].value, ast.Call)
    # The stage that the component's name promises exists.
    assert callable(find_stage(name))


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
