"""Studies: many trainings, their state, and how they are run."""

from isoconv.study.cell import Outcome as Outcome
from isoconv.study.cell import run_cell as run_cell
from isoconv.study.plan import Study as Study
from isoconv.study.plan import load_study as load_study
from isoconv.study.running import run_study as run_study
from isoconv.study.status import study_status as study_status

__all__ = ["Outcome", "Study", "load_study", "run_cell", "run_study", "study_status"]
