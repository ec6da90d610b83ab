"""Data alone: source -> token store, its shards tokenised side by side."""

from kfp import dsl

from pipelines import steps
from pipelines.cluster import ClusterConfig


def build(cluster: ClusterConfig | None = None):
    """The pipeline for a cluster, or (none) for the local runner."""

    @dsl.pipeline(name="ingest", description="From files of crystals to a token store.")
    def ingest(workspace: str, data_config: str, tracking_config: str, data_version: str = ""):
        """A source on the workspace volume, at a URL, or the one that ships with the image."""
        given = locals()
        with steps.exit_handler(cluster, given):
            steps.ingest(cluster, given)

    return ingest


ingest = build()
