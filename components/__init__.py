"""Pipeline steps: one per stage. A body calls its stage and nothing else, so the laptop and the cluster agree.

Parameters ending in `_config` are sections of params.yaml as JSON text (the engine's own structures have no null and
make every number a float); with the input artifacts they are the step's cache key. `workspace` is a folder that
outlives a failed attempt (a volume on a cluster): there an interrupted step goes on.
"""

from components.evaluate import evaluate
from components.finetune import finetune
from components.ingest import ingest
from components.pretrain import pretrain
from components.register import register

__all__ = ["evaluate", "finetune", "ingest", "pretrain", "register"]
