"""From a registered generator (or a directory) and a wish to a ranked list: fetch -> screen."""

from kfp import dsl

import components
from pipelines.cluster import ClusterConfig, on_cluster
from pipelines.steps import exit_handler


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="screen", description="From a wish to a ranked list of crystals.")
    def screen(workspace: str, seed: str, base_model: str, screen_config: str, tracking_config: str):
        """`base_model`: models:/name/version, or a directory that every step sees. The wish is in `screen_config`."""
        with exit_handler(cluster, workspace):
            base = components.fetch(workspace=workspace, base_model=base_model, tracking_config=tracking_config)
            on_cluster(base, cluster)
            found = components.screen(
                workspace=workspace,
                seed=seed,
                screen_config=screen_config,
                tracking_config=tracking_config,
                base=base.outputs["model"],
            )
            on_cluster(found, cluster, role="learner")

    return screen


screen = build()
