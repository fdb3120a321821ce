"""Run directories: what one training leaves behind, and what it is made of."""

from isoconv.runs.config import TrainConfig as TrainConfig
from isoconv.runs.device import resolve_device as resolve_device
from isoconv.runs.environment import environment as environment
from isoconv.runs.network import OnImages as OnImages
from isoconv.runs.network import check_state as check_state
from isoconv.runs.rundir import RunDir as RunDir
from isoconv.runs.writing import atomic_write as atomic_write
from isoconv.runs.writing import write_json as write_json

__all__ = [
    "OnImages",
    "RunDir",
    "TrainConfig",
    "atomic_write",
    "check_state",
    "environment",
    "resolve_device",
    "write_json",
]
