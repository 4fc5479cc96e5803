"""The expression generator, its judges, and the arithmetic of emotions and intensities, against planted series."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.systems.emodiffhead.losses import hinge, label_loss, motion_loss
from brainmodels.systems.emodiffhead.model import (
    NEUTRAL,
    SPAN,
    ExpressionGenerator,
    FrameDiscriminator,
    LabelClassifier,
    SequenceDiscriminator,
    audio_windows,
    trajectories,
)
from brainmodels.systems.emodiffhead.motion import (
    ExpressionTask,
    MotionBatch,
    RidgeSpeech,
    blend,
    curve,
    mixture,
    with_trajectory,
    with_vector,
)
from brainmodels.systems.emodiffhead.recipes import GeneratorSize, tiny
from brainmodels.training.loop import train_stage
from brainmodels.training.recipe import TrainingStage

K, S, D, W, T = 4, 2, 5, 6, 32
TIMES = (np.arange(T) + 0.5) / 25


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def make(seed=0, hidden=24, layers=1, width=W):
    torch.manual_seed(seed)
    return ExpressionGenerator(S * D, width, K, hidden, layers, noise=3)


class Planted:
    """Clips whose speech is a fixed filter of the sound, and whose emotion is a fixed offset times alpha.

    The first three coefficients speak, the last three show the emotion.
    """

    name = "planted"

    def __init__(self, count=96, unlabelled=0, seed=0):
        fixed, rng = np.random.default_rng(7), np.random.default_rng((8, seed))
        self.filter = fixed.normal(size=(5 * S * D, 3)).astype(np.float32) / 7
        self.offset = np.zeros((K, W), np.float32)
        self.offset[1:, 3:] = 1.5 * np.eye(3)
        drawn = rng.normal(size=(count, T + 4, S * D))
        smooth = sum(drawn[:, i : i + T] for i in range(5)) / 5**0.5
        self.audio = smooth.reshape(count, T, S, D).astype(np.float32)
        self.label = rng.integers(K, size=count)
        levels = rng.choice([1 / 3, 2 / 3, 1], count)
        self.alpha = np.repeat(np.where(self.label == NEUTRAL, 0, levels)[:, None], T, 1).astype(np.float32)
        self.speech = audio_windows(torch.from_numpy(self.audio)).flatten(2).numpy() @ self.filter
        self.target = self.alpha[..., None] * self.offset[self.label][:, None]
        self.target[..., :3] += self.speech
        self.target += 0.05 * rng.normal(size=self.target.shape).astype(np.float32)
        self.label[:unlabelled] = -1

    def sizes(self, part):
        return {self.name: len(self.audio) if part == "train" else 0}

    def batch(self, part, subject, rows):
        columns = (self.audio, self.target, self.label, self.alpha)
        return MotionBatch(subject, rows, *(torch.from_numpy(x[rows]) for x in columns))

    def describe(self, part, subject, rows):
        return f"rows {rows}"

    def all(self):
        return self.batch("train", self.name, np.arange(len(self.audio)))


def recipe(**changes):
    size = GeneratorSize(hidden=24, noise=3)
    return replace(tiny(), generator_size=size, **changes)


def trained(source, steps=120, **changes):
    torch.manual_seed(0)
    task = ExpressionTask(make(hidden=32), recipe(**changes))
    train_stage("expression", task, source, TrainingStage(steps=steps, lr=5e-3, batch_size=16, schedule="cosine"))
    return task


@pytest.fixture(scope="module")
def fitted():
    return trained(Planted(unlabelled=16))


def test_windows_hold_the_sound_around_each_frame():
    audio = torch.arange(6.0)[None, :, None, None] + torch.tensor([0.0, 0.5])[:, None]  # (1, 6, 2, 1)
    found = audio_windows(audio, 1)[0, :, :, 0]
    assert found.shape == (6, 6)
    assert found[2].tolist() == [1, 1.5, 2, 2.5, 3, 3.5]
    assert found[0].tolist() == [0, 0.5, 0, 0.5, 1, 1.5]
    assert found[5].tolist() == [4, 4.5, 5, 5.5, 5, 5.5]
    with pytest.raises(AxisError, match=r"\(B, T, S, D\), got shape"):
        audio_windows(audio[0])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cut", [1, 31, 64, 65, 100])
def test_a_longer_recording_leaves_earlier_frames_bit_equal(layers, cut):
    generator = make(layers=layers)
    audio = np.random.default_rng(0).normal(size=(150, S, D)).astype(np.float32)
    whole = trajectories(generator, audio, (0, 2), 3)
    part = trajectories(generator, audio[:cut], (0, 2), 3)
    kept = max(cut - generator.reach, 0)
    np.testing.assert_array_equal(part[:, :kept], whole[:, :kept])
    assert cut < 3 or not np.array_equal(part[:, kept:], whole[:, kept:cut])


def test_trajectories_share_sound_and_noise():
    generator = make()
    audio = np.random.default_rng(0).normal(size=(70, S, D)).astype(np.float32)
    found = trajectories(generator, audio, (0, 1, 3), 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, trajectories(generator, audio, (0, 1, 3), 3))
    np.testing.assert_array_equal(found[[0, 2]], trajectories(generator, audio, (0, 3), 3))
    assert not np.array_equal(found, trajectories(generator, audio, (0, 1, 3), 4))
    np.testing.assert_allclose(found, trajectories(generator, audio, (0, 1, 3), 3, chunk=9), atol=1e-6)
    noise = torch.randn(1, 3, generator=torch.Generator().manual_seed(3)).repeat(3, 1)
    label = F.one_hot(torch.tensor([0, 1, 3]), K).float()
    with torch.no_grad():
        whole = generator(torch.from_numpy(audio).repeat(3, 1, 1, 1), label, noise)
    np.testing.assert_allclose(found, whole.numpy(), atol=1e-6)
    assert generator.training  # as it was


def test_wrong_inputs_of_the_generator_are_named():
    generator = make()
    audio = np.zeros((10, S, D), np.float32)
    with pytest.raises(AxisError, match=r"S \* D = 10, got shape \(1, 10, 2, 4\)"):
        trajectories(generator, audio[..., :4], (0,), 0)
    with pytest.raises(BrainDataError, match=r"labels from 0 to 3, got \[4\]"):
        trajectories(generator, audio, (0, 4), 0)
    with pytest.raises(BrainDataError, match="chunk of at least 1, got 0"):
        trajectories(generator, audio, (0,), 0, chunk=0)
    with pytest.raises(AxisError, match=r"noise \(1, 3\), got shape \(1, 2\)"):
        generator(torch.zeros(1, 10, S, D), torch.zeros(1, K), torch.zeros(1, 2))


def test_expressions_are_affine_in_intensity():
    rng = np.random.default_rng(0)
    neutral, happy, sad = (3 * rng.normal(size=(T, W)).astype(np.float32) for _ in range(3))
    both = {"happy": happy, "sad": sad}
    alphas = np.linspace(0, 1, 9)
    found = np.array([mixture(neutral, both, {"happy": 1.0}, a) for a in alphas])
    line = found[0] + alphas[:, None, None] * (found[-1] - found[0]).astype(np.float64)
    np.testing.assert_allclose(found, line, atol=1e-6)
    np.testing.assert_allclose(found[-1], happy, atol=1e-6)
    ramp = np.linspace(0, 1, T)
    for name in both:
        np.testing.assert_array_equal(mixture(neutral, both, {name: 1.0}, 0.0), neutral)
        np.testing.assert_array_equal(blend(neutral, both[name], 0.0), neutral)
    own = neutral + ramp[:, None] * (happy - neutral)
    np.testing.assert_allclose(mixture(neutral, both, {"happy": 1.0}, ramp), own, atol=1e-6)
    np.testing.assert_allclose(blend(neutral, happy, ramp), own, atol=1e-6)
    two = mixture(neutral, both, {"happy": 0.5, "sad": ramp / 2})
    added = neutral + 0.5 * (happy - neutral) + ramp[:, None] / 2 * (sad - neutral)
    np.testing.assert_allclose(two, added, atol=1e-6)


def test_intensity_is_a_number_an_array_or_a_function_of_seconds():
    np.testing.assert_array_equal(curve(0.5, TIMES), np.full(T, 0.5))
    np.testing.assert_array_equal(curve(TIMES / 2, TIMES), TIMES / 2)
    np.testing.assert_allclose(curve(lambda t: 0.1 + t / 2, TIMES), 0.1 + TIMES / 2)
    with pytest.raises(AxisError, match=r"of each of 32 frames, got shape \(31,\)"):
        curve(np.zeros(31), TIMES)
    with pytest.raises(BrainDataError, match="finite intensities"):
        curve(lambda t: np.nan, TIMES)


@pytest.mark.parametrize(
    "weights, alpha, told",
    [
        ({"a": 1.0}, 1.2, "got 1.2"),
        ({"a": 0.7, "b": 0.7}, 1.0, "got 1.4"),
        ({"a": 1.0}, -0.25, "got -0.25"),
        ({"a": 0.5, "b": -0.5}, 1.0, "got -0.5"),
    ],
)
def test_intensities_outside_the_trained_range_are_refused(weights, alpha, told, caplog):
    neutral = np.zeros((T, W), np.float32)
    both = {"a": neutral + 1, "b": neutral + 2}
    with pytest.raises(BrainDataError, match=f"from 0 to 1.*{told}.*allow_extrapolation=True"):
        mixture(neutral, both, weights, alpha)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        found = mixture(neutral, both, weights, alpha, allow_extrapolation=True)
    assert told in caplog.text
    np.testing.assert_allclose(found, alpha * sum(w * both[name][0, 0] for name, w in weights.items()), rtol=1e-6)


def test_sums_that_differ_by_rounding_are_no_extrapolation():
    neutral = np.zeros((T, W), np.float32)
    weights = dict.fromkeys("abc", np.float32(1 / 3) + 1e-8)
    mixture(neutral, dict.fromkeys("abc", neutral), weights)
    mixture(neutral, {"a": neutral}, {"a": 1.5}, trained_alpha_max=1.5)
    with pytest.raises(BrainDataError, match=r"trajectory of each emotion, got none of \['b'\]"):
        mixture(neutral, {"a": neutral}, {"b": 1.0})


class Space:
    """Two coefficients of the mouth, one of the brow, one jaw number, scaled; hiding takes the mean over time."""

    scale = np.array([2.0, 0.5, 1.5, 3.0], np.float32)
    mean = np.array([0.1, -0.2, 0.3, 0.4], np.float32)

    def whiten(self, exp, jaw):
        return ((np.concatenate((exp, jaw), 1) - self.mean) / self.scale).astype(np.float32)

    def unwhiten(self, w):
        raw = w * self.scale + self.mean
        return raw[:, :3], raw[:, 3:]

    def hide(self, w, fps):
        return np.where([True, True, False, True], w.mean(0), w).astype(np.float32)


def test_a_constant_vector_keeps_the_lips_moving():
    space = Space()
    raw = np.random.default_rng(0).normal(size=(T, 4)).astype(np.float32)
    neutral = space.whiten(raw[:, :3], raw[:, 3:])
    v = np.array([1.0, 2.0, 3.0, 0.5], np.float32)
    fast = raw - raw.mean(0)
    exp, jaw = space.unwhiten(with_vector(neutral, v, space, 25))
    np.testing.assert_allclose(exp[:, :2], v[:2] + fast[:, :2], atol=1e-5)
    np.testing.assert_allclose(exp[:, 2], v[2], atol=1e-5)  # the brow is at rest rate, so all of it is replaced
    np.testing.assert_allclose(jaw[:, 0], v[3] + fast[:, 3], atol=1e-5)
    exp, jaw = space.unwhiten(with_vector(neutral, v[:3], space, 25))
    np.testing.assert_allclose(exp[:, :2], v[:2] + fast[:, :2], atol=1e-5)
    np.testing.assert_allclose(jaw, raw[:, 3:], atol=1e-5)
    slow = np.linspace(0, 1, T)[:, None] * v
    exp, _ = space.unwhiten(with_vector(neutral, slow, space, 25))
    np.testing.assert_allclose(exp[:, :2], slow[:, :2] + fast[:, :2], atol=1e-5)
    with pytest.raises(AxisError, match=r"3 or 4 coefficients, got shape \(2,\)"):
        with_vector(neutral, v[:2], space, 25)


def test_a_trajectory_replaces_the_emotional_one():
    space = Space()
    raw, new = np.random.default_rng(0).normal(size=(2, T, 4)).astype(np.float32)
    neutral = space.whiten(raw[:, :3], raw[:, 3:])
    np.testing.assert_allclose(np.hstack(space.unwhiten(with_trajectory(neutral, new, space))), new, atol=1e-5)
    exp, jaw = space.unwhiten(with_trajectory(neutral, new[:, :3], space))
    np.testing.assert_allclose(exp, new[:, :3], atol=1e-5)
    np.testing.assert_allclose(jaw, raw[:, 3:], atol=1e-5)
    with pytest.raises(AxisError, match="vectors of 32 frames, got 31"):
        with_trajectory(neutral, new[1:], space)
    with pytest.raises(AxisError, match=r"\(T, E\) or \(T, E \+ J\), got shape \(4,\)"):
        with_trajectory(neutral, new[0], space)
    with pytest.raises(BrainDataError, match="finite coefficients"):
        with_trajectory(neutral, np.full((T, 3), np.nan), space)


def test_losses_follow_their_definitions():
    found, target = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    l1, velocity = motion_loss(found, target)
    assert l1.item() == pytest.approx((found - target).abs().mean().item())
    steps = [(found[:, t] - found[:, t - 1]) - (target[:, t] - target[:, t - 1]) for t in range(1, 5)]
    assert velocity.item() == pytest.approx(torch.stack(steps).abs().mean().item())
    assert motion_loss(found[:, :1], target[:, :1])[1] == 0
    logits, label = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1, -1])
    expected = (2.0 * -torch.log_softmax(logits[0], 0)[0] + 0.5 * np.log(2)) / 3
    assert label_loss(logits, label, torch.tensor([2.0, 0.5, 9.0])).item() == pytest.approx(expected.item())
    assert hinge(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])).item() == pytest.approx(0.25 + 0.75)


@pytest.mark.parametrize("term, judge", [("frame", "frames"), ("sequence", "sequences"), ("label", "classifier")])
def test_generator_and_judges_learn_from_their_own_terms(term, judge):
    source = Planted(8)
    task = ExpressionTask(make(), recipe(adversarial=(0.05, 0.05)))
    for name, learns, rests in ((term, "generator", judge), (_judging(term), judge, "generator")):
        task.zero_grad()
        task(source.all(), torch.Generator().manual_seed(0))[name].backward()
        assert all(p.grad is None for p in getattr(task, rests).parameters()), name
        assert all(p.grad is not None for p in getattr(task, learns).parameters()), name
        assert sum(float(p.grad.abs().sum()) for p in getattr(task, learns).parameters()) > 0


def _judging(term):
    return "label_true" if term == "label" else f"{term}_judge"


def test_the_loss_is_the_weighted_sum_of_its_terms():
    own = recipe(adversarial=(0.3, 0.7), label_weight=0.2, velocity_weight=0.4)
    found = ExpressionTask(make(), own)(Planted(8).all(), torch.Generator().manual_seed(0))
    weights = {"l1": 1, "velocity": 0.4, "label": 0.2, "label_true": 0.2, "frame": 0.3, "frame_judge": 0.3}
    weights |= {"sequence": 0.7, "sequence_judge": 0.7}
    assert set(found) == {"loss", *weights}
    assert found["loss"].item() == pytest.approx(sum(w * found[name].item() for name, w in weights.items()), rel=1e-5)
    plain = ExpressionTask(make(), recipe(label_weight=0.0))(Planted(8).all(), torch.Generator().manual_seed(0))
    assert set(plain) == {"loss", "l1", "velocity"}
    with pytest.raises(BrainDataError, match="window of 16 frames or more with adversaries, got 12"):
        ExpressionTask(make(), recipe(adversarial=(0.05, 0.05), window=12))


def test_targets_blend_both_trajectories_of_one_noise():
    task = ExpressionTask(make(), recipe())
    batch, noise = Planted(8).all(), torch.randn(8, 3)
    hot = F.one_hot(batch.label, K).float()
    neutral = F.one_hot(torch.zeros(8, dtype=torch.long), K).float()
    with torch.no_grad():
        a, b = (task.generator(batch.audio, x, noise) for x in (neutral, hot))
        expected = (1 - batch.alpha[..., None]) * a + batch.alpha[..., None] * b
        torch.testing.assert_close(task.predict(batch, noise), expected)


def test_unlabelled_clips_train_speech_and_no_emotion():
    task = ExpressionTask(make(), recipe(adversarial=(0.05, 0.05)))
    batch = Planted(8, unlabelled=8).all()
    found = task(batch, torch.Generator().manual_seed(0))
    found["loss"].backward()
    emotions = task.generator.clip.weight.grad[:, :K], task.generator.out.weight.grad[:, -K:]
    assert not any(x.any() for x in emotions) and task.generator.sound.weight.grad.abs().sum() > 0
    assert found["label"] == found["label_true"] == 0
    other = batch._replace(alpha=batch.alpha + 0.3)
    assert task(other, torch.Generator().manual_seed(0))["loss"] == found["loss"]


def series_for_judges(seed):
    """Smooth sequences of correlated coefficients, with a label that sets the sign of the first."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(64, T + 8, 3))
    smooth = sum(drawn[:, i : i + T] for i in range(8)) / 8**0.5
    label = rng.integers(2, size=64)
    smooth[..., 0] = np.abs(smooth[..., 0]) * (2 * label - 1)[:, None]
    full = np.concatenate((smooth, smooth[..., ::-1] ** 2), 2)  # the last three follow from the first
    return torch.from_numpy(full).float(), F.one_hot(torch.from_numpy(label), 2).float(), rng


def in_time(real, label, rng):
    return real[:, rng.permutation(T)], label


def in_label(real, label, rng):
    return real, label.flip(1)


def in_coefficients(real, label, rng):
    """Each coefficient from another frame, so that single frames become impossible."""
    flat = real.flatten(0, 1)
    columns = [flat[rng.permutation(len(flat)), k] for k in range(flat.shape[1])]
    return torch.stack(columns, 1).unflatten(0, real.shape[:2]), label


@pytest.mark.parametrize(
    "kind, shuffle", [("frames", in_coefficients), ("sequences", in_time), ("sequences", in_label)]
)
def test_each_discriminator_separates_real_from_shuffled_sequences(kind, shuffle):
    torch.manual_seed(0)
    judge = FrameDiscriminator(6, 32) if kind == "frames" else SequenceDiscriminator(6, 2, 32)

    def scores(series, label):
        return judge(series) if kind == "frames" else judge(series, label)

    real, label, rng = series_for_judges(0)
    optimizer = torch.optim.AdamW(judge.parameters(), 5e-3)
    for _ in range(80 if kind == "frames" else 40):
        optimizer.zero_grad()
        hinge(scores(real, label), scores(*shuffle(real, label, rng))).backward()
        optimizer.step()
    new, label, rng = series_for_judges(1)
    with torch.no_grad():
        true, false = scores(new, label), scores(*shuffle(new, label, rng))
    assert true.shape == (64, T if kind == "frames" else T - SPAN + 1)
    assert ((true > 0).float().mean() + (false < 0).float().mean()) / 2 > (0.8 if kind == "frames" else 0.9)


def test_sequences_shorter_than_a_span_are_refused():
    with pytest.raises(BrainDataError, match="16 frames or more, got 15"):
        SequenceDiscriminator(6, 2)(torch.zeros(1, 15, 6), torch.zeros(1, 2))
    judge = SequenceDiscriminator(6, 2)
    series = torch.randn(1, SPAN + 1, 6)
    moved = series.clone()
    moved[:, 0] += 1
    before, after = (judge(x, torch.zeros(1, 2))[0] for x in (series, moved))
    assert before[0] != after[0] and before[1] == after[1]  # a score reads 16 frames


def held_out(predict):
    """Correlations of speech and of emotion on new clips, of a function (audio, labels) -> trajectories."""
    new = Planted(24, seed=1)
    found, emotions = [], []
    for audio, label in zip(new.audio, new.label, strict=True):
        neutral, own = predict(audio, (NEUTRAL, int(label)))
        found.append(neutral[:, :3])
        emotions.append((own - neutral)[:, 3:].mean(0) - new.offset[label, 3:])
    return correlation(np.array(found), new.speech), np.abs(emotions).max()


def test_the_generator_finds_a_planted_filter_and_planted_emotions(fitted):
    speech, emotion = held_out(lambda audio, labels: trajectories(fitted.generator, audio, labels, 0))
    assert speech >= 0.9
    assert emotion < 0.3  # offsets are 1.5; most of the clips show 1/3 or 2/3 of them


def test_the_label_classifier_reads_the_requested_emotion(fitted):
    new = Planted(24, seed=1)
    asked = np.tile(np.arange(K), 6)
    made = [trajectories(fitted.generator, x, (k,), 0)[0] for x, k in zip(new.audio, asked, strict=True)]
    with torch.no_grad():
        read = fitted.classifier(torch.from_numpy(np.array(made))).argmax(1).numpy()
    assert (read == asked).mean() >= 0.9


def test_training_with_adversaries_reaches_the_same_filter():
    task = trained(Planted(), 60, adversarial=(0.05, 0.05))
    speech, _ = held_out(lambda audio, labels: trajectories(task.generator, audio, labels, 0))
    assert speech >= 0.9


def test_ridge_finds_a_planted_filter_and_planted_emotions():
    source = Planted(unlabelled=16)
    ridge = RidgeSpeech(K).fit(list(source.audio), list(source.target), source.label.tolist(), list(source.alpha))
    speech, emotion = held_out(ridge.trajectories)
    assert speech > 0.99 and emotion < 0.1


def test_the_classifier_reads_the_whole_sequence_of_any_length():
    classifier, series = LabelClassifier(W, K), torch.randn(1, 7, W)
    whole = classifier(series)
    for frame in range(7):
        moved = series.clone()
        moved[:, frame] += 1
        assert not torch.equal(classifier(moved), whole)
