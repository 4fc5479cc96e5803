"""From a data set and the names of features to scores and a report: what `veca brain evaluate` does.

settings = EvaluationSettings(data="prepared/subj01", features=("veca", "pixels"), out="out/study")
evaluation = run_evaluation(settings)  # writes out/study/report.html, record.json and voxels.npz
print(evaluation.encoded[0].score("nr2"))
"""

from ..evaluation import Evaluation, EvaluationSettings, evaluate
from ..evaluation.opened import open_models
from ..features.sets import FeatureSet
from ..report import write_report
from .opening import open_data

__all__ = ["run_evaluation"]


def run_evaluation(settings: EvaluationSettings) -> Evaluation:
    """Evaluate, and write record.json, report.html and the figures to `settings.out`.

    Raises:
        BrainDataError: data, features or alignment are not what they should be.
    """
    sets = [FeatureSet.parse(word) for word in settings.features]
    models = open_models(settings.models, sets, settings.device)
    dataset = open_data(settings.data, settings.seed, [settings.subject] if settings.subject else [])
    evaluation = evaluate(dataset, sets, settings, models)
    write_report(evaluation, settings.out)
    return evaluation
