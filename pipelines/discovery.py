"""The main job: data -> base model -> tuned model -> evaluation -> registry."""

from kfp import dsl

from pipelines import steps
from pipelines.cluster import ClusterConfig


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
        given = locals()
        with steps.exit_handler(cluster, given):
            data = steps.ingest(cluster, given)
            base = steps.pretrain(cluster, given, data)
            steps.tune_evaluate_register(cluster, given, data, base)

    return discovery


discovery = build()
