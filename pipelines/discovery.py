"""The main job: data -> base model -> tuned model -> evaluation -> registry."""

from kfp import dsl

import components
from pipelines.cluster import ClusterConfig, on_cluster, trainjob_text


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="discovery", description="From crystals to a tuned, evaluated and registered generator.")
    def discovery(
        workspace: str,
        seed: str,
        data_config: str,
        model_config: str,
        pretrain_config: str,
        reward_config: str,
        service_config: str,
        finetune_config: str,
        evaluate_config: str,
        register_config: str,
        tracking_config: str,
        data_version: str = "",
    ):
        """Each parameter ending in `_config` is the section of params.yaml by that name."""
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
            tuned = components.finetune(
                workspace=workspace,
                seed=seed,
                reward_config=reward_config,
                service_config=service_config,
                finetune_config=finetune_config,
                tracking_config=tracking_config,
                trainjob_config=trainjob_text(cluster),
                dataset=data.outputs["dataset"],
                base=base.outputs["model"],
            )
            evaluation = components.evaluate(
                workspace=workspace,
                seed=seed,
                reward_config=reward_config,
                service_config=service_config,
                evaluate_config=evaluate_config,
                tracking_config=tracking_config,
                dataset=data.outputs["dataset"],
                base=base.outputs["model"],
                tuned=tuned.outputs["model"],
            )
            registration = components.register(
                workspace=workspace,
                register_config=register_config,
                tracking_config=tracking_config,
                base=base.outputs["model"],
                tuned=tuned.outputs["model"],
                evaluation=evaluation.outputs["evaluation"],
            )
            on_cluster(data, cluster)
            on_cluster(base, cluster, role="learner", launches=True)
            on_cluster(tuned, cluster, role="learner", launches=True)
            on_cluster(evaluation, cluster, role="learner")
            on_cluster(registration, cluster)

    return discovery


discovery = build()
