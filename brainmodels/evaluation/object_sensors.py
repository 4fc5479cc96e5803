"""Which sensors and which times the model of an evaluation of objects uses.

sensors = study_sensors(case, model)
sensors.occlusion["region"].drop("occipital").difference.value
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .object_case import ObjectCase
from .sensors import BY, Occlusion, TimeCourse, occlude, sliding_accuracy

__all__ = ["Sensors", "study_sensors"]


@dataclass(frozen=True)
class Sensors:
    """What the model loses without parts of the EEG, and when the class can be read.

    Attributes:
        occlusion: Drops by "region", "window" and "channel".
        times: Accuracy over time of a linear classifier in each stream.
    """

    occlusion: Mapping[str, Occlusion]
    times: Sequence[TimeCourse]

    def to_json(self) -> dict[str, Any]:
        return {
            "occlusion": {by: table.to_json() for by, table in self.occlusion.items()},
            "times": [course.to_json() for course in self.times],
        }


def study_sensors(case: ObjectCase, model: Any) -> Sensors:
    """Occlusion of the model by regions, windows and channels, and sliding accuracy of a linear classifier.

    Args:
        case: The trials. Means over the presentations of the test objects are occluded.
        model: A fitted model.
    """
    labels = case.labels("class", case.test.ids)
    colors = case.labels("color", case.test.ids) if case.num_colors else None
    settings = case.settings
    options = {"colors": colors, "resamples": settings.resamples, "seed": settings.seed}
    occlusion = {by: occlude(model, case.test, labels, by=by, **options) for by in BY}
    known, options = case.labels("class", case.train.ids), {"resamples": settings.resamples, "seed": settings.seed}
    times = [
        sliding_accuracy(case.train, known, case.test, labels, stream=name, **options) for name in case.test.streams
    ]
    return Sensors(occlusion, times)
