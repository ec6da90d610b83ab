"""From a registered base model (or a directory) to a tuned one: fetch -> tune -> evaluate -> registry."""

from kfp import dsl

import components
from pipelines.cluster import ClusterConfig, on_cluster, trainjob_text


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="finetune", description="A registered generator, reinforced against a reward.")
    def finetune(
        workspace: str,
        seed: str,
        base_model: str,
        data_config: str,
        reward_config: str,
        service_config: str,
        finetune_config: str,
        evaluate_config: str,
        register_config: str,
        tracking_config: str,
        data_version: str = "",
    ):
        """`base_model`: models:/name/version, or a directory that every step sees. The data serve as the reference
        of novelty; shares of space groups are those that the base model learned from."""
        last = on_cluster(components.archive(workspace=workspace), cluster)
        with dsl.ExitHandler(last.set_caching_options(False), name="all"):
            data = components.ingest(
                workspace=workspace,
                data_config=data_config,
                tracking_config=tracking_config,
                data_version=data_version,
            )
            base = components.fetch(workspace=workspace, base_model=base_model, tracking_config=tracking_config)
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
            on_cluster(base, cluster)
            on_cluster(tuned, cluster, role="learner", launches=True)
            on_cluster(evaluation, cluster, role="learner")
            on_cluster(registration, cluster)

    return finetune


finetune = build()
