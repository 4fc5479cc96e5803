"""Scores of one subject: linear models, trained models beside them, controls, and pictures of what is decoded.

evaluation = evaluate(dataset, [FeatureSet.parse("veca")], EvaluationSettings(out="out/study"))
print(evaluation.encoded[0].score("nr2"))
"""

from .epochs import EpochEvaluation, evaluate_epochs
from .run import Evaluation, evaluate
from .settings import EvaluationSettings
from .variability import trial_variance

__all__ = ["EpochEvaluation", "Evaluation", "EvaluationSettings", "evaluate", "evaluate_epochs", "trial_variance"]
