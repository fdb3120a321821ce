"""Conversion of networks: to isotropic layers, back to plain ones, and from checkpoints of the official code."""

from isoconv.convert.conversion import convert as convert
from isoconv.convert.official import load_official_checkpoint as load_official_checkpoint
from isoconv.convert.plain import fuse as fuse
from isoconv.convert.report import ConversionReport as ConversionReport
from isoconv.convert.report import conversion_report as conversion_report

__all__ = ["ConversionReport", "conversion_report", "convert", "fuse", "load_official_checkpoint"]
