"""One base model, tuned with several strengths of the KL term and several seeds, side by side in one report."""

from typing import Any

from kfp import dsl

import components
from pipelines.cluster import ClusterConfig, on_cluster, trainjob_text

PARALLEL = 4  # variants under way at once: each learner has a node's worth of work


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="sweep", description="Fine-tuning over tau and seeds, compared in one report.")
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
        last = on_cluster(components.archive(workspace=workspace), cluster)
        with dsl.ExitHandler(last.set_caching_options(False), name="all"):
            data = components.ingest(
                workspace=workspace,
                data_config=data_config,
                tracking_config=tracking_config,
                data_version=data_version,
            )
            base = components.pretrain(
                workspace=workspace,
                seed=seed,
                model_config=model_config,
                pretrain_config=pretrain_config,
                tracking_config=tracking_config,
                trainjob_config=trainjob_text(cluster),
                dataset=data.outputs["dataset"],
            )
            items: Any = variants  # a channel: the engine's types do not say so
            loop: Any = dsl.ParallelFor(items, name="variants", parallelism=PARALLEL)
            with loop as variant:
                tuned = components.finetune(
                    workspace=variant.workspace,
                    seed=variant.seed,
                    reward_config=reward_config,
                    service_config=service_config,
                    finetune_config=variant.finetune_config,
                    tracking_config=tracking_config,
                    trainjob_config=trainjob_text(cluster),
                    dataset=data.outputs["dataset"],
                    base=base.outputs["model"],
                )
                evaluation = components.evaluate(
                    workspace=variant.workspace,
                    seed=variant.seed,
                    reward_config=reward_config,
                    service_config=service_config,
                    evaluate_config=evaluate_config,
                    tracking_config=tracking_config,
                    dataset=data.outputs["dataset"],
                    base=base.outputs["model"],
                    tuned=tuned.outputs["model"],
                )
                on_cluster(tuned, cluster, role="learner", launches=True)
                on_cluster(evaluation, cluster, role="learner")
            comparison = components.compare(
                workspace=workspace,
                tracking_config=tracking_config,
                tuned=dsl.Collected(tuned.outputs["model"]),
                evaluations=dsl.Collected(evaluation.outputs["evaluation"]),
            )
            on_cluster(data, cluster)
            on_cluster(base, cluster, role="learner", launches=True)
            on_cluster(comparison, cluster)

    return sweep


sweep = build()
