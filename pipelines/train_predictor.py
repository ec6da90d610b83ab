"""Structures with properties -> a registered property predictor with its parity plot."""

from kfp import dsl

import components
from pipelines.cluster import ClusterConfig, on_cluster
from pipelines.steps import exit_handler


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="train-predictor", description="A property predictor, trained and registered.")
    def train_predictor(
        workspace: str,
        seed: str,
        predictor_config: str,
        register_config: str,
        tracking_config: str,
        data_version: str = "",
    ):
        """The table that `predictor_config` names lies where every step sees it, as on the workspace volume."""
        with exit_handler(cluster, workspace):
            model = components.train_predictor(
                workspace=workspace,
                seed=seed,
                predictor_config=predictor_config,
                register_config=register_config,
                tracking_config=tracking_config,
                data_version=data_version,
            )
            on_cluster(model, cluster, role="learner")

    return train_predictor


train_predictor = build()
