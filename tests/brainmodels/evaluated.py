"""One evaluation of a simulated subject, and one of made responses, which tests of several files look at."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

from brainmodels.data.simulated import simulate
from brainmodels.evaluation import EvaluationSettings, FeatureSet, evaluate
from tests.brainmodels.made import made_dataset


@functools.cache
def simulated_evaluation():
    """Ridge on grid features and on pixels, their controls and the planted signal."""
    return evaluation_of(simulate("tiny", n_subjects=1), ["grid", "pixels"], resamples=200, curve=(60,))


def evaluation_of(dataset, words, **settings):
    """`evaluate` on sets of features by their words, with features in a folder that does not stay."""
    with tempfile.TemporaryDirectory() as folder:
        options = EvaluationSettings(features=tuple(words), out=Path(folder), progress=False, **settings)
        return evaluate(dataset, [FeatureSet.parse(word) for word in words], options)


def made_subject(num_images=45, repeats=2, **changes):
    """30 train and 15 test images; `changes` are of the subject."""
    dataset = made_dataset(num_images, repeats)
    return dataset.with_subject(replace(dataset.subject("subj01"), **changes))
