"""Metrics of brain encoding and decoding. Each score carries its chance level, interval, noise ceiling and conditions.

    r = encoding.voxel_r(measured, predicted)    # (voxels,) plain numbers
    metric("two_way[grid]").chance               # 0.5
    score = score_images(metric("two_way[grid]"), values, split="shared1000")
    print(score)  # two_way[grid] ↑ 0.901 [0.886, 0.916], chance 0.500, n 60 images, split shared1000/?, seed 0

Functions such as `encoding.voxel_r` and `retrieval.two_way` return plain numbers. Functions whose names end in
`_scores` return `Score` records, which a report prints.
"""

from . import (
    ceilings,
    cloud_judge,
    cloud_sets,
    controls,
    eeg,
    encoding,
    head,
    image,
    kid,
    labels,
    nway,
    protocols,
    published,
    retrieval,
    shape3d,
    significance,
    slots,
    statistics,
    subjects,
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
    "cloud_judge",
    "cloud_sets",
    "controls",
    "eeg",
    "encoding",
    "head",
    "image",
    "kid",
    "labels",
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
    "significance",
    "slots",
    "statistics",
    "subjects",
    "sync",
    "text",
]
