"""Pipeline steps: one per stage. A body calls its stage and nothing else, so the laptop and the cluster agree.

Parameters ending in `_config` are sections of params.yaml as JSON text, and so is the seed (the engine's own structures
have no null and make every number a float); with the input artifacts they are the step's cache key. `workspace` is a
folder that outlives a failed attempt (a volume on a cluster): there an interrupted step goes on. `trainjob_config`: the
size of the TrainJob that does the work, or nothing for the step's own pod. `data_hash`: what `ingest` said of its data
set, which the one that arrives must have (empty: any).
"""

from components.archive import archive
from components.compare import compare
from components.evaluate import evaluate
from components.fetch import fetch
from components.finetune import finetune
from components.ingest import ingest
from components.ingest_part import ingest_part
from components.ingest_plan import ingest_plan
from components.pretrain import pretrain
from components.register import register
from components.screen import screen
from components.train_predictor import train_predictor

__all__ = [
    "archive",
    "compare",
    "evaluate",
    "fetch",
    "finetune",
    "ingest",
    "ingest_part",
    "ingest_plan",
    "pretrain",
    "register",
    "screen",
    "train_predictor",
]
