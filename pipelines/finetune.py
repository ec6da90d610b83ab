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
        given = locals()
        with steps.exit_handler(cluster, given):
            data = steps.ingest(cluster, given)
            base = on_cluster(steps.asked_anew(steps.task(components.fetch, given)), cluster)
            steps.tune_evaluate_register(cluster, given, data, base)

    return finetune


finetune = build()
