"""Training one network on one data set."""

from isoconv.runs.config import TrainConfig as TrainConfig
from isoconv.training.loop import Classifier as Classifier
from isoconv.training.loop import build as build
from isoconv.training.loop import fit as fit
from isoconv.training.loop import is_first_process as is_first_process
from isoconv.training.loop import loss_fn as loss_fn
from isoconv.training.loop import train as train

__all__ = ["Classifier", "TrainConfig", "build", "fit", "is_first_process", "loss_fn", "train"]
