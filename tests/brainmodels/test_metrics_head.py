"""Sync, leak, intensity, identity and jerk against planted signals."""

import logging

import numpy as np
import pytest

from brainmodels.errors import AlignmentError, AxisError, BrainDataError
from brainmodels.metrics import list_metrics, metric
from brainmodels.metrics.head import (
    ALPHAS,
    emotion_score,
    identity_scores,
    intensity_scores,
    jerk,
    jerk_score,
    weighted_scores,
)
from brainmodels.metrics.sync import SwappedClip, mouth_audio, speech_envelope, swap_leak, swap_partners, sync_scores

FPS = 25


def by_name(scores):
    return {score.metric.name: score for score in scores}


def openings(clips=12, frames=75, seed=0):
    """Mouth openings with syllables at a few hertz."""
    noise = np.random.default_rng(seed).normal(size=(clips, frames + 8))
    return np.stack([np.convolve(row, np.hanning(9), "valid") for row in noise])


def swapped(renderer, seed=0):
    """Clips whose mouth `renderer(audio opening, expression opening)` makes."""
    true = openings(seed=seed)
    pairing = swap_partners(true)
    envelopes = np.abs(true + 0.1 * np.random.default_rng(seed + 1).normal(size=true.shape))
    return [
        SwappedClip(str(a), str(b), renderer(true[b], true[a]), envelopes[b], expression=true[a], audio=true[b])
        for a, b in pairing.pairs
    ]


def test_envelope_is_the_rms_of_each_frame():
    rng = np.random.default_rng(0)
    rate, frames = 1000, 10
    loudness = rng.random(frames) + 0.1
    audio = np.repeat(loudness, rate // FPS) * rng.choice([-1, 1], frames * rate // FPS)
    np.testing.assert_allclose(speech_envelope(audio, rate, FPS, frames), loudness)
    for cut in (30, -30):  # less than a frame of 40 samples
        assert len(speech_envelope(np.resize(audio, len(audio) + cut), rate, FPS, frames)) == frames
    with pytest.raises(AlignmentError, match=r"0.400 s for 10 frames at 25 Hz, got 0.300 s"):
        speech_envelope(audio[:300], rate, FPS, frames)


def test_late_video_has_a_positive_lag():
    sound = openings(1)[0]
    sync = mouth_audio(np.roll(sound, 3), sound, FPS)
    assert (sync.best_lag, sync.best_lag_ms) == (3, 120) and sync.best_r == pytest.approx(1)
    assert mouth_audio(np.roll(sound, -2), sound, FPS).best_lag == -2
    exact = mouth_audio(2 * sound + 1, sound, FPS)
    assert exact.r == pytest.approx(1) and exact.best_lag == 0
    noisy = sound + np.random.default_rng(1).normal(size=75)
    assert mouth_audio(noisy, sound, FPS).r == pytest.approx(np.corrcoef(noisy, sound)[0, 1])
    assert mouth_audio(np.ones(75), sound, FPS).r == 0
    with pytest.raises(AlignmentError, match="nothing is cut"):
        mouth_audio(sound[1:], sound, FPS)


def test_partners_have_openings_that_do_not_correlate(caplog):
    true = openings(12, 30)
    pairing = swap_partners(true, partners=5)
    assert len(pairing.pairs) == len(set(pairing.pairs)) == 60 and all(a != b for a, b in pairing.pairs)
    assert pairing.floor == pytest.approx(np.mean([np.corrcoef(true[a], true[b])[0, 1] for a, b in pairing.pairs]))
    assert abs(pairing.floor) < 0.03
    common = true[:1] + 0.1 * true
    with caplog.at_level(logging.WARNING):
        assert swap_partners(common).floor > 0.9
    assert "more than 0.03" in caplog.text
    with pytest.raises(AxisError, match="more than 5 clips"):
        swap_partners(true[:5])


def test_leak_of_two_renderers():
    """One opens the mouth by the sound, one partly by the expression: matched clips cannot tell them apart."""
    reads = swap_leak(swapped(lambda audio, expression: 0.6 * audio + 0.4 * expression))
    hears = swap_leak(swapped(lambda audio, expression: audio))
    assert reads.leak > 0.3 and hears.leak < 0.1
    assert reads.leak == pytest.approx(0.4, abs=0.02) and hears.leak == pytest.approx(0, abs=1e-9)
    assert swap_leak(swapped(lambda audio, expression: expression)).leak > 0.9
    true = openings()
    matched = [mouth_audio(0.6 * x + 0.4 * x, x, FPS).r for x in true]
    assert np.mean(matched) == pytest.approx(1)


def test_leak_is_a_joint_regression():
    """Openings that correlate: plain correlations see a leak that is none, and hide half of one."""
    rng = np.random.default_rng(3)
    clips = []
    for _ in range(40):
        shared, a, b = rng.normal(size=(3, 60))
        audio, expression = a + shared, b + shared
        clips.append((audio, expression))
    for weight in (0.0, 0.5):
        made = [SwappedClip("a", "b", x + weight * y, x, y) for x, y in clips]
        leak = swap_leak(made)
        z = [[(s - s.mean()) / s.std() for s in (c.rendered, c.envelope, c.expression)] for c in made]
        mouth, new, old = (np.concatenate(series) for series in zip(*z, strict=True))
        weights = np.linalg.lstsq(np.stack([new, old], 1), mouth, rcond=None)[0]
        np.testing.assert_allclose([leak.new, leak.old], weights, atol=1e-10)
        assert leak.r_old > 0.4 and leak.floor == pytest.approx(0.5, abs=0.1)
        assert leak.leak == pytest.approx(weight / (1 + weight), abs=1e-2)


def test_sync_scores():
    clips = swapped(lambda audio, expression: 0.7 * audio + 0.3 * expression)
    matched = [(clip.audio, clip.envelope) for clip in clips[:6]]
    found = by_name(sync_scores(clips, FPS, matched, resamples=200))
    leak = swap_leak(clips)
    assert found["swap_leak"].value == leak.leak and found["swap_leak"].value in found["swap_leak"].interval
    assert f"floor {leak.floor:.3f}" in found["swap_leak"].note and found["swap_leak"].interval.low > 0.2
    expected = np.mean([np.corrcoef(clip.rendered, clip.envelope)[0, 1] for clip in clips])
    assert found["mouth_audio_r"].value == pytest.approx(expected)
    assert found["mouth_audio_r[matched]"].n == 6 and "ms" in found["mouth_audio_best_lag"].note
    still = by_name(sync_scores(swapped(lambda audio, expression: np.ones(75)), FPS, resamples=50))
    assert not still["swap_leak"].available and "neither" in still["swap_leak"].note
    assert still["mouth_audio_r"].value == 0
    with pytest.raises(BrainDataError, match="constant"):
        swap_leak([SwappedClip("a", "b", clips[0].rendered, np.ones(75), clips[0].expression)])


def test_intensity():
    rng = np.random.default_rng(4)
    asked = np.array(ALPHAS)
    exact = 2 * asked + rng.normal(size=(20, 1))
    found = by_name(intensity_scores(0.9 * exact + 5, exact, resamples=100))
    assert found["intensity_slope"].value == pytest.approx(0.9) and found["intensity_r2"].value == pytest.approx(1)
    noisy = exact + rng.normal(size=exact.shape)
    found = by_name(intensity_scores(noisy, exact, resamples=100))
    slopes = [np.polyfit(asked, row, 1)[0] for row in noisy]
    assert found["intensity_slope"].value == pytest.approx(np.mean(slopes) / 2)
    assert found["intensity_slope"].value in found["intensity_slope"].interval
    assert found["intensity_r2"].value == pytest.approx(np.mean([np.corrcoef(asked, x)[0, 1] ** 2 for x in noisy]))
    assert by_name(intensity_scores(np.ones((20, 5)), exact))["intensity_r2"].value == 0
    with pytest.raises(BrainDataError, match="rise with alpha"):
        intensity_scores(exact, -exact)


def test_identity_drift():
    seconds = np.arange(100) / FPS
    distances = np.stack([0.1 + 0.02 * seconds, 0.2 + 0.04 * seconds])
    found = by_name(identity_scores(distances, FPS, resamples=50))
    assert found["identity_drift_per_s"].value == pytest.approx(0.03)
    assert found["identity_drift"].value == pytest.approx(distances[:, 75:].mean())
    same = by_name(identity_scores(np.zeros((2, 100)), FPS, resamples=50))
    for name, score in same.items():
        assert score.value == 0 and metric(name).better(0, found[name].value)


def test_jerk_is_in_units_of_time():
    seconds = np.arange(50) / FPS
    assert jerk(np.stack([seconds**3, 2 * seconds**3], 1), FPS) == pytest.approx((6 + 12) / 2)
    assert jerk(seconds**2, FPS) == pytest.approx(0, abs=1e-6)
    true = list(openings(5))
    score = jerk_score([2 * x for x in true], true, FPS, resamples=50)
    assert score.value == pytest.approx(2) and score.interval.low == pytest.approx(2)
    with pytest.raises(AxisError, match="shapes"):
        jerk_score(true, [x[1:] for x in true], FPS)


def test_emotion_accuracy():
    rng = np.random.default_rng(5)
    labels = np.repeat(["neutral", "happy", "sad", "angry"], 10)
    predicted = np.where(rng.random(40) < 0.8, labels, rng.permutation(labels))
    score = emotion_score(predicted, labels, "linear", resamples=200)
    assert score.metric.name == "emotion_accuracy[linear]" and score.value == np.mean(predicted == labels)
    assert score.chance == pytest.approx(0.25, abs=0.02) and not score.at_chance
    constant = emotion_score(np.full(40, "happy"), labels, "linear", resamples=50)
    assert constant.value == constant.chance == 0.25 and constant.at_chance


def test_what_needs_weights_is_never_replaced():
    rows = by_name(weighted_scores())
    assert set(rows) == {"lse_d", "lse_c", "fid", "fvd"} <= set(list_metrics(offline=False))
    for row in rows.values():
        assert not row.available and row.value is None and "not available (needs weights" in str(row)
        assert "path=" not in str(row) and "no option of this package loads them" in row.note
