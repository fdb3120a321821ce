"""Curves of a classifier: ROC, precision and recall, reliability, net benefit; upright and turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from isoconv.figures.look import lines, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["clinical_curves"]

_CLASSES = 6  # that are told apart by colour


class _Panel(NamedTuple):
    key: str
    x: str
    y: str
    x_label: str
    y_label: str


_PANELS = (
    _Panel("roc", "false_positive_rate", "sensitivity", "1 - specificity", "sensitivity"),
    _Panel("precision_recall", "recall", "precision", "sensitivity (recall)", "PPV (precision)"),
    _Panel("reliability", "probability", "frequency", "predicted probability", "frequency of the label"),
    _Panel("decision", "threshold", "net_benefit", "threshold probability", "net benefit per image"),
)


def clinical_curves(clinical: Mapping[str, Any], title: str) -> Figure:
    """The ``curves`` of an evaluation's entry ``clinical``: solid upright, dashed over all rotations.

    Of more than six classes the first six are drawn; of two the second alone, which the first mirrors. Grey: chance,
    perfect calibration, and calling every image of the first class drawn positive, or none.

    Raises:
        ValueError: no class has curves.
    """
    found = {label: each["curves"] for label, each in clinical["classes"].items() if each["curves"]["upright"]}
    if not found:
        raise ValueError("no class has images with it and without it; there are no curves")
    found = dict(list(found.items())[-1:] if len(clinical["classes"]) == 2 else list(found.items())[:_CLASSES])
    with style():
        figure = new_figure(9.6, 8.0)
        for ax, panel in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            _references(ax, panel.key, next(iter(found.values()))["upright"])
            for look, (label, curves) in zip(lines(len(found)), found.items(), strict=True):
                for place, dash in {"upright": "-", "rotated": "--"}.items():
                    curve = curves[place][panel.key]
                    marker = "o" if panel.key == "reliability" else None
                    ax.plot(curve[panel.x], curve[panel.y], color=look.colour, ls=dash, marker=marker, ms=3, lw=1.6,
                            label=f"{label}, {place}")  # fmt: skip
            ax.set(xlabel=panel.x_label, ylabel=panel.y_label, xlim=(-0.02, 1.02))
        figure.suptitle(title)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure


def _references(ax: Any, key: str, upright: Mapping[str, Any]) -> None:
    grey = {"color": "#999999", "lw": 1}
    if key in ("roc", "reliability"):
        ax.plot([0, 1], [0, 1], **grey)
    elif key == "precision_recall":
        ax.axhline(upright[key]["prevalence"], **grey)
        ax.set_ylim(-0.02, 1.02)
    else:
        ax.plot(upright[key]["threshold"], upright[key]["all"], **grey)
        ax.axhline(0, **grey)
        highest = max(upright[key]["net_benefit"])
        ax.set_ylim(-max(0.1, highest) / 2, max(0.1, highest) * 1.2)
