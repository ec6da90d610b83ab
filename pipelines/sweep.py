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
        given = locals()
        with steps.exit_handler(cluster, given):
            data = steps.ingest(cluster, given)
            base = steps.pretrain(cluster, given, data)
            items: Any = variants  # a channel: the engine's types do not say so
            loop: Any = dsl.ParallelFor(items, name="variants", parallelism=PARALLEL)
            with loop as variant:
                own = {name: getattr(variant, name) for name in ("workspace", "seed", "finetune_config")}
                tuned, evaluation = steps.tune_and_evaluate(cluster, given | own, data, base, in_loop=True)
            comparison = steps.task(
                components.compare,
                given,
                tuned=dsl.Collected(tuned.outputs["model"]),
                evaluations=dsl.Collected(evaluation.outputs["evaluation"]),
            )
            on_cluster(comparison, cluster)

    return sweep


sweep = build()
