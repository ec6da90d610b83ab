"""Pipeline steps: one per stage. A body calls its stage and nothing else, so the laptop and the cluster agree.

Parameters ending in `_config` are sections of params.yaml; with the input artifacts they make the step's cache key.
`workspace` is a folder that outlives a failed attempt (a volume on a cluster): there an interrupted step goes on.
"""

from components.evaluate import evaluate
from components.finetune import finetune
from components.ingest import ingest
from components.pretrain import pretrain
from components.register import register

__all__ = ["evaluate", "finetune", "ingest", "pretrain", "register"]
