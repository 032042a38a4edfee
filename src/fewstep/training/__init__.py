"""Training: one loop for every recipe, checkpoints that survive a crash, and a log."""

from fewstep.training.loop import Outcome, TrainingOptions, train

__all__ = ["Outcome", "TrainingOptions", "train"]
