"""The ridge beside the encoder of Neuro3D: its answers, how much of them is used, and files."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainmodels.baselines.sensors import SensorRidge
from brainmodels.data.objects import ObjectTrials
from brainmodels.errors import BrainDataError
from brainmodels.systems.neuro3d import EncoderSize, Neuro3D
from brainmodels.systems.neuro3d.crossfit import Fold, encode
from brainmodels.systems.neuro3d.stacking import SHARES, add_ridge, chosen_shares, set_shares
from brainmodels.systems.neuro3d.targets import goals_of, targets_of
from tests.brainmodels.object_fits import FOLDED, fitted, study, trials

CPU = torch.device("cpu")
STACKED = replace(FOLDED, name="stacked", encoder_size=replace(FOLDED.encoder_size, stack=True))


@functools.cache
def stacked():
    """A model of few steps whose recipe has the ridge; tests must not change it."""
    return fitted(STACKED)


def with_shares(share):
    """The encoder at another share of the ridge."""
    encoder = Neuro3D(STACKED, "cpu")
    vars(encoder).update(vars(stacked()))
    network = encoder._new_encoder()
    network.load_state_dict(stacked().encoder.state_dict())
    set_shares(network, {"class": share, "color": share})
    return network.eval()


def test_at_share_one_the_answers_are_those_of_the_ridge():
    train, test = trials("train+val"), trials().averaged()
    labels, colors = study().label("class", train.ids), study().label("color", train.ids)
    size = STACKED.encoder_size
    bins = {name: size.token(name) for name in size.streams}
    ridge = SensorRidge(bins, components=size.components).fit(train, labels, colors=colors)
    found = encode(with_shares(1.0), test, CPU)
    for name, told in (("class", found.shape), ("color", found.color)):
        logits = ridge.sharpness_[name] * ridge.scores(test, name)
        wanted = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(told.numpy(), wanted / wanted.sum(1, keepdims=True), atol=1e-3)


def test_between_them_is_the_geometric_mean():
    test = trials().averaged()
    zero, half, one = (encode(with_shares(x), test, CPU).shape for x in (0.0, 0.5, 1.0))
    mean = (zero * one).sqrt()
    torch.testing.assert_close(half, mean / mean.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert (zero - one).abs().max() > 0.05


def test_the_share_names_most_objects_that_the_encoders_did_not_see():
    model, single = stacked(), ObjectTrials.of(study(), "sim01", "train+val")
    goals = goals_of(study(), np.unique(single.ids), targets_of(study(), STACKED.targets), model.scales_)
    half = len(goals.ids) // 2
    folds = []
    for held in (goals.ids[::2], goals.ids[1::2]):
        encoder = with_shares(0.0)
        add_ridge(encoder, single.take(~np.isin(single.ids, held)), goals)
        folds.append(Fold(encoder, held, 1))
    assert half > 4
    found = chosen_shares(folds, single, goals, CPU)
    for name in ("class", "color"):
        right = {}
        for share in SHARES.tolist():
            count = 0
            for fold in folds:
                part = single.averaged().take(np.isin(single.averaged().ids, fold.held))
                set_shares(fold.encoder, {name: share})
                said, goal = encode(fold.encoder, part, CPU), goals.of(part.ids)
                told = (said.shape, goal.label) if name == "class" else (said.color, goal.color)
                count += int((told[0].argmax(1) == told[1]).sum())
            right[share] = count
        assert right[found[name]] == max(right.values())
    # a network of six steps knows nothing beside the ridge, so the ridge has most of the say
    assert found["class"] >= 0.5 and max(right.values()) > right[0.0]


def test_the_shares_are_saved_with_the_model(tmp_path):
    model = stacked()
    assert set(model.shares_) == {"class", "color"} == set(model.meta_["ridge_shares"])
    again = Neuro3D.load(model.save(tmp_path / "model"), "cpu")
    assert again.shares_ == model.shares_
    assert np.array_equal(again.classify(trials()).shape, model.classify(trials()).shape)


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(BrainDataError, match="expected folds, which weigh the ridge"):
        replace(STACKED, folds=None, condition_from="in_sample", selection="last")
    with pytest.raises(BrainDataError, match="expected the variant 'fusion' and components with stack=True"):
        EncoderSize(stack=True)
