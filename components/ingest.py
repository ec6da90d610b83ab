"""Crystals from any source -> token store."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def ingest(
    workspace: str,
    data_config: str,
    tracking_config: str,
    data_version: str,
    parts: list[str],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    data_hash: dsl.OutputPath(str),  # pyright: ignore[reportInvalidTypeForm]  # the engine's way to say it
):
    """Lay the shards of all `parts` end to end, split and store; what no part has tokenised is tokenised now.

    data_version: DVC's hash of the source; empty where DVC does not track it.
    """
    from crystalforge.stages.component import execute

    execute(
        "ingest",
        workspace,
        sections={"data": data_config, "tracking": tracking_config},
        options={"data_version": data_version},
        outputs=dataset.path,
        metadata=[dataset.metadata, metrics.metadata],
        content=data_hash,
    )
