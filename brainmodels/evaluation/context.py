"""Models adapted to a subject from few images, beside ridge on the same images: scores against their number.

curve, few, adapted = context_curve(models, dataset, subject, split, settings)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..data import BrainDataset, Split, Subject
from ..data.subject_splits import context_split
from ..errors import BrainDataError
from .encoding import Study, judge
from .models import SAME_TOKENS, TokenSpace
from .opened import OpenedModel
from .run import EvaluationSettings, feature_cache, study_of

__all__ = ["adapt_models", "context_curve"]


def adapt_models(
    models: Sequence[OpenedModel],
    dataset: BrainDataset,
    subject: Subject,
    split: Split,
    study: Study,
    settings: EvaluationSettings,
) -> list[OpenedModel]:
    """The models, each adapted to the train trials of a subject that it does not know.

    Args:
        models: Trained models.
        dataset, subject: The data of the subject.
        split: Split with the few train images.
        study: Responses of this split.
        settings: Device and folder of features.

    Raises:
        BrainDataError: A model neither knows the subject nor can be adapted to it.
    """
    adapted = []
    for item in models:
        if subject.id in item.model.subjects_:
            adapted.append(item)
            continue
        if not item.model.adapts:
            raise BrainDataError(
                f"expected {item.name} to know {subject.id} or to adapt to a new subject, got a model of "
                f"{', '.join(item.model.subjects_)} that does neither"
            )
        cache = feature_cache(item.tokens_of, dataset, study, settings)
        trials = dataset.pairs(subject.id, split, "train", "none", study.train.transform)
        model = item.model.adapt(cache, trials, subject=subject.id, alignment="off", progress=settings.progress)
        run = {**item.run, "split": split.name, "split_hash": split.hash}
        adapted.append(OpenedModel(item.name, model, item.tokens_of, run))
    return adapted


def context_curve(
    models: Sequence[OpenedModel],
    dataset: BrainDataset,
    subject: Subject,
    split: Split,
    settings: EvaluationSettings,
) -> tuple[dict[str, Any], Split, list[OpenedModel]]:
    """Scores of every model and of ridge on its tokens against the number of train images, one value a draw.

    The noise ceiling, and with it the voxels that count, comes from all train images of `split`, so that all points
    are of the same voxels.

    Returns:
        {"metric": name, "points": {model: {number of images: [value of each draw]}}}, ready for JSON; and the split and
        the adapted models of the largest number of images, first draw.
    """
    points: dict[str, dict[str, list[float]]] = {}
    name = ""
    for count in settings.context:
        for draw in range(settings.draws):
            few = context_split(dataset, subject.id, split, count, settings.seed, draw, settings.draws)
            plain = replace(settings, progress=False)
            study = study_of(dataset, subject, few, plain, repeats=split)
            adapted = adapt_models(models, dataset, subject, few, study, plain)
            if count == max(settings.context) and draw == 0:
                largest = few, adapted
            for item in adapted:
                cache = feature_cache(item.tokens_of, dataset, study, plain)
                tokens = [item.model.tokens(cache, pairs.image_ids) for pairs in (study.train, study.test)]
                rows = {f"{SAME_TOKENS} as {item.name}": TokenSpace.of(study, *tokens).predicted}
                if item.encodes:
                    told = item.model.predict(cache, image_ids=study.test.image_ids, subject=item.subject_in(study))
                    rows[item.name] = np.where(np.isnan(told), np.nan_to_num(study.measured_train.mean(0)), told)
                for model, predicted in rows.items():
                    encoded = judge(study, predicted, model, item.tokens_of.name)
                    score = encoded.score("nr2") or encoded.score("voxel_r")
                    if score is None or score.value is None:
                        raise BrainDataError(f"expected a score of {model}, got none")
                    name = score.metric.name
                    points.setdefault(model, {}).setdefault(str(count), []).append(float(score.value))
    return {"metric": name, "draws": settings.draws, "points": points}, largest[0], largest[1]
