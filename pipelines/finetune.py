"""From a registered base model (or a directory) to a tuned one: fetch -> tune -> evaluate -> registry."""

from kfp import dsl

import components
from pipelines import steps
from pipelines.cluster import ClusterConfig, on_cluster


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
        of novelty and give the shares of the space groups."""
        with steps.exit_handler(cluster, workspace):
            data = steps.ingest(
                cluster,
                workspace=workspace,
                data_config=data_config,
                data_version=data_version,
                tracking_config=tracking_config,
            )
            base = components.fetch(workspace=workspace, base_model=base_model, tracking_config=tracking_config)
            on_cluster(base, cluster)
            steps.tune_evaluate_register(
                cluster,
                data,
                base,
                steps.Judges(reward_config, service_config, evaluate_config),
                workspace=workspace,
                seed=seed,
                finetune_config=finetune_config,
                register_config=register_config,
                tracking_config=tracking_config,
            )

    return finetune


finetune = build()
