"""Small studies and models fitted to them, made once a process. Features carry all that voxels respond to."""

import functools
from dataclasses import replace

import numpy as np

from brainmodels.features import ArrayFeatures
from brainmodels.metrics.encoding import voxel_r
from brainmodels.simulated import Preset, planted_features, simulate
from brainmodels.systems.neuroflow import FlowSize, NeuroFlow
from brainmodels.systems.neuroflow import VAESize as NeuroVAESize
from brainmodels.systems.neuroflow import tiny as tiny_neuroflow
from brainmodels.systems.synbrain import MapperSize, SynBrain
from brainmodels.systems.synbrain import VAESize as BrainVAESize
from brainmodels.systems.synbrain import tiny as tiny_synbrain

TOKENS, WIDTH = 4, 6
MINUTE = Preset("minute", (24, 30), (5, 5, 5), own=130, shared=30, sessions=2, repeats=2, subjects=2)


def few(recipe, **sizes):
    """A recipe of few steps."""
    stages = {name: replace(getattr(recipe, name), steps=6, batch_size=32) for name in ("stage1", "stage2")}
    return replace(recipe, name="few", num_tokens=TOKENS, token_width=WIDTH, **stages, **sizes)


NEUROFLOW = few(
    tiny_neuroflow(),
    vae=NeuroVAESize(channels=(4, 4), hidden=8, blocks=1, num_down=1),
    flow=FlowSize(width=8, depth=1, heads=2, path="linear"),
    steps=3,
)
SYNBRAIN = few(
    tiny_synbrain(),
    vae=BrainVAESize(stem=4, channels=(4, 8), blocks=1, num_down=1, pool=16, hidden=8),
    mapper=MapperSize(width=8, depth=1, heads=2),
)
SYSTEMS = {"neuroflow": (NeuroFlow, NEUROFLOW), "synbrain": (SynBrain, SYNBRAIN)}


@functools.cache
def study():
    """Subjects sim01 and sim02 of 24 and 30 voxels, two trials of 130 images each, and of 30 that are tested on."""
    return simulate(MINUTE, seed=1, snr_scale=3.0, drift=False)


@functools.cache
def features(fingerprint="planted"):
    """Tokens (4, 6) of all images of the study."""
    dataset = study()
    mixing = np.random.default_rng(0).normal(size=(133, TOKENS * WIDTH)).astype(np.float32)
    tokens = planted_features(dataset, dataset.stimuli.ids) @ mixing
    return ArrayFeatures(tokens.reshape(-1, TOKENS, WIDTH), dataset.stimuli.ids, fingerprint)


def pairs(part="train", subject="sim01", dataset=None, **options):
    return (study() if dataset is None else dataset).pairs(subject, "shared", part, **options)


def with_values(change, dataset=None, subject="sim01", **changes):
    """The study with other responses of a subject: `change` of a copy (trials, V); `changes` are of the subject."""
    dataset = study() if dataset is None else dataset
    person = dataset.subject(subject)
    values = np.array(person.responses.values)
    changed = change(values)
    values = values if changed is None else changed
    return dataset.with_subject(replace(person, responses=replace(person.responses, values=values), **changes))


def small(system, config=None, **changes):
    """An estimator that is not fitted; `changes` are of its recipe."""
    kind, recipe = SYSTEMS[system]
    return kind(replace(recipe if config is None else config, **changes))


@functools.cache
def fitted(system):
    """Six steps on sim01: to be looked at, not to be changed."""
    return small(system).fit(features(), pairs(), subject="sim01")


def saved(model, folder):
    """Bytes of all fitted numbers of a model."""
    model.save(folder)
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "stats.safetensors")}


# a study that is learned in seconds


@functools.cache
def tiny_study():
    return simulate("tiny", seed=1, n_subjects=2, snr_scale=2.0, drift=False)


@functools.cache
def tiny_features():
    """Tokens (8, 16): 128 of the 133 numbers that signals are made of."""
    dataset = tiny_study()
    planted = planted_features(dataset, dataset.stimuli.ids)[:, :128]
    return ArrayFeatures(planted.reshape(-1, 8, 16), dataset.stimuli.ids, "planted")


def learning(recipe, stage1, stage2, **sizes):
    """A recipe of hundreds of steps for the tokens of `tiny_features`."""
    stages = {
        "stage1": replace(recipe.stage1, steps=stage1, lr=5e-3),
        "stage2": replace(recipe.stage2, steps=stage2, lr=5e-3, ema_decay=0.98),
    }
    return replace(recipe, name="learning", num_tokens=8, token_width=16, **stages, **sizes)


LEARNING = {
    "neuroflow": learning(
        tiny_neuroflow(),
        100,
        150,
        vae=NeuroVAESize(channels=(8, 8), hidden=64, blocks=1, num_down=0),
        flow=FlowSize(width=32, depth=2, heads=2, path="linear"),
    ),
    "synbrain": learning(
        tiny_synbrain(),
        150,
        150,
        vae=BrainVAESize(stem=8, channels=(8, 16), blocks=1, num_down=1, pool=64, hidden=32),
        mapper=MapperSize(width=32, depth=2, heads=2),
    ),
}


def learned_from(system, responses, **options):
    return small(system, LEARNING[system]).fit(tiny_features(), responses, subject="sim01", **options)


@functools.cache
def learned(system):
    """Trained on the 690 trials of sim01 of `tiny_study`, without drift and at twice the signal: not to be changed."""
    return learned_from(system, pairs(dataset=tiny_study()))


def pairing_z(measured, predicted):
    """Mean r over voxels against 200 pairings of other images, in standard deviations of these."""
    rng, found = np.random.default_rng(0), voxel_r(measured, predicted).mean()
    null = [voxel_r(measured, predicted[rng.permutation(len(predicted))]).mean() for _ in range(200)]
    return (found - np.mean(null)) / np.std(null)
