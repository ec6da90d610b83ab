"""Every log of a run -> one archive, however the run ended."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def archive(
    workspace: str,
    status: dsl.PipelineTaskFinalStatus,
    logs: dsl.Output[dsl.Artifact],
):
    """Keep logs, metrics and error notes: the exit step of every pipeline."""
    from crystalforge.stages.archive import archive

    logs.metadata.update(archive(workspace, logs.path, state=status.state, error=status.error_message or ""))
