"""From a data set and the names of features to scores and a report.

settings = EvaluationSettings(data="prepared/subj01", features=("veca", "pixels"), out="out/study")
evaluation = run_evaluation(settings)  # writes out/study/report.html, record.json and voxels.npz
print(evaluation.encoded[0].score("nr2"))
"""

from ..features.sets import FeatureSet
from .run import Evaluation, EvaluationSettings, evaluate, run_evaluation
from .variability import trial_variance

__all__ = ["Evaluation", "EvaluationSettings", "FeatureSet", "evaluate", "run_evaluation", "trial_variance"]
