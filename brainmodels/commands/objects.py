"""From trained models of objects to a report: what `veca brain evaluate --models` does with models such as Neuro3D.

evaluations = run_object_evaluations(EvaluationSettings(models=(Path("out/neuro3d"),), out=Path("out/study3d")))
print(evaluations[0].first_line)
"""

from collections.abc import Sequence
from pathlib import Path

from ..data import Split
from ..data.object_study import ObjectStudy
from ..errors import check_choice
from ..evaluation import EvaluationSettings
from ..evaluation.checks import check_settings, refuse_changed
from ..evaluation.object_models import open_object_models
from ..evaluation.objects import ObjectEvaluation, ObjectSettings, evaluate_objects
from ..report.object_subjects import write_subjects
from ..report.objects import write_object_report
from .opening import data_of_study, open_objects

__all__ = ["object_lines", "run_object_evaluations"]

_OF_IMAGES = (
    "features",
    "pictures",
    "ablations",
    "context",
    "draws",
    "normalizer",
    "threshold",
    "check_alignment",
    "allow_duplicates",
    "curve",
)  # settings that studies of objects do not have


def run_object_evaluations(settings: EvaluationSettings) -> list[ObjectEvaluation]:
    """Evaluate models of objects, each on its subject: one subject in `settings.out`, several in folders below it.

    Without data, the models are evaluated on the data of their training. Several models of one subject share a page;
    controls and sensors are those of the first.

    Raises:
        BrainDataError: Data of images, a setting of studies of images, or a subject without a model.
        LeakageError: A model was trained on another split, or on test objects.
    """
    refuse_changed(settings, _OF_IMAGES, "models of objects, which do not have it")
    opened = open_object_models(settings.models, settings.device)
    names = settings.subject or tuple(opened)
    for name in names:
        check_choice("a subject of the models", name, tuple(opened))
    wanted = f"a study of objects, objects:PRESET or eeg3d:FOLDER, for {', '.join(_names(opened))}"
    models = [model for own in opened.values() for model in own.values()]
    word, seed = data_of_study(settings, models, "objects", wanted)
    found = []
    study: ObjectStudy | None = None
    for name in names:
        if study is None or name not in study.subjects:
            study = open_objects(word, seed, names if word.startswith("objects") else (name,))
        check_settings("none", settings.published, hasattr(study, "truth"))
        out = Path(settings.out) / name if len(names) > 1 else Path(settings.out)
        options = ObjectSettings(
            data=word,
            out=out,
            published=settings.published,
            shuffles=settings.shuffles,
            resamples=settings.resamples,
            seed=settings.seed,
            progress=settings.progress,
        )
        split: str | Split | None = settings.split or next(iter(opened[name].values())).meta_.get("run", {}).get(
            "split"
        )
        found.append(evaluate_objects(study, opened[name], options, name, split))
        write_object_report(found[-1], out)
    if len(found) > 1:
        write_subjects(found, Path(settings.out))
    return found


def object_lines(evaluation: ObjectEvaluation) -> list[str]:
    """The first line of the report, then a line for each row of classes and colours, and of clouds."""
    lines = [evaluation.first_line]
    for table, label in (("classes", "class"), ("colors", "colour")):
        lines += [f"{row.name}, {label}: {row.scores[0]}" for row in evaluation.tables[table]]
    return lines + [f"{row.name}: {row.scores[0]}" for row in evaluation.tables["clouds"]]


def _names(opened: dict) -> Sequence[str]:
    return list(dict.fromkeys(name for models in opened.values() for name in models))
