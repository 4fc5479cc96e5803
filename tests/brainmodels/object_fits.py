"""Small studies of objects, and models fitted to them, made once a process."""

import functools
from dataclasses import replace

import numpy as np

from brainmodels.data.objects import ObjectTrials
from brainmodels.simulated.objects import ObjectPreset, simulate_objects
from brainmodels.systems.neuro3d import EncoderSize, Neuro3D, PointSize, Targets, tiny
from brainmodels.training.recipe import TrainingStage

FEW_OBJECTS = ObjectPreset(bodies=2, parts=2, n_chans=8, snr_db=-6.0)
FEW = replace(
    tiny(),
    name="few",
    encoder_size=EncoderSize(components=2, fusion="concat", depth=0, width=8, heads=2, hidden=16),
    denoiser_size=PointSize(16, 1, 2, 4),
    painter_size=PointSize(16, 1, 2, 4),
    targets=Targets("grid", frames=2, size=32),
    encoder=TrainingStage(steps=6, lr=2e-3, batch_size=32),
    shape=TrainingStage(steps=4, lr=2e-3, batch_size=8),
    color=TrainingStage(steps=4, lr=2e-3, batch_size=8),
    points=32,
    num_points=48,
    steps=2,
)
FOLDED = replace(FEW, name="folded", folds=2, condition_from="cross_fit", selection="folds")


@functools.cache
def study():
    """One subject, 4 classes, 8 channels. Its objects have features, so that no fit computes them again."""
    return Neuro3D(FEW, "cpu").with_targets(simulate_objects(FEW_OBJECTS, seed=5))


def trials(part="test", subject="sim01"):
    """Single trials of a part."""
    return ObjectTrials.of(study(), subject, part)


def fitted(recipe=FEW, given=None, **options):
    """A model fitted from the start."""
    return Neuro3D(recipe, "cpu").fit(study() if given is None else given, alignment="off", **options)


@functools.cache
def few():
    """A model of few steps; tests must not change it."""
    return fitted()


@functools.cache
def folded():
    """A model of few steps with two folds; tests must not change it."""
    return fitted(FOLDED)


@functools.cache
def tiny_study():
    """The preset "tiny" with the features that the recipe "tiny" names."""
    return Neuro3D("tiny", "cpu").with_targets(simulate_objects("tiny", seed=3))


@functools.cache
def tiny_fit():
    """The recipe "tiny" on `tiny_study`; tests must not change it."""
    return Neuro3D("tiny", "cpu").fit(tiny_study())


def weights(module):
    """Weights of a module as one array."""
    return np.concatenate([x.detach().numpy().ravel() for x in module.state_dict().values()])
