"""Parts that pipelines have in common: tasks with their place on the cluster, wired to each other.

Called inside a pipeline's definition, each adds its tasks to it. `cluster` is None for the local runner. Parameters are
channels of the pipeline or of a loop, sections as the components take them.
"""

from dataclasses import dataclass
from typing import Any

from kfp import dsl

import components
from pipelines.cluster import ClusterConfig, on_cluster, trainjob_text

Channel = Any  # a pipeline's parameter or a task's output: the engine's types do not say so
make: Any = components  # called in a pipeline a component gives a task, which its own annotations do not say


@dataclass(frozen=True)
class Judges:
    """What decides how crystals are judged: the same for every model that is to be compared."""

    reward_config: Channel
    service_config: Channel
    evaluate_config: Channel


def ingest(
    cluster: ClusterConfig | None,
    *,
    workspace: Channel,
    data_config: Channel,
    data_version: Channel,
    tracking_config: Channel,
) -> dsl.PipelineTask:
    """Source -> token store. Shards are tokenised side by side, `cluster.ingest_parts` pods at most; here, by one step
    that uses every core."""
    parts = 1 if cluster is None else cluster.ingest_parts
    what = {"workspace": workspace, "data_config": data_config, "data_version": data_version}
    plan = on_cluster(make.ingest_plan(**what, parts=parts), cluster)
    with dsl.ParallelFor(plan.output, name="shards", parallelism=parts) as share:
        part = on_cluster(make.ingest_part(**what, share=share), cluster)
    whole = make.ingest(**what, tracking_config=tracking_config, parts=dsl.Collected(part.output))
    return on_cluster(whole, cluster)


def pretrain(
    cluster: ClusterConfig | None,
    data: dsl.PipelineTask,
    *,
    workspace: Channel,
    seed: Channel,
    model_config: Channel,
    pretrain_config: Channel,
    tracking_config: Channel,
) -> dsl.PipelineTask:
    """Token store -> base model."""
    task = make.pretrain(
        workspace=workspace,
        seed=seed,
        model_config=model_config,
        pretrain_config=pretrain_config,
        tracking_config=tracking_config,
        trainjob_config=trainjob_text(cluster),
        **_data(data),
    )
    return on_cluster(task, cluster, role="learner", launches=True)


def tune_and_evaluate(
    cluster: ClusterConfig | None,
    data: dsl.PipelineTask,
    base: dsl.PipelineTask,
    judges: Judges,
    *,
    workspace: Channel,
    seed: Channel,
    finetune_config: Channel,
    tracking_config: Channel,
    in_loop: bool = False,
) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:
    """Base model -> tuned model, and the evaluation of both side by side."""
    common = {
        "workspace": workspace,
        "seed": seed,
        "reward_config": judges.reward_config,
        "service_config": judges.service_config,
        "tracking_config": tracking_config,
        "base": base.outputs["model"],
        **_data(data),
    }
    if in_loop and cluster is None:
        # The local runner (kfp 2.17) hands the loop's item to a task in place of another task's output parameter.
        common["data_hash"] = ""
    tuned = make.finetune(**common, finetune_config=finetune_config, trainjob_config=trainjob_text(cluster))
    judged = make.evaluate(**common, evaluate_config=judges.evaluate_config, tuned=tuned.outputs["model"])
    return (
        on_cluster(tuned, cluster, role="learner", launches=True),
        on_cluster(judged, cluster, role="learner"),
    )


def tune_evaluate_register(
    cluster: ClusterConfig | None,
    data: dsl.PipelineTask,
    base: dsl.PipelineTask,
    judges: Judges,
    *,
    workspace: Channel,
    seed: Channel,
    finetune_config: Channel,
    register_config: Channel,
    tracking_config: Channel,
) -> None:
    """Base model -> tuned model -> evaluation -> the better of the two into the registry."""
    tuned, judged = tune_and_evaluate(
        cluster,
        data,
        base,
        judges,
        workspace=workspace,
        seed=seed,
        finetune_config=finetune_config,
        tracking_config=tracking_config,
    )
    task = make.register(
        workspace=workspace,
        register_config=register_config,
        tracking_config=tracking_config,
        base=base.outputs["model"],
        tuned=tuned.outputs["model"],
        evaluation=judged.outputs["evaluation"],
    )
    on_cluster(task, cluster)


def exit_handler(cluster: ClusterConfig | None, workspace: Channel) -> dsl.ExitHandler:
    """The block that a pipeline's steps are in: however it ends, its logs are archived."""
    last = on_cluster(make.archive(workspace=workspace), cluster)
    return dsl.ExitHandler(last.set_caching_options(False), name="all")


def _data(task: dsl.PipelineTask) -> dict[str, Channel]:
    return {"dataset": task.outputs["dataset"], "data_hash": task.outputs["data_hash"]}
