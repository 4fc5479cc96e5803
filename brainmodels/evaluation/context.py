"""Models adapted to a subject from few images, beside simpler methods on the same images: scores against their number.

curves, few, adapted = context_curves(models, dataset, subject, split, settings)
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..data import BrainDataset, Split, Subject
from ..data.subject_splits import context_split
from ..errors import BrainDataError
from ..features import FeatureCache
from ..metrics import Score
from ..metrics.retrieval import full_gallery, similarity
from .checks import FOLDS
from .encoding import Study, judge
from .models import SAME_TOKENS, filled, reference_name
from .opened import OpenedModel
from .run import feature_cache, study_of
from .settings import EvaluationSettings
from .token_space import TokenSpace

__all__ = ["adapt_models", "context_curves"]

_RESAMPLES = 2  # a point is a value alone: draws of the context tell how far it is certain


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
        BrainDataError: A model neither knows the subject nor can be adapted to it, or needs more images.
        LeakageError: A model was trained on another split, or on test images.
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
        item.check_origin(split)
        cache = feature_cache(item.tokens_of, dataset, study, settings)
        trials = dataset.pairs(subject.id, split, "train", "none", study.train.transform)
        model = item.model.adapt(cache, trials, subject=subject.id, alignment="off", progress=settings.progress)
        run = {**item.run, "split": split.name, "split_hash": split.hash}
        adapted.append(OpenedModel(item.name, model, item.tokens_of, run))
    for item in adapted:
        item.check(study)
    return adapted


def context_curves(
    models: Sequence[OpenedModel],
    dataset: BrainDataset,
    subject: Subject,
    split: Split,
    settings: EvaluationSettings,
) -> tuple[dict[str, Any], Split, list[OpenedModel]]:
    """Scores against the number of train images: of models, of what they name beside themselves, of ridge on tokens.

    A model that predicts responses has the share of the explainable variance, or the median correlation of a voxel
    where there is no noise ceiling. A model that only decodes has top-1 among the test images. The noise ceiling, and
    with it the voxels that count, comes from all train images of `split`, so that all points are of the same voxels.

    Args:
        models: Trained models.
        dataset, subject: The data of the subject.
        split: Split whose train images the context is drawn from.
        settings: Numbers of images, draws, seed, device and folder of features.

    Returns:
        {"draws": number, "curves": [{"metric": name, "chance": value, "points": {row: {number of images: [value of each
        draw]}}}]}, ready for JSON; and the split and the adapted models of the largest number of images, first draw.

    Raises:
        BrainDataError: There are fewer images than a model or the folds of ridge need.
        LeakageError: A model was trained on another split, or on test images.
    """
    curves: dict[str, dict[str, Any]] = {}
    plain, largest = replace(settings, progress=False, resamples=_RESAMPLES), max(settings.context)
    first: tuple[Split, list[OpenedModel]] | None = None
    for count in settings.context:
        for draw in range(settings.draws):
            few = context_split(dataset, subject.id, split, count, settings.seed, draw, settings.draws)
            study = study_of(dataset, subject, few, plain, repeats=split)
            adapted = adapt_models(models, dataset, subject, few, study, plain)
            if count < FOLDS:
                raise BrainDataError(
                    f"expected a context of {FOLDS} images or more, one for each fold of the ridge beside the models, "
                    f"got {count}"
                )
            if count == largest and first is None:
                first = few, adapted
            for item in adapted:
                cache = feature_cache(item.tokens_of, dataset, study, plain)
                for row, score in _scores(item, study, cache):
                    curve = {"metric": score.metric.name, "chance": score.chance, "points": {}}
                    points = curves.setdefault(score.metric.name, curve)["points"].setdefault(row, {})
                    points.setdefault(str(count), []).append(score.value)
    assert first is not None  # the largest number is among the numbers
    return {"draws": settings.draws, "curves": list(curves.values())}, *first


def _scores(item: OpenedModel, study: Study, cache: FeatureCache) -> Iterator[tuple[str, Score]]:
    """Rows of a curve and their scores: the model, what it names beside itself, and ridge on its tokens."""
    model, subject, ids = item.model, item.subject_in(study), study.test.image_ids
    train, test = (model.tokens(cache, pairs.image_ids) for pairs in (study.train, study.test))
    space, ridge = TokenSpace.of(study, train, test, kinds={}), f"{SAME_TOKENS} as {item.name}"
    if item.encodes:
        told = {item.name: model.predict(cache, image_ids=ids, subject=subject)}
        references = model.reference_predictions(cache, image_ids=ids, subject=subject)
        told |= {reference_name(item, name): guess for name, guess in references.items()}
        told[ridge] = space.predicted
        for row, predicted in told.items():
            yield row, _encoding_score(study, filled(predicted, study), row, item.tokens_of.name)
        return
    read = {item.name: model.decode(study.test, subject=subject)}
    read |= {
        reference_name(item, name): guess
        for name, guess in model.reference_decodings(study.test, subject=subject).items()
    }
    guesses = {row: model.tokens(guess) for row, guess in read.items()} | {ridge: space.decode(study, study.measured)}
    for row, guess in guesses.items():
        yield row, full_gallery(similarity(guess, space.test), (1,), study.resamples, study.seed)[0]


def _encoding_score(study: Study, predicted: np.ndarray, row: str, features: str) -> Score:
    """The score of a point; a prediction without one is a `BrainDataError`."""
    encoded = judge(study, predicted, row, features)
    score = encoded.score("nr2") or encoded.score("voxel_r")
    if score is None or score.value is None:
        raise BrainDataError(f"expected a score of {row}, got none")
    return score
