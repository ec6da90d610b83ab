"""Pipelines composed of components: compiled for a cluster, or run here by the local runner, unchanged."""
