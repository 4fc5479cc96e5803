"""Scores of one subject: linear models, trained models beside them, controls, and pictures of what is decoded.

evaluation = evaluate(dataset, [FeatureSet.parse("veca")], EvaluationSettings(out="out/study"))
print(evaluation.encoded[0].score("nr2"))
"""

from .run import Evaluation, EvaluationSettings, evaluate
from .variability import trial_variance

__all__ = ["Evaluation", "EvaluationSettings", "evaluate", "trial_variance"]
