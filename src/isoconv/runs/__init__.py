"""Run directories: what one training leaves behind, and what it is made of."""

from typing import TYPE_CHECKING

from isoconv._late import import_late

if TYPE_CHECKING:
    from isoconv.runs.config import TrainConfig as TrainConfig
    from isoconv.runs.device import resolve_device as resolve_device
    from isoconv.runs.device import use_threads as use_threads
    from isoconv.runs.environment import environment as environment
    from isoconv.runs.network import OnImages as OnImages
    from isoconv.runs.network import check_state as check_state
    from isoconv.runs.rundir import RunDir as RunDir
    from isoconv.runs.writing import atomic_write as atomic_write
    from isoconv.runs.writing import settle as settle
    from isoconv.runs.writing import whole_folder as whole_folder
    from isoconv.runs.writing import write_json as write_json
    from isoconv.runs.writing import write_set as write_set
    from isoconv.runs.writing import writing as writing

__all__ = [
    "OnImages",
    "RunDir",
    "TrainConfig",
    "atomic_write",
    "check_state",
    "environment",
    "resolve_device",
    "settle",
    "use_threads",
    "whole_folder",
    "write_json",
    "write_set",
    "writing",
]

import_late(
    __name__,
    {
        "config": ("TrainConfig",),
        "device": ("resolve_device", "use_threads"),
        "environment": ("environment",),
        "network": (
            "OnImages",
            "check_state",
        ),
        "rundir": ("RunDir",),
        "writing": (
            "atomic_write",
            "settle",
            "whole_folder",
            "write_json",
            "write_set",
            "writing",
        ),
    },
)
