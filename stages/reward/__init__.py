"""Rewards: built-in scorers, the user's, per sample or per group; with deadlines, and CPU-bound
ones off the event loop."""

from stages.reward.reward import RewardStage, build_reward
from stages.reward.teacher import Lease, TeacherStage

__all__ = ["Lease", "RewardStage", "TeacherStage", "build_reward"]
