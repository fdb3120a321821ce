"""Pictures of evaluated runs, saved as PNG: scores against the angle, kernels, feature maps of an image that turns.

Each function returns a matplotlib figure of its own: no display, no global state.
"""

from isoconv.figures.clinical import clinical_curves as clinical_curves
from isoconv.figures.look import save as save
from isoconv.figures.maps import feature_maps as feature_maps
from isoconv.figures.maps import first_stage as first_stage
from isoconv.figures.maps import kernels as kernels
from isoconv.figures.rotation import rotation_curve as rotation_curve
from isoconv.figures.rotation import save_all as save_all
from isoconv.figures.rotation import save_comparison as save_comparison
from isoconv.figures.saliency import saliency_maps as saliency_maps
from isoconv.figures.speed import speed_ratios as speed_ratios

__all__ = [
    "clinical_curves",
    "feature_maps",
    "first_stage",
    "kernels",
    "rotation_curve",
    "saliency_maps",
    "save",
    "save_all",
    "save_comparison",
    "speed_ratios",
]
