"""Training one network on one data set."""

from isoconv.runs.config import TrainConfig as TrainConfig
from isoconv.training.learner import Learner as Learner
from isoconv.training.loop import build as build
from isoconv.training.loop import is_first_process as is_first_process
from isoconv.training.loop import resolved as resolved
from isoconv.training.loop import train as train

__all__ = ["Learner", "TrainConfig", "build", "is_first_process", "resolved", "train"]
