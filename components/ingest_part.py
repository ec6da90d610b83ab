"""A share of the work -> tokenised shards in the workspace."""

from kfp import dsl

from components.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, packages_to_install=[], install_kfp_package=False)
def ingest_part(workspace: str, data_config: str, data_version: str, share: str) -> str:
    """Tokenise a share of the source's shards. `data_version` only takes part in the cache key."""
    from crystalforge.stages.ingest_part import ingest_part

    return ingest_part(workspace, data_config, share)
