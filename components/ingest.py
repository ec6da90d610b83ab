"""Crystals from any source -> token store."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def ingest(
    workspace: str,
    data_config: str,
    tracking_config: str,
    data_version: str,
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Tokenise a source of crystals. `data_version` (a DVC revision) only takes part in the cache key."""
    from crystalforge.stages.component import execute

    execute(
        "ingest",
        workspace,
        sections={"data": data_config, "tracking": tracking_config},
        outputs=dataset.path,
        metadata=[dataset.metadata, metrics.metadata],
    )
