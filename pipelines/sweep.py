"""One base model, tuned by several algorithms, strengths of the KL term and seeds, side by side in one report."""

from typing import Any

from kfp import dsl

import components
from pipelines import steps
from pipelines.cluster import ClusterConfig, on_cluster

PARALLEL = 4  # variants under way at once: each learner has a node's worth of work


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="sweep", description="Fine-tuning over algorithms, tau and seeds, compared in one report.")
    def sweep(
        workspace: str,
        seed: str,
        variants: list[dict[str, str]],
        data_config: str,
        model_config: str,
        pretrain_config: str,
        reward_config: str,
        service_config: str,
        evaluate_config: str,
        tracking_config: str,
        data_version: str = "",
    ):
        """Each of `variants` has `workspace`, `seed` and `finetune_config`; all share data and base model."""
        with steps.exit_handler(cluster, workspace):
            data = steps.ingest(
                cluster,
                workspace=workspace,
                data_config=data_config,
                data_version=data_version,
                tracking_config=tracking_config,
            )
            base = steps.pretrain(
                cluster,
                data,
                workspace=workspace,
                seed=seed,
                model_config=model_config,
                pretrain_config=pretrain_config,
                tracking_config=tracking_config,
            )
            items: Any = variants  # a channel: the engine's types do not say so
            loop: Any = dsl.ParallelFor(items, name="variants", parallelism=PARALLEL)
            with loop as variant:
                tuned, evaluation = steps.tune_and_evaluate(
                    cluster,
                    data,
                    base,
                    steps.Judges(reward_config, service_config, evaluate_config),
                    workspace=variant.workspace,
                    seed=variant.seed,
                    finetune_config=variant.finetune_config,
                    tracking_config=tracking_config,
                    in_loop=True,
                )
            comparison = components.compare(
                workspace=workspace,
                tracking_config=tracking_config,
                tuned=dsl.Collected(tuned.outputs["model"]),
                evaluations=dsl.Collected(evaluation.outputs["evaluation"]),
            )
            on_cluster(comparison, cluster)

    return sweep


sweep = build()
