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

    return discovery


discovery = build()
