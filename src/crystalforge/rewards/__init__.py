"""What is wanted of a crystal."""

from crystalforge.rewards.config import RewardConfig
from crystalforge.rewards.factory import build, parse
from crystalforge.rewards.protocol import Reward, RewardUnavailable, RewardVersion, Scores, Status

__all__ = [
    "Reward",
    "RewardConfig",
    "RewardUnavailable",
    "RewardVersion",
    "Scores",
    "Status",
    "build",
    "parse",
]
