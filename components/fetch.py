"""Registry -> base model."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def fetch(
    workspace: str,
    base_model: str,
    tracking_config: str,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Bring a registered generator, or one in a directory, and check that it is whole."""
    from crystalforge.stages.component import execute

    execute(
        "fetch",
        workspace,
        sections={"tracking": tracking_config},
        options={"model": base_model},
        outputs=model.path,
        metadata=[model.metadata, metrics.metadata],
    )
