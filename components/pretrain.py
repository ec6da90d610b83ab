"""Token store -> base model."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def pretrain(
    workspace: str,
    seed: str,
    model_config: str,
    pretrain_config: str,
    tracking_config: str,
    trainjob_config: str,
    data_hash: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train the generator by maximum likelihood."""
    from crystalforge.stages.component import execute

    execute(
        "pretrain",
        workspace,
        sections={
            "seed": seed,
            "model": model_config,
            "pretrain": pretrain_config,
            "tracking": tracking_config,
        },
        inputs={"data": dataset.path},
        expected={"data": data_hash},
        outputs=model.path,
        metadata=[model.metadata, metrics.metadata],
        trainjob=trainjob_config,
    )
