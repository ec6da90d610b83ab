"""What is wanted of a crystal."""

from crystalforge.rewards.protocol import Reward, RewardUnavailable, RewardVersion, Scores, Status

__all__ = ["Reward", "RewardUnavailable", "RewardVersion", "Scores", "Status"]
