"""From a data set and the names of features to scores and a report.

record = evaluate(dataset, "sim01", "shared", [FeatureSet.parse("veca"), FeatureSet.parse("pixels")], out="out/study")
"""

from .features import FeatureSet
from .run import EvaluationSettings, evaluate, run_evaluation

__all__ = ["EvaluationSettings", "FeatureSet", "evaluate", "run_evaluation"]
