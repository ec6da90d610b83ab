"""Base model and reward -> tuned model."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def finetune(
    workspace: str,
    seed: str,
    reward_config: str,
    service_config: str,
    finetune_config: str,
    tracking_config: str,
    trainjob_config: str,
    data_hash: str,
    dataset: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Reinforce the generator on its own samples against the served reward."""
    from crystalforge.stages.component import execute

    execute(
        "finetune",
        workspace,
        sections={
            "seed": seed,
            "reward": reward_config,
            "service": service_config,
            "finetune": finetune_config,
            "tracking": tracking_config,
        },
        inputs={"data": dataset.path, "base": base.path},
        expected={"data": data_hash},
        outputs=model.path,
        metadata=[model.metadata, metrics.metadata],
        trainjob=trainjob_config,
    )
