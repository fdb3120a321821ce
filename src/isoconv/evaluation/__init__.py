"""Trained networks on test images that turn: measured, compared, and put to use."""

from isoconv.evaluation.comparison import compare as compare
from isoconv.evaluation.comparison import labels_of as labels_of
from isoconv.evaluation.measuring import evaluate as evaluate
from isoconv.evaluation.measuring import measure as measure
from isoconv.evaluation.measuring import multiply_adds as multiply_adds
from isoconv.evaluation.prediction import Predictor as Predictor
from isoconv.evaluation.prediction import predict as predict
from isoconv.evaluation.results import load_predictions as load_predictions
from isoconv.evaluation.results import results_by as results_by

__all__ = [
    "Predictor",
    "compare",
    "evaluate",
    "labels_of",
    "load_predictions",
    "measure",
    "multiply_adds",
    "predict",
    "results_by",
]
