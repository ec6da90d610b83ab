"""Base and tuned model -> one table of crystals, one summary, one report."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    workspace: str,
    seed: str,
    reward_config: str,
    service_config: str,
    evaluate_config: str,
    tracking_config: str,
    data_hash: str,
    dataset: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Judge both models by the same protocol and write the report."""
    from crystalforge.stages.component import execute

    execute(
        "evaluate",
        workspace,
        sections={
            "seed": seed,
            "reward": reward_config,
            "service": service_config,
            "evaluate": evaluate_config,
            "tracking": tracking_config,
        },
        inputs={"data": dataset.path, "base": base.path, "tuned": tuned.path},
        expected={"data": data_hash},
        outputs=evaluation.path,
        metadata=[evaluation.metadata, metrics.metadata],
        files={"report.html": report.path},
    )
