"""Which layers of a network break its symmetry."""

from isoconv.diagnosis.examination import doctor as doctor
from isoconv.diagnosis.result import Diagnosis as Diagnosis
from isoconv.diagnosis.result import Finding as Finding
from isoconv.diagnosis.result import LayerDiagnosis as LayerDiagnosis

__all__ = ["Diagnosis", "Finding", "LayerDiagnosis", "doctor"]
