"""Kubeflow Trainer: stages as jobs on many GPUs."""

from crystalforge.integrations.trainjob.jobs import TrainJobFailed, TrainJobs
from crystalforge.integrations.trainjob.manifest import TrainJobConfig

__all__ = ["TrainJobConfig", "TrainJobFailed", "TrainJobs"]
