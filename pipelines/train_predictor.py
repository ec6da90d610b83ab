"""Structures with properties -> a registered property predictor with its parity plot."""

from kfp import dsl

import components
from pipelines import steps
from pipelines.cluster import ClusterConfig, on_cluster


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
        given = locals()
        with steps.exit_handler(cluster, given):
            made = steps.asked_anew(steps.task(components.train_predictor, given))
            on_cluster(made, cluster, role="learner")

    return train_predictor


train_predictor = build()
