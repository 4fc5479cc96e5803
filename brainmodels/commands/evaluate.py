"""From data and the names of features to scores and a report: what `veca brain evaluate` does.

settings = EvaluationSettings(data="prepared/subj01", features=("veca", "pixels"), out="out/study")
evaluation = run_evaluation(settings)  # writes out/study/report.html, record.json and voxels.npz
print(evaluation.encoded[0].score("nr2"))
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..data import BrainDataset
from ..errors import BrainDataError
from ..evaluation import Evaluation, EvaluationSettings, evaluate
from ..evaluation.checks import refuse_changed
from ..evaluation.context import context_curves
from ..evaluation.epochs import EpochEvaluation
from ..evaluation.heads import HeadEvaluation
from ..evaluation.kinds import kind_of_models
from ..evaluation.objects import ObjectEvaluation
from ..evaluation.opened import OpenedModel, open_models
from ..features.sets import FeatureSet
from ..report import write_report
from ..report.group import write_group
from ..systems import SYSTEMS, system
from .clips import clip_lines, run_clip_evaluations
from .epochs import OF_EPOCHS, epoch_lines, epochs_are_chosen, run_epoch_evaluations
from .objects import object_lines, run_object_evaluations
from .opening import choose_split, kind_of_data, open_data

__all__ = ["AnyEvaluation", "run_evaluation", "run_evaluations", "score_lines"]

AnyEvaluation = Evaluation | EpochEvaluation | ObjectEvaluation | HeadEvaluation
_WHOSE = "responses without times; they are of epochs of EEG and MEG"


def run_evaluation(settings: EvaluationSettings) -> AnyEvaluation:
    """Evaluate one subject, and write record.json, report.html and the figures to `settings.out`.

    Raises:
        BrainDataError: Data, features or alignment are not what they should be, or several subjects are asked for.
    """
    if len(settings.subject) > 1:
        raise BrainDataError(f"expected one subject, got {', '.join(settings.subject)}; see run_evaluations")
    return run_evaluations(settings)[0]


def run_evaluations(settings: EvaluationSettings) -> Sequence[AnyEvaluation]:
    """Evaluate every subject of the settings: one in `settings.out`, several in folders of their names below it.

    Several subjects have a page of the group as well, report.html in `settings.out`.

    The models decide the kind of study. Models of objects, such as Neuro3D, are evaluated by `run_object_evaluations`,
    and talking heads by `run_clip_evaluations`. Epochs of EEG and MEG are evaluated by `run_epoch_evaluations`.

    Raises:
        BrainDataError: Data, features, models or alignment are not what they should be, or do not belong together.
    """
    others = {"objects": run_object_evaluations, "clips": run_clip_evaluations}
    if (kind := kind_of_models(settings.models)) in others:
        refuse_changed(settings, OF_EPOCHS, _WHOSE)
        return others[kind](settings)
    if (kind := kind_of_data(settings.data)) in others:
        models = ", ".join(map(str, settings.models)) or "no model"
        name = next(name for name in SYSTEMS if system(name).study == kind)
        raise BrainDataError(
            f"expected models of {kind}, such as {name}, for {settings.data[0]}, got {models}; train one by `veca "
            f"brain train --model {name} --data {settings.data[0]}`"
        )
    sets = FeatureSet.parse_all(settings.features)
    models = open_models(settings.models, sets, settings.device)
    dataset = open_data(settings.data, settings.seed, settings.subject, everyone=len(settings.subject) > 1)
    names = settings.subject or (next(iter(dataset.subjects)),)
    if epochs_are_chosen(dataset, names):
        return run_epoch_evaluations(settings, dataset, sets)
    refuse_changed(settings, OF_EPOCHS, _WHOSE)
    several = len(names) > 1
    found = []
    for name in names:
        out = Path(settings.out) / name if several else settings.out
        one = replace(settings, subject=(name,), out=out)
        found.append(
            _with_context(dataset, sets, one, models) if settings.context else evaluate(dataset, sets, one, models)
        )
        write_report(found[-1], out)
    if several:
        write_group(found, settings.out)
    return found


def _with_context(
    dataset: BrainDataset, sets: list[FeatureSet], settings: EvaluationSettings, models: list[OpenedModel]
) -> Evaluation:
    """The evaluation with the largest number of context images, and the curves over all numbers in its record."""
    subject = dataset.subject(settings.subject[0])
    whole = choose_split(dataset, settings.split)
    curves, few, adapted = context_curves(models, dataset, subject, whole, settings)
    dataset = dataset.with_splits(few)
    evaluation = evaluate(dataset, sets, replace(settings, split=few.name), adapted, whole)
    evaluation.record["context"] = curves
    return evaluation


def score_lines(evaluation: AnyEvaluation) -> list[str]:
    """A line for each model and set of features, in both directions, and for each number of context images."""
    if isinstance(evaluation, ObjectEvaluation):
        return object_lines(evaluation)
    if isinstance(evaluation, HeadEvaluation):
        return clip_lines(evaluation)
    if isinstance(evaluation, EpochEvaluation):
        return epoch_lines(evaluation)
    lines = [f"{x.model}, {x.features}: {x.score('nr2') or x.scores[0]}" for x in evaluation.encoded]
    lines += [f"decoded into {x.features}: {x.scores[0]}" for x in evaluation.decoded]
    rows = [row for model in evaluation.models for row in model.decoded]
    lines += [f"{x.scores[0].decoder}, found in {x.features}: {x.scores[0]}" for x in rows]
    for item in evaluation.generated:
        for row in (item.rows[0], item.row("only_z"), item.row("true latents")):
            told = "; ".join(str(x) for x in row.scores if x.metric.name.startswith(("caption_label", "two_way[grid]")))
            lines.append(f"{item.opened.name}, {row.name}: {told}")
    for curve in evaluation.record.get("context", {"curves": []})["curves"]:
        for row, points in curve["points"].items():
            told = ", ".join(f"{count} images {sum(values) / len(values):.3f}" for count, values in points.items())
            lines.append(f"{row}, {curve['metric']} against context: {told}")
    return lines
