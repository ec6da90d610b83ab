"""The image that every component runs in; pin it by digest for a cluster (CRYSTALFORGE_TRAIN_IMAGE)."""

import os

TRAIN_IMAGE = os.environ.get("CRYSTALFORGE_TRAIN_IMAGE", "crystalforge/train:0.1.0")
