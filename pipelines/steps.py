"""Parts that pipelines have in common: tasks with their place on the cluster, wired to each other.

Called inside a pipeline's definition, each adds its tasks to it. `cluster` is None for the local runner. `given` holds
the pipeline's parameters by name (channels of the pipeline or of a loop), of which every task takes those that its
component asks for. A pipeline still lists its parameters, and so does a component: the engine's compiler reads them
from the signature.
"""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

import components
from pipelines.cluster import ClusterConfig, on_cluster, trainjob_text

Channel = Any  # a pipeline's parameter or a task's output: the engine's types do not say so
Given = Mapping[str, Channel]


def ingest(cluster: ClusterConfig | None, given: Given) -> dsl.PipelineTask:
    """Source -> token store. Shards are tokenised side by side, `cluster.ingest_parts` pods at most; here, by one step
    that uses every core."""
    parts = 1 if cluster is None else cluster.ingest_parts
    plan = on_cluster(task(components.ingest_plan, given, parts=parts), cluster)
    with dsl.ParallelFor(plan.output, name="shards", parallelism=parts) as share:
        part = on_cluster(task(components.ingest_part, given, share=share), cluster)
    return on_cluster(task(components.ingest, given, parts=dsl.Collected(part.output)), cluster)


def pretrain(cluster: ClusterConfig | None, given: Given, data: dsl.PipelineTask) -> dsl.PipelineTask:
    """Token store -> base model."""
    made = task(components.pretrain, given, trainjob_config=trainjob_text(cluster), **_data(data))
    return on_cluster(made, cluster, role="learner", launches=True)


def tune_and_evaluate(
    cluster: ClusterConfig | None,
    given: Given,
    data: dsl.PipelineTask,
    base: dsl.PipelineTask,
    *,
    in_loop: bool = False,
) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:
    """Base model -> tuned model, and the evaluation of both side by side."""
    common = {"base": base.outputs["model"], **_data(data)}
    if in_loop and cluster is None:
        # The local runner (kfp 2.17) hands the loop's item to a task in place of another task's output parameter.
        common["data_hash"] = ""
    tuned = task(components.finetune, given, **common, trainjob_config=trainjob_text(cluster))
    judged = task(components.evaluate, given, **common, tuned=tuned.outputs["model"])
    return (
        on_cluster(tuned, cluster, role="learner", launches=True),
        on_cluster(judged, cluster, role="learner"),
    )


def tune_evaluate_register(
    cluster: ClusterConfig | None, given: Given, data: dsl.PipelineTask, base: dsl.PipelineTask
) -> None:
    """Base model -> tuned model -> evaluation -> the better of the two into the registry."""
    tuned, judged = tune_and_evaluate(cluster, given, data, base)
    made = task(
        components.register,
        given,
        base=base.outputs["model"],
        tuned=tuned.outputs["model"],
        evaluation=judged.outputs["evaluation"],
    )
    on_cluster(asked_anew(made), cluster)


def asked_anew(step: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that reads or writes a registry: the engine's cache knows its parameters, not which registry that was.

    The stage itself looks there, and costs nothing when everything is as it was.
    """
    return step.set_caching_options(False)


def exit_handler(cluster: ClusterConfig | None, given: Given) -> dsl.ExitHandler:
    """The block that a pipeline's steps are in: however it ends, its logs are archived."""
    last = on_cluster(task(components.archive, given), cluster)
    return dsl.ExitHandler(last.set_caching_options(False), name="all")


def task(component: Any, given: Given, **inputs: Channel) -> dsl.PipelineTask:
    """A task of `component` with its `inputs`, and of the pipeline's parameters those that it asks for."""
    asked = component.component_spec.inputs or {}
    return component(**{name: value for name, value in given.items() if name in asked and name not in inputs}, **inputs)


def _data(made: dsl.PipelineTask) -> dict[str, Channel]:
    return {"dataset": made.outputs["dataset"], "data_hash": made.outputs["data_hash"]}
