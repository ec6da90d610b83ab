"""Several fine-tunings of one base -> one comparison."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def compare(
    workspace: str,
    tracking_config: str,
    tuned: dsl.Input[list[dsl.Model]],
    evaluations: dsl.Input[list[dsl.Artifact]],
    comparison: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Gather the evaluations of all variants into one table and one report."""
    from crystalforge.stages.component import execute

    execute(
        "compare",
        workspace,
        sections={"tracking": tracking_config},
        inputs={"tuned": [item.path for item in tuned], "evaluations": [item.path for item in evaluations]},
        outputs=comparison.path,
        metadata=[comparison.metadata, metrics.metadata],
        files={"report.html": report.path},
    )
