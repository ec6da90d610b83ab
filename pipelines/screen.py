"""From a registered generator (or a directory) and a wish to a ranked list: fetch -> screen."""

from kfp import dsl

import components
from pipelines import steps
from pipelines.cluster import ClusterConfig, on_cluster


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="screen", description="From a wish to a ranked list of crystals.")
    def screen(workspace: str, seed: str, base_model: str, screen_config: str, tracking_config: str):
        """`base_model`: models:/name/version, or a directory that every step sees. The wish is in `screen_config`."""
        given = locals()
        with steps.exit_handler(cluster, given):
            base = on_cluster(steps.task(components.fetch, given), cluster)
            found = steps.task(components.screen, given, base=base.outputs["model"])
            on_cluster(found, cluster, role="learner")

    return screen


screen = build()
