"""Cohorts of which sim01 is left out, and models of braincodec trained on the others, made once a process."""

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from brainmodels.baselines import WeightPrior
from brainmodels.data import Pairs, fit_normalizer
from brainmodels.data.subject_splits import loso
from brainmodels.features import ArrayFeatures
from brainmodels.simulated import Preset, planted_features, simulate
from brainmodels.systems.braincodec import BrainCoDec, BrainCoDecRecipe, InContextEncoder, InContextRecipe
from brainmodels.systems.braincodec.synthetic import SyntheticVoxels
from brainmodels.training.recipe import TrainingStage
from tests.brainmodels.gauss import BIAS_VARIANCE, Gauss

OTHERS = ("sim02", "sim03")
SMALL = Preset("small cohort", (30, 24, 36), (5, 5, 5), own=60, shared=20, sessions=2, subjects=3)


def short(steps, lr=5e-3, **changes):
    """A stage of some steps, as the tiny recipes have them."""
    base = TrainingStage(steps=steps, lr=lr, least_lr=lr / 100, weight_decay=0.01, batch_size=32, clip_norm=1.0)
    return replace(base, **{"schedule": "cosine", "warmup": min(100, steps // 2), **changes})


SIX = short(6, batch_size=8)
SIZES = {"heads": 4, "dropout": 0.0, "precision": "fp32"}
FEW = {"name": "few", "embed_width": 4, "width": 16, "depth": 1, "hidden": 16, **SIZES}
FEW_ENCODER = InContextRecipe(**FEW, context=(8, 16), queries=8, pretrain=None, extend=SIX, finetune=SIX)
FEW_CODEC = BrainCoDecRecipe(
    **FEW,
    stage1=FEW_ENCODER,
    residual_hidden=16,
    registers=8,
    noise_channel=True,
    evidence_channel=True,
    runs=(8, 16),
    run_draws=2,
    synthetic=SIX,
    extend=None,
    finetune=SIX,
    synthetic_voxels=(8, 16),
    finetune_voxels=(8, 16),
)
LEARNING = {"name": "learning", "embed_width": 8, "width": 32, "depth": 2, "hidden": 64, **SIZES}
ENCODER = InContextRecipe(
    **LEARNING, context=(8, 32), queries=32, pretrain=None, extend=short(700), finetune=short(100, 3e-3)
)
CODEC = BrainCoDecRecipe(
    **LEARNING,
    stage1=ENCODER,
    residual_hidden=64,
    registers=8,
    noise_channel=True,
    evidence_channel=True,
    cross_fit="finetune",
    runs=(8, 16, 32),
    run_draws=2,
    synthetic=short(300),
    extend=None,
    finetune=short(300, 3e-3),
    synthetic_voxels=(32, 96),
    finetune_voxels=(32, 96),
)


@functools.cache
def cohort(preset=SMALL, seed=1, **options):
    return simulate(preset, seed=seed, **options)


def with_values(change, dataset, subject, **changes):
    """The cohort with other responses of a subject: `change` of a copy (trials, V); `changes` are of the subject."""
    person = dataset.subject(subject)
    values = np.array(person.responses.values)
    change(values)
    return dataset.with_subject(replace(person, responses=replace(person.responses, values=values), **changes))


def features(dataset, fingerprint="planted"):
    return ArrayFeatures(planted_features(dataset, dataset.stimuli.ids), dataset.stimuli.ids, fingerprint)


def train_pairs(dataset, subjects=OTHERS):
    """Train trials of subjects by name, z-scored by session."""
    split = dataset.split("shared")
    return {
        name: dataset.pairs(
            name, split, "train", transform=fit_normalizer("session_z_train", dataset.subject(name), split)
        )
        for name in subjects
    }


class Held(NamedTuple):
    """What is known of the subject that is left out: single trials of a context, and averaged test responses."""

    context: Pairs
    test: Pairs
    trials: Pairs  # of the test images, not averaged


def held(dataset, count=12, draw=0, draws=1, subject="sim01"):
    """A context of `count` images of a subject, and the test images."""
    split = loso(dataset, subject, "shared", n_context=count, draw=draw, draws=draws)
    scaling = fit_normalizer("session_z_unlabelled", dataset.subject(subject), split)
    return Held(
        dataset.pairs(subject, split, "train", transform=scaling),
        dataset.pairs(subject, split, "test", "repeats", scaling),
        dataset.pairs(subject, split, "test", transform=scaling),
    )


def fit(kind, recipe, dataset=None, responses=None, source=None, **options):
    """A model of these subjects, or of all but sim01."""
    dataset = cohort() if dataset is None else dataset
    responses = train_pairs(dataset) if responses is None else responses
    source = features(dataset) if source is None else source
    return kind(recipe).fit(source, responses, **{"alignment": "off", **options})


@functools.cache
def few_encoder():
    """Six steps a stage: to be looked at, not to be changed."""
    return fit(InContextEncoder, FEW_ENCODER)


@functools.cache
def few_codec(cross_fit="single"):
    """Six steps a stage: to be looked at, not to be changed."""
    return fit(BrainCoDec, replace(FEW_CODEC, cross_fit=cross_fit))


@functools.cache
def adapted(kind, count=12):
    """The same with a context of sim01."""
    model = few_encoder() if kind == "encoder" else few_codec()
    return model.adapt(features(cohort()), held(cohort(), count).context, subject="sim01")


@functools.cache
def encoder():
    """Trained on sim02 and sim03 of "tiny"."""
    return fit(InContextEncoder, ENCODER, cohort("tiny"))


def strong():
    """A "tiny" cohort with four times the signal and no drift, which can be decoded after few steps."""
    return cohort("tiny", snr_scale=4.0, drift=False)


@functools.cache
def codec():
    """Both stages, trained on sim02 and sim03 of the strong cohort."""
    return fit(BrainCoDec, CODEC, strong())


def gauss_voxels(width, seed=1):
    """Synthetic voxels of the linear world, whose prior is the true one."""
    world = Gauss(width, seed)
    prior = WeightPrior(np.zeros(width + 1), np.diag([1.0] * width + [BIAS_VARIANCE]))
    bank, noise = (torch.from_numpy(x).float() for x in (world.images(4000), world.voxels(4000)[2] ** 2))
    return SyntheticVoxels(bank, prior, noise)


def bits(*modules):
    """Copies of all parameters and buffers."""
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def cosine(found, truth):
    """Mean cosine between rows."""
    return float(((found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)).mean())
