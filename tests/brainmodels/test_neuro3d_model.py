"""The encoder of Neuro-3D, its filters and losses, against definitions and planted signals."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brainmodels.baselines.courses import SignalFilters
from brainmodels.data.objects import ObjectTrials
from brainmodels.data.spaces import SensorSpace
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn.losses import softclip
from brainmodels.systems.neuro3d import (
    ClassWeights,
    Encoded,
    EncoderSize,
    Goal,
    StreamShape,
    encoder_loss,
    named,
    nano,
    paper,
    released,
    tiny,
    veca,
)
from brainmodels.systems.neuro3d.crossfit import error_level
from brainmodels.systems.neuro3d.losses import balanced
from brainmodels.systems.neuro3d.model import build_encoder

EEG3D = {"static": StreamShape(64, 250, 250.0, -0.2), "dynamic": StreamShape(64, 600, 100.0, 0.8)}


def batch_of(streams, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(count, s.channels, s.times, generator=generator) for n, s in streams.items()}


@pytest.mark.parametrize("recipe", [paper(), released()], ids=lambda x: x.name)
def test_the_official_encoder_has_the_parameters_of_the_release(recipe):
    """4,269,614 in the released code, of which 562,304 are layers that it holds twice."""
    encoder = build_encoder(EEG3D, recipe.encoder_size, 1024, 72, 6)
    assert sum(x.numel() for x in encoder.parameters()) == 4_269_614 - 562_304


@pytest.mark.parametrize("recipe", [paper(), released(), veca(), nano(), tiny()], ids=lambda x: x.name)
def test_every_encoder_reads_both_streams(recipe):
    encoder = build_encoder(EEG3D, recipe.encoder_size, 12, 5, 4).eval()
    if recipe.encoder_size.components:
        encoder.set_filters(random_filters(EEG3D, recipe.encoder_size.components))
    trials = batch_of(EEG3D)
    found = encoder(trials)
    for name in EEG3D:
        other = encoder(trials | {name: torch.randn_like(trials[name])})
        for first, second in zip(found, other, strict=True):
            assert not torch.allclose(first, second, atol=1e-6), name
    backward = encoder({name: x.flip(0) for name, x in trials.items()})
    for first, second in zip(found, backward, strict=True):
        torch.testing.assert_close(first, second.flip(0), atol=1e-5, rtol=1e-4)  # rows do not mix


def random_filters(streams, components):
    rng = np.random.default_rng(0)
    return {
        name: SignalFilters(np.eye(stream.channels), rng.normal(size=(stream.times, components)))
        for name, stream in streams.items()
    }


def test_released_heads_end_in_a_gelu():
    heads = [
        build_encoder(EEG3D, recipe().encoder_size, 64, 5, 4).eval()(batch_of(EEG3D, 16))
        for recipe in (paper, released)
    ]
    assert heads[0].geometry.min() < -0.17 <= heads[1].geometry.min()


@pytest.mark.parametrize("components", [None, 2])
def test_odd_channels_and_times(components):
    streams = {"static": StreamShape(7, 105, 100.0, -0.2), "dynamic": StreamShape(7, 63, 20.0, 0.8)}
    size = EncoderSize(width=8, heads=2, hidden=8, components=components, static_token=0.15, dynamic_token=0.15)
    encoder = build_encoder(streams, size, 6, 3, 2)
    found = encoder(batch_of(streams))
    assert [x.shape[1] for x in found] == [6, 6, 3, 2]
    found.geometry.sum().backward()
    assert all(x.grad is not None for name, x in encoder.named_parameters() if "embed" in name)


@pytest.mark.parametrize("components", [None, 2])
def test_an_encoder_of_one_stream_ignores_the_other(components):
    size = replace(nano().encoder_size, streams=("static",), components=components, stack=False)
    encoder = build_encoder({"static": EEG3D["static"]}, size, 6, 3, 0).eval()
    trials = batch_of(EEG3D)
    alone = encoder({"static": trials["static"]})
    for first, second in zip(alone, encoder(trials | {"dynamic": trials["dynamic"] * torch.nan}), strict=True):
        assert torch.equal(first, second)
    assert alone.color.shape == (3, 0)


def test_a_span_that_divides_no_trial_is_refused_with_both_numbers():
    size = replace(veca().encoder_size, static_token=0.03)
    with pytest.raises(BrainDataError, match=r"divide 250 samples at 250 Hz, got 0\.03 s, which is 8 samples"):
        build_encoder(EEG3D, size, 6, 3, 2)


def test_other_streams_and_shapes_are_refused():
    size = nano().encoder_size
    with pytest.raises(BrainDataError, match="expected streams static, dynamic of the recipe, got static"):
        build_encoder({"static": EEG3D["static"]}, size, 6, 3, 2)
    encoder = build_encoder(EEG3D, size, 6, 3, 2)
    trials = batch_of(EEG3D)
    with pytest.raises(AxisError, match=r"\(B, 64, 250\), got \(3, 63, 250\)"):
        encoder(trials | {"static": trials["static"][:, 1:]})
    with pytest.raises(AxisError, match="stream dynamic, got static"):
        encoder({"static": trials["static"]})


class TestFilters:
    channels, times, rate = 6, 80, 100.0

    def trials(self, course, noise_root, channel_root, seed=0, objects=60, strength=1.0):
        """Two trials of each object in noise of known covariance; 4 classes differ along one course."""
        rng = np.random.default_rng(seed)
        ids = np.repeat([f"o{i:02d}" for i in range(objects)], 2)
        labels = np.repeat(np.arange(objects) % 4, 2)
        topographies = rng.normal(size=(4, self.channels))
        noise = channel_root @ rng.normal(size=(len(ids), self.channels, self.times)) @ noise_root
        values = strength * topographies[labels][:, :, None] * course + noise
        space = SensorSpace(tuple(f"E{i}" for i in range(self.channels)), self.rate, np.arange(self.times) / self.rate)
        arrays = {"static": values.astype(np.float32)}
        return ObjectTrials.from_arrays(arrays, ids, {"static": space}), labels

    @functools.cached_property
    def case(self):
        rng = np.random.default_rng(1)
        course = np.exp(-0.5 * ((np.arange(self.times) - 50) / 8) ** 2)
        lag = np.abs(np.arange(self.times)[:, None] - np.arange(self.times))
        slow = 4 * np.exp(-lag / 40) + 0.2 * np.eye(self.times)
        return (
            course,
            np.linalg.cholesky(slow).T,
            np.eye(self.channels) + 0.4 * rng.normal(size=(self.channels, self.channels)),
        )

    def test_the_course_of_the_signal_is_found_in_coloured_noise(self):
        course, noise_root, channel_root = self.case
        trials, labels = self.trials(course, noise_root, channel_root)
        (filters,) = SignalFilters.fit(trials, [labels], {"static": 0.05}, 1).values()
        noise = noise_root.T @ noise_root
        best = np.linalg.solve(noise, course)  # the matched filter
        found = filters.times[:, 0]
        gain = lambda w: (w @ course) ** 2 / (w @ noise @ w)  # noqa: E731 - signal to noise of a filter
        assert gain(found) > 0.6 * gain(best)  # bins of five samples lose some
        assert gain(found) > 2 * gain(course)

    def test_filtered_noise_is_white(self):
        course, noise_root, channel_root = self.case
        trials, labels = self.trials(course, noise_root, channel_root, objects=400, strength=0.0)
        (filters,) = SignalFilters.fit(trials, [labels], {"static": 0.05}, 3).values()
        out = filters.apply(trials.values()["static"].astype(np.float64)).reshape(len(trials), -1)  # (n, 3 * channels)
        covariance = out.T @ out / len(out)
        np.testing.assert_allclose(covariance, np.eye(out.shape[1]), atol=0.2)
        np.testing.assert_allclose(np.trace(covariance) / len(covariance), 1, rtol=0.05)

    def test_a_channel_without_variance_counts_nothing(self):
        course, noise_root, channel_root = self.case
        trials, labels = self.trials(course, noise_root, channel_root)
        values = trials.values()["static"].copy()
        values[:, 2] = values.mean(1)  # a combination of the others
        (filters,) = SignalFilters.fit(trials.with_values({"static": values}), [labels], {"static": 0.05}, 2).values()
        assert np.isfinite(filters.channels).all() and np.abs(filters.channels).max() < 100

    def test_single_presentations_and_few_bins_are_refused(self):
        trials, labels = self.trials(*self.case)
        with pytest.raises(BrainDataError, match="two trials of an object to measure noise, got one of each of 60"):
            SignalFilters.fit(trials.averaged(), [labels[::2]], {"static": 0.05}, 1)
        with pytest.raises(BrainDataError, match="expected 5 bins or more of static, got 4"):
            SignalFilters.fit(trials, [labels], {"static": 0.2}, 5)


class TestLoss:
    @pytest.fixture
    def case(self):
        generator = torch.Generator().manual_seed(0)
        draw = functools.partial(torch.randn, generator=generator)
        found = Encoded(draw(6, 8), draw(6, 8), draw(6, 3), draw(6, 2))
        goal = Goal(
            F.normalize(draw(6, 8)), F.normalize(draw(6, 8)), torch.tensor([0, 0, 1, 1, 2, 2]), torch.arange(6) % 2
        )
        return found, goal, ClassWeights(balanced(goal.label, 3), balanced(goal.color, 2))

    def test_ours_by_definition(self, case):
        found, goal, weights = case
        terms = encoder_loss(found, goal, weights)
        cosine = sum(1 - (F.normalize(f) * v).sum(1).mean() for f, v in zip(found[:2], goal[:2], strict=True))
        contrast = softclip(found.geometry, goal.geometry) + softclip(found.appearance, goal.appearance)
        classes = F.cross_entropy(found.shape, goal.label) + F.cross_entropy(found.color, goal.color)
        torch.testing.assert_close(terms["loss"], cosine + contrast + 0.5 * classes)
        assert terms["top1"] == (found.shape.argmax(1) == goal.label).float().mean()

    @pytest.mark.parametrize("raw", [True, False])
    def test_the_papers_by_definition(self, case, raw):
        found, goal, weights = case
        scale = torch.tensor(1.7)
        terms = encoder_loss(found, goal, weights, "paper", scale, raw)
        total = torch.zeros(())
        for f, v in zip(found[:2], goal[:2], strict=True):
            logits = 1.7 * f @ v.T if raw else np.exp(1.7) * F.normalize(f) @ F.normalize(v).T
            own = [-x.log_softmax(1).diagonal().mean() / 2 for x in (logits, logits.T)]
            total += 9.9 * ((f - v) ** 2).mean() + 0.1 * sum(own)
        total += 0.1 * (F.cross_entropy(found.shape, goal.label) + F.cross_entropy(found.color, goal.color))
        torch.testing.assert_close(terms["loss"], total)

    def test_presentations_of_one_object_do_not_repel_each_other(self, case):
        """At the goal itself the gradient of the contrast is 0, also where an object is twice in the batch."""
        _, goal, weights = case
        rows = torch.tensor([0, 0, 1, 2, 3, 3])
        goal = Goal(*(x[rows] for x in goal))
        features = goal.geometry.clone().requires_grad_()
        found = Encoded(features, goal.appearance, torch.zeros(6, 3), torch.zeros(6, 2))
        (slope,) = torch.autograd.grad(encoder_loss(found, goal, weights)["contrast"], features)
        assert slope.abs().max() < 1e-6
        paper_loss = encoder_loss(found, goal, weights, "paper", torch.tensor(2.0))["contrast"]
        (slope,) = torch.autograd.grad(paper_loss, features)
        assert slope.abs().max() > 1e-3  # the published contrast takes them for different objects

    def test_rare_classes_weigh_more(self):
        weights = balanced(torch.tensor([0, 0, 0, 2]), 4)
        np.testing.assert_allclose(weights, [4 / 6, 0, 2, 0])
        assert balanced(torch.full((3,), -1), 0).shape == (0,)

    def test_without_colours_their_terms_are_left_out(self, case):
        found, goal, weights = case
        terms = encoder_loss(found._replace(color=torch.zeros(6, 0)), goal, weights)
        torch.testing.assert_close(terms["classes"], F.cross_entropy(found.shape, goal.label))
        assert terms["color"] == 0


def test_the_error_level_is_the_noise_that_was_added():
    generator = torch.Generator().manual_seed(0)
    targets = F.normalize(torch.randn(400, 512, generator=generator))
    for level in (0.5, 1.5):
        noise = torch.randn(targets.shape, generator=generator) / 512**0.5
        assert error_level(targets + level * noise, targets) == pytest.approx(level, rel=0.05)
    assert error_level(targets, targets) < 1e-3


class TestRecipes:
    @pytest.mark.parametrize("name", ["paper", "released", "veca", "nano", "tiny"])
    def test_json_and_back(self, name):
        recipe = named(name)
        assert recipe.name == name and type(recipe).from_json(recipe.to_json()) == recipe

    def test_an_unknown_key_is_refused(self):
        with pytest.raises(BrainDataError, match="got 'fold'"):
            type(nano()).from_json({"fold": 3})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"folds": None}, "expected folds with condition_from='cross_fit'"),
            ({"folds": 1}, "2 folds or more, or None, got 1"),
            ({"points": 15}, "at least 16 points, got 15"),
            ({"condition_dropout": 0.0, "guidance": 2.0}, "condition_dropout above 0 with guidance=2"),
            ({"loss": "paper"}, "expected the encoder 'official'"),
            ({"objective": "score"}, "expected objective"),
        ],
    )
    def test_settings_that_do_not_fit_together(self, changes, message):
        with pytest.raises(BrainDataError, match=message):
            replace(nano(), **changes)

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"width": 63}, "even width divisible by heads=4, got 63"),
            ({"streams": ("video",)}, "streams of static and dynamic"),
            ({"components": 2, "whiten": False}, "components"),
        ],
    )
    def test_sizes_that_cannot_be_built(self, sizes, message):
        with pytest.raises(BrainDataError, match=message):
            EncoderSize(**sizes)
