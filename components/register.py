"""The better model -> registry."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def register(
    workspace: str,
    register_config: str,
    tracking_config: str,
    base: dsl.Input[dsl.Model],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
):
    """Put the better of the two models into the registry, with its lineage."""
    from crystalforge.stages.component import execute

    execute(
        "register",
        workspace,
        sections={"register": register_config, "tracking": tracking_config},
        inputs={"base": base.path, "tuned": tuned.path, "evaluation": evaluation.path},
        outputs=registration.path,
        metadata=[registration.metadata],
    )
