"""Structures with properties -> property predictor."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def train_predictor(
    workspace: str,
    seed: str,
    predictor_config: str,
    register_config: str,
    tracking_config: str,
    data_version: str,
    model: dsl.Output[dsl.Model],
    parity: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train and register a predictor from the table of the version that DVC's hash `data_version` names."""
    from crystalforge.stages.component import execute

    execute(
        "train_predictor",
        workspace,
        sections={
            "seed": seed,
            "predictor": predictor_config,
            "register": register_config,
            "tracking": tracking_config,
        },
        options={"data_version": data_version},
        outputs=model.path,
        metadata=[model.metadata, metrics.metadata],
        files={"parity.html": parity.path},
    )
