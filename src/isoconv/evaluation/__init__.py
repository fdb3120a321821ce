"""Trained networks on test images that turn: measured, compared, and put to use."""

from isoconv.evaluation.comparison import compare as compare
from isoconv.evaluation.measuring import evaluate as evaluate
from isoconv.evaluation.measuring import measure as measure
from isoconv.evaluation.measuring import multiply_adds as multiply_adds
from isoconv.evaluation.measuring import position_logits as position_logits
from isoconv.evaluation.measuring import with_progress as with_progress
from isoconv.evaluation.prediction import predict as predict

__all__ = ["compare", "evaluate", "measure", "multiply_adds", "position_logits", "predict", "with_progress"]
