"""Source of crystals -> shares of the work of tokenising it."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def ingest_plan(workspace: str, data_config: str, data_version: str, parts: int) -> list[str]:
    """Open (and download) the source and share its shards out. `data_version` only takes part in the cache key."""
    from crystalforge.stages.ingest_plan import ingest_plan

    return ingest_plan(workspace, data_config, parts)
