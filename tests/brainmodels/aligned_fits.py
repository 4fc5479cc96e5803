"""MindAligner fitted to simulated subjects. Cached fits are to be looked at, not to be changed.

model, task, source = watched(monkeypatch, FEW)   # what the training of the map saw
r(trained_pair(NEW, KNOWN).transform(test), test)
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from brainmodels.data import fit_normalizer
from brainmodels.features import ArrayFeatures
from brainmodels.metrics.encoding import voxel_r
from brainmodels.simulated import planted_features, simulate
from brainmodels.systems.mindaligner import MindAligner
from brainmodels.systems.mindaligner.recipes import tiny as tiny_recipe
from brainmodels.training.run import Run
from tests.brainmodels.fitted import features as token_features
from tests.brainmodels.fitted import small, study

NEW, KNOWN = "sim01", "sim02"
FEW = replace(
    tiny_recipe(),
    name="few",
    embed_width=6,
    rank=8,
    decoder=replace(tiny_recipe().decoder, steps=6),
    align=replace(tiny_recipe().align, steps=12, batch_size=64, patience=None),
)


class Features:
    """Tokens (4, 6) of all images of `study`, and all 133 planted features as pooled ones."""

    def __init__(self, fingerprint="planted"):
        ids = study().stimuli.ids
        self.fingerprint = fingerprint
        self.kinds = {
            "tokens": token_features(fingerprint),
            "pooled": ArrayFeatures(planted_features(study(), ids), ids, fingerprint),
        }

    def __len__(self):
        return len(self.kinds["pooled"])

    def __contains__(self, image_id):
        return image_id in self.kinds["pooled"]

    def get(self, ids, what="pooled"):
        return self.kinds[what].get(ids, what)


features = functools.cache(Features)


def scaled(subject, part="train", split="shared", dataset=None, average="none"):
    """Pairs z-scored by the train trials of their split."""
    dataset = study() if dataset is None else dataset
    split = dataset.split(split) if isinstance(split, str) else split
    scale = fit_normalizer("session_z_train", dataset.subject(subject), split)
    return dataset.pairs(subject, split, part, average, scale)


@functools.cache
def labels():
    """Shape of every image of `study`."""
    ids = study().stimuli.ids.tolist()
    return dict(zip(ids, study().stimuli.label("shape", ids).tolist(), strict=True))


def both(new=NEW, known=KNOWN, **options):
    return {new: scaled(new, **options), known: scaled(known, **options)}


def few_fit(recipe=FEW, responses=None, new=NEW, **options):
    """Twelve steps from 24 to 30 voxels, the last of which is kept."""
    options = {"labels": labels(), "alignment": "off"} | options
    return MindAligner(recipe).fit(features(), both() if responses is None else responses, new=new, **options)


@functools.cache
def few_fitted(**changes):
    return few_fit(replace(FEW, **changes))


@functools.cache
def known_decoder():
    """A NeuroFlow of the known subject, after six steps."""
    return small("neuroflow").fit(token_features(), scaled(KNOWN), subject=KNOWN)


@functools.cache
def flow_fitted():
    """Fitted with that NeuroFlow as decoder."""
    return few_fit(decoder=known_decoder())


def steps(count, recipe=FEW, **align):
    """A recipe whose map is trained otherwise."""
    return replace(recipe, align=replace(recipe.align, steps=count, **align))


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def aligning(model):
    """Bits of the map."""
    return [model.map_.A.detach(), model.map_.B.detach()]


@functools.cache
def fitted(decoder):
    """With an "embedding" decoder of one MLP, or with a NeuroFlow."""
    return few_fitted(decoder_depth=1) if decoder == "embedding" else flow_fitted()


def watched(monkeypatch, *arguments, fit=few_fit, **options) -> tuple[MindAligner, Any, Any]:
    """A fit, and the task and the source of the training of its map."""
    real, seen = Run.stage, {}

    def stage(self, name, task, data, *more):
        seen[name] = task, data
        return real(self, name, task, data, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "stage", stage)
        model = fit(*arguments, **options)
    return model, *seen["align"]


# the study of the measured numbers


@functools.cache
def tiny_study(**options):
    return simulate("tiny", seed=1, **options)


def two_sessions(split):
    """The split with two sessions to train on."""
    return replace(split, name="two", sessions={"train": frozenset({1, 2})})


def budget(subject, dataset=None):
    """Single train trials of sessions 1 and 2."""
    dataset = tiny_study() if dataset is None else dataset
    return scaled(subject, split=two_sessions(dataset.split("shared")), dataset=dataset)


def both_tiny(dataset=None):
    """236 trials of the new subject, and all 690 of the known one."""
    dataset = tiny_study() if dataset is None else dataset
    return {NEW: budget(NEW, dataset), KNOWN: scaled(KNOWN, dataset=dataset)}


def averaged(subject, dataset=None):
    """Test responses, averaged over three trials."""
    return scaled(subject, "test", dataset=tiny_study() if dataset is None else dataset, average="repeats")


@functools.cache
def tiny_features():
    dataset = tiny_study()
    return ArrayFeatures(planted_features(dataset, dataset.stimuli.ids), dataset.stimuli.ids, "planted")


@functools.cache
def tiny_labels():
    ids = tiny_study().stimuli.ids.tolist()
    return dict(zip(ids, tiny_study().stimuli.label("shape", ids).tolist(), strict=True))


def tiny_fit(recipe=None, responses=None, new=NEW, **options):
    responses = both_tiny() if responses is None else responses
    options = {"labels": tiny_labels(), "alignment": "off", "decoder": None} | options
    recipe = tiny_recipe() if recipe is None else recipe
    return MindAligner(recipe).fit(tiny_features(), responses, new=new, **options)


def shorter(steps, **changes):
    """`tiny` with fewer steps."""
    return replace(tiny_recipe(), align=replace(tiny_recipe().align, steps=steps), **changes)


def r(aligned, test, known=KNOWN):
    """Mean correlation over voxels with the known subject's response without noise; `test` says which images."""
    return float(np.nanmean(voxel_r(tiny_study().truth[known].signal(test.image_ids), aligned)))


@functools.cache
def trained_pair(new, known):
    """600 steps on two sessions of one subject and all train images of another."""
    responses = {new: budget(new), known: scaled(known, dataset=tiny_study())}
    return tiny_fit(shorter(600), responses, new, decoder="embedding")
