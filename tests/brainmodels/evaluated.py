"""Evaluations of a simulated subject, with models and without, and one of made responses, for several test files."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from brainmodels.data import fit_normalizer
from brainmodels.drawing import reader
from brainmodels.evaluation import EvaluationSettings, evaluate
from brainmodels.evaluation.opened import OpenedModel
from brainmodels.features import FeatureCache
from brainmodels.features.sets import FeatureSet
from brainmodels.simulated import simulate
from brainmodels.systems import neuroflow, synbrain
from brainmodels.systems.neuroflow import FlowSize, NeuroFlow
from brainmodels.systems.synbrain import MapperSize, SynBrain
from brainmodels.training.recipe import TrainingStage
from tests.brainmodels.made import made_dataset


@functools.cache
def simulated_evaluation():
    """Ridge on grid features and on pixels, their controls and the planted signal."""
    return evaluation_of(simulate("tiny", n_subjects=1), ["grid", "pixels"], resamples=200, curve=(60,), shuffles=6)


@functools.cache
def trained_models():
    """(data set, NeuroFlow, SynBrain): small ones, fitted for seconds to random convolutions of scenes of seed 1."""
    dataset = simulate("tiny", seed=1, n_subjects=1, snr_scale=3)
    split, item = dataset.split("shared"), FeatureSet.parse("random_conv")
    scale = fit_normalizer("session_z_train", dataset.subject("sim01"), split)
    train = dataset.pairs("sim01", split, "train", "none", scale)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, item.extractor, dataset.stimuli)
        cache.extract(np.unique(train.image_ids), progress=False)
        models = [kind(recipe, device="cpu") for kind, recipe in _recipes().items()]
        for model in models:
            model.fit(cache, train, subject="sim01", alignment="off")
            model.meta_["run"] = {"features": "random_conv", "split": "shared", "split_hash": split.hash}
    return dataset, *models


def _recipes():
    shape = {"num_tokens": 16, "token_width": 16, "reduce": (4, 16), "validation": 0.0}
    shape |= {"stage1": TrainingStage(steps=140, lr=3e-3, batch_size=48)}
    shape |= {"stage2": TrainingStage(steps=200, lr=3e-3, batch_size=48, ema_decay=0.99)}
    flow = FlowSize(width=32, depth=2, heads=2, path="linear")
    size = neuroflow.VAESize((4, 16), blocks=1, num_down=1, hidden=64)
    first = replace(neuroflow.tiny(), vae=size, flow=flow, steps=6, **shape)
    mapper, size = MapperSize(32, 2, 2), synbrain.VAESize(8, channels=(8, 16), blocks=1, pool=64, num_down=1, hidden=32)
    shape["stage1"] = replace(shape["stage1"], steps=60)
    return {NeuroFlow: first, SynBrain: replace(synbrain.tiny(), vae=size, mapper=mapper, **shape)}


def opened_models():
    """The models as from their folders."""
    item = FeatureSet.parse("random_conv")
    return [OpenedModel(type(model).__name__, model, item, model.meta_["run"]) for model in trained_models()[1:]]


@functools.cache
def evaluation_of_models():
    """What both say, with the nearest pictures."""
    options = {"pictures": "nearest", "resamples": 200, "shuffles": 3, "curve": (), "seed": 1, "check_alignment": "off"}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(reader, "STEPS", 150):
        settings = EvaluationSettings(features=("random_conv",), out=Path(folder), progress=False, **options)
        opened = opened_models()
        return evaluate(trained_models()[0], [opened[0].features], settings, opened)


def evaluation_of(dataset, words, **settings):
    """`evaluate` on sets of features by their words, with features in a folder that does not stay."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"shuffles": 2} | settings
        options = EvaluationSettings(features=tuple(words), out=Path(folder), progress=False, **settings)
        return evaluate(dataset, [FeatureSet.parse(word) for word in words], options)


def made_subject(num_images=45, repeats=2, **changes):
    """30 train and 15 test images; `changes` are of the subject."""
    dataset = made_dataset(num_images, repeats)
    return dataset.with_subject(replace(dataset.subject("subj01"), **changes))
