"""The earlier address of `crystalforge.integrations.trainjob.manifest`: programs written for it keep working."""

from crystalforge.integrations.trainjob.manifest import TrainJobConfig, condition, job_name, manifest, outcome

__all__ = ["TrainJobConfig", "condition", "job_name", "manifest", "outcome"]
