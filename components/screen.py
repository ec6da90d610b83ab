"""Generator -> ranked list of crystals."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def screen(
    workspace: str,
    seed: str,
    screen_config: str,
    tracking_config: str,
    base: dsl.Input[dsl.Model],
    shortlist: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Draw, judge, relax and judge again until enough crystals convince every judge."""
    from crystalforge.stages.component import execute

    execute(
        "screen",
        workspace,
        sections={"seed": seed, "screen": screen_config, "tracking": tracking_config},
        inputs={"model": base.path},
        outputs=shortlist.path,
        metadata=[shortlist.metadata, metrics.metadata],
        files={"report.html": report.path},
    )
