"""Metrics that say what they mean: every score carries its chance, interval, ceiling and conditions.

Numbers come from the modules (`encoding.voxel_r`, `retrieval.two_way`, ...); `Score` is what a report prints.
"""

from . import (
    ceilings,
    controls,
    eeg,
    encoding,
    head,
    image,
    kid,
    nway,
    protocols,
    published,
    retrieval,
    shape3d,
    slots,
    statistics,
    sync,
    text,
)
from .record import Interval, Metric, Score, not_available
from .registry import list_metrics, metric, register
from .statistics import score_images

__all__ = [
    "Interval",
    "Metric",
    "Score",
    "ceilings",
    "controls",
    "eeg",
    "encoding",
    "head",
    "image",
    "kid",
    "list_metrics",
    "metric",
    "not_available",
    "nway",
    "protocols",
    "published",
    "register",
    "retrieval",
    "score_images",
    "shape3d",
    "slots",
    "statistics",
    "sync",
    "text",
]
