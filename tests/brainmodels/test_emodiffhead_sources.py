"""Emotions from labels, mixtures, coefficients, clips and decoded responses, against planted trajectories."""

import json

import numpy as np
import pytest

from brainmodels.baselines import Ridge
from brainmodels.data.clips import EMOTIONS, TalkingClip
from brainmodels.errors import AxisError, BrainDataError
from brainmodels.heads import NAMED, ExpressionSpace, ToyHead
from brainmodels.systems.emodiffhead import brain, sources
from brainmodels.systems.emodiffhead.brain import brain_demo
from brainmodels.systems.emodiffhead.sources import BRAIN_NOTE, EmotionSource

T, E, J, FPS = 20, 5, 3, 25.0
TIMES = (np.arange(T) + 0.5) / FPS
TRUE = np.random.default_rng(0).normal(size=(len(EMOTIONS), T, E + J)).astype(np.float32)
HAPPY, SURPRISE = EMOTIONS.index("happy"), EMOTIONS.index("surprise")


class Space:
    """Coefficients times 2; the first two and the jaw are mouth, and hiding takes their mean over time."""

    def whiten(self, exp, jaw):
        return (2 * np.concatenate((exp, jaw), 1)).astype(np.float32)

    def unwhiten(self, w):
        return w[:, :E] / 2, w[:, E:] / 2

    def hide(self, w, fps):
        mouth = np.isin(np.arange(E + J), [0, 1, E, E + 1, E + 2])
        return np.where(mouth, w.mean(0), w).astype(np.float32)


class Runs:
    """A generator with the trajectories TRUE, which notes what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, labels):
        self.asked.append(tuple(labels))
        return TRUE[list(labels)]


def whitened(source, intensity=1.0, run=None, **options):
    return source.whitened(run or Runs(), Space(), TIMES, FPS, intensity, **options)


def mixed(weights):
    """Neutral + sum of weights (T,) times differences, in fp64."""
    found = TRUE[0].astype(np.float64)
    for k, weight in weights.items():
        found = found + np.broadcast_to(weight, T)[:, None] * (TRUE[k].astype(np.float64) - TRUE[0])
    return found


def test_a_label_blends_neutral_and_its_emotion():
    run = Runs()
    np.testing.assert_allclose(whitened(EmotionSource.from_label("hap"), 0.3, run), mixed({HAPPY: 0.3}), atol=1e-6)
    assert run.asked == [(0, HAPPY)]
    ramp = EmotionSource.from_label("happy", alpha=lambda t: t)
    np.testing.assert_allclose(whitened(ramp, 0.5), mixed({HAPPY: TIMES / 2}), atol=1e-6)
    assert ramp.provenance == {"source": "label", "emotion": "happy"}
    with pytest.raises(BrainDataError, match="near: happy"):
        EmotionSource.from_label("happyy")


def test_no_intensity_is_the_same_for_every_source():
    np.testing.assert_array_equal(whitened(EmotionSource.from_label("neutral")), TRUE[0])
    others = [EmotionSource.from_label(name) for name in EMOTIONS]
    others += [EmotionSource.from_mixture({"happy": 0.5, "sad": 0.5}), EmotionSource.from_vector(np.ones(E))]
    for source in [*others, EmotionSource.from_vector(np.ones((T, E)))]:
        np.testing.assert_array_equal(whitened(source, 0.0), TRUE[0])


def test_mixtures_add_and_keep_to_the_range():
    source = EmotionSource.from_mixture({"happy": 0.5, "surprised": 0.3, "neutral": 9.0})
    np.testing.assert_allclose(whitened(source, 0.5), mixed({HAPPY: 0.25, SURPRISE: 0.15}), atol=1e-6)
    assert source.labels == (HAPPY, SURPRISE)
    with pytest.raises(BrainDataError, match=r"from 0 to 1.*got 1.2"):
        whitened(source, 1.5)
    found = whitened(source, 1.5, allow_extrapolation=True)
    np.testing.assert_allclose(found, mixed({HAPPY: 0.75, SURPRISE: 0.45}), atol=1e-6)
    whitened(source, 1.5, trained_alpha_max=1.3)
    for name in ("happy", "neutral"):
        with pytest.raises(BrainDataError, match="got 2"):
            whitened(EmotionSource.from_label(name), 2.0)
    with pytest.raises(BrainDataError, match="different emotions"):
        EmotionSource.from_mixture({"happy": 0.5, "joy": 0.3})
    with pytest.raises(BrainDataError, match="different emotions"):
        EmotionSource.from_mixture({})


def test_vectors_of_a_face_keep_speech_and_vectors_of_frames_replace_it():
    raw, v = TRUE[0] / 2, np.arange(1.0, E + 1)
    fast = np.where(np.arange(E) < 2, raw[:, :E] - raw[:, :E].mean(0), 0)
    found = whitened(EmotionSource.from_vector(v))
    np.testing.assert_allclose(found[:, :E] / 2, v + fast, atol=1e-5)
    np.testing.assert_allclose(found[:, E:], TRUE[0][:, E:], atol=1e-6)
    found = whitened(EmotionSource.from_vector(v, jaw=[0.2, 0, 0]))
    np.testing.assert_allclose(found[:, E] / 2, 0.2 + raw[:, E] - raw[:, E].mean(), atol=1e-5)
    series = np.random.default_rng(1).normal(size=(T, E))
    found = whitened(EmotionSource.from_vector(series), 0.5)
    np.testing.assert_allclose(found[:, :E] / 2, (raw[:, :E] + series) / 2, atol=1e-5)
    with pytest.raises(AxisError, match="vectors of 20 frames, got 19"):
        whitened(EmotionSource.from_vector(series[1:]))
    with pytest.raises(AxisError, match="jaw of 20 frames, got 19"):
        EmotionSource.from_vector(series, np.zeros((T - 1, J)))
    with pytest.raises(BrainDataError, match="finite numbers in a vector"):
        EmotionSource.from_vector([np.nan] * E)
    with pytest.raises(BrainDataError, match="either weights or a vector"):
        EmotionSource()


def test_a_direction_of_a_head_moves_its_face_and_not_its_speech():
    head, rng = ToyHead(), np.random.default_rng(0)
    spoken = np.sin(2 * np.pi * 5 * TIMES)[:, None]  # a syllable each 200 ms
    exp = 0.1 * spoken * head.mix(np.eye(12)[NAMED.index("round")]) + 0.01 * rng.normal(size=(T, 12))
    jaw = (0.2 + 0.1 * spoken) * [[1.0, 0, 0]]
    space = ExpressionSpace.fit(exp, jaw, head)
    neutral, (v, v_jaw) = space.whiten(exp, jaw), head.emotion("happy")
    source = EmotionSource.from_vector(v, v_jaw)
    found, found_jaw = space.unwhiten(source.whitened(lambda labels: neutral[None], space, TIMES, FPS))
    np.testing.assert_allclose(found.mean(0), v, atol=0.02)
    lips = head.unmix(found)[:, NAMED.index("round")]
    assert np.corrcoef(lips, spoken[:, 0])[0, 1] > 0.9
    np.testing.assert_allclose(found_jaw[:, 0], v_jaw[0] + 0.1 * (spoken - spoken.mean())[:, 0], atol=1e-4)


def clip(name, exp, emotion, identity="m1", frames=T):
    exp, jaw = np.full((frames, E), exp, np.float32), np.full((frames, J), exp / 10, np.float32)
    return TalkingClip(name, identity, name, FPS, exp, jaw, np.zeros(frames * 640, np.float32), 16000, emotion=emotion)


def test_clips_give_their_mean_offset_from_the_neutral_face():
    clips = [clip("a", 3.0, "happy"), clip("b", 6.0, "happy", "m2", 2 * T), clip("c", 50.0, "sad")]
    plain = EmotionSource.from_clips(clips, "joy")
    np.testing.assert_allclose(plain.vector, [5.0] * E + [0.5] * J, rtol=1e-6)  # frames count, not clips
    assert plain.slow and plain.provenance == {"source": "clips", "emotion": "happy", "clips": ["a", "b"]}
    neutral = {"m2": (np.full(E, 3.0), np.full(J, 0.3))}
    np.testing.assert_allclose(EmotionSource.from_clips(clips, "happy", neutral).vector, [3.0] * E + [0.3] * J)
    with pytest.raises(BrainDataError, match="clips of fear, got none"):
        EmotionSource.from_clips(clips, "fear")


class Decoder:
    """Reads the targets that responses begin with."""

    def __init__(self, width=8):
        self.width = width

    def predict(self, responses):
        return responses[:, : self.width]


def one(**weights):
    found = np.zeros(len(EMOTIONS) + 4)
    for name, weight in weights.items():
        found[EMOTIONS.index(name)] = weight
    return found


def test_decoded_mixtures_are_clipped_at_zero():
    source = EmotionSource.from_brain(Decoder(), one(happy=0.5, sad=-0.4, surprise=0.2, neutral=3.0))
    np.testing.assert_allclose(whitened(source), mixed({HAPPY: 0.5, SURPRISE: 0.2}), atol=1e-6)
    assert source.provenance["note"] == BRAIN_NOTE and source.provenance["decoder"] == "Decoder"
    assert json.loads(json.dumps(source.provenance))["weights"]["happy"] == [0.5]
    strong = one(happy=0.9, sad=0.6)
    with pytest.raises(BrainDataError, match=r"got 1.5"):
        whitened(EmotionSource.from_brain(Decoder(), strong))
    limited = EmotionSource.from_brain(Decoder(), strong, limit=1.0)
    expected = mixed({HAPPY: 0.6, EMOTIONS.index("sad"): 0.4})
    np.testing.assert_allclose(whitened(limited), expected, atol=1e-6)
    assert limited.provenance["scaled_down"] == 1
    assert EmotionSource.from_brain(Decoder(), one(happy=0.9), limit=1.0).provenance["scaled_down"] == 0


def test_several_responses_are_a_course_in_time():
    responses = np.stack([one(happy=0.2), one(happy=0.8)])
    source = EmotionSource.from_brain(Decoder(), responses, times=[0.1, 0.5])
    expected = np.interp(TIMES, [0.1, 0.5], [0.2, 0.8])
    np.testing.assert_allclose(whitened(source), mixed({HAPPY: expected}), atol=1e-6)
    with pytest.raises(AxisError, match="times of 2 responses in seconds, got none"):
        EmotionSource.from_brain(Decoder(), responses)
    with pytest.raises(BrainDataError, match="times that rise"):
        EmotionSource.from_brain(Decoder(), responses, times=[0.5, 0.1])
    with pytest.raises(AxisError, match=r"times \(2,\)"):
        EmotionSource.from_brain(Decoder(), responses, times=[0.5])


def test_decoded_expressions_keep_speech():
    v = np.arange(1.0, E + 1)
    still = EmotionSource.from_brain(Decoder(E), np.append(v, 0), "expression")
    np.testing.assert_array_equal(whitened(still), whitened(EmotionSource.from_vector(v)))
    moving = EmotionSource.from_brain(Decoder(E), np.stack([v, 3 * v]), "expression", times=TIMES[[0, -1]])
    slope = 1 + 2 * np.arange(T) / (T - 1)
    difference = whitened(moving)[:, :E] - whitened(still)[:, :E]
    np.testing.assert_allclose(difference / 2, (slope - 1)[:, None] * v, atol=1e-5)


def test_bad_decoders_are_named():
    with pytest.raises(AxisError, match="8 decoded numbers, one an emotion, got 5"):
        EmotionSource.from_brain(Decoder(5), one())
    with pytest.raises(BrainDataError, match="space to be one of mixture, expression"):
        EmotionSource.from_brain(Decoder(), one(), "valence")
    with pytest.raises(BrainDataError, match="finite numbers in responses"):
        EmotionSource.from_brain(Decoder(), one(happy=np.inf))


def test_what_a_user_passes_becomes_a_source():
    source = EmotionSource.from_label("sad")
    assert EmotionSource.of(source) is source
    assert EmotionSource.of("joy").provenance["emotion"] == "happy"
    assert EmotionSource.of({"happy": 0.5}).weights == {"happy": 0.5}
    assert EmotionSource.of(np.ones(E)).slow and not EmotionSource.of(np.ones((T, E))).slow


def test_the_note_stands_wherever_the_brain_does():
    def words(text):
        return " ".join(text.replace("**", "").split())

    for text in (sources.__doc__, brain.__doc__, brain_demo.__doc__, EmotionSource.from_brain.__doc__):
        assert BRAIN_NOTE in words(text)


def test_a_planted_mixture_is_recovered_above_chance():
    seen = []
    found = brain_demo(permutations=200, animate=lambda source: seen.append(source) or "moved")
    assert found.values["correlation"] > 0.7 and found.values["emotion_accuracy"] > 0.6
    for name in found.values:
        assert not found.at_chance(name) and found.chance[name].p_up == pytest.approx(1 / 201)
    assert found.chance["emotion_accuracy"].mean == pytest.approx(1 / 7, abs=0.02)
    assert all(_inside(found, name) for name in found.values)
    assert found.animation == "moved" and seen == [found.source]
    whitened(found.source)  # within the trained range
    assert BRAIN_NOTE in str(found) and "outside chance" in str(found) and "prior_only" in str(found)


def test_noise_is_decoded_at_chance():
    found = brain_demo(snr_scale=0.0, permutations=200)
    assert all(found.at_chance(name) and _inside(found, name) for name in found.values), str(found)
    assert "outside" not in str(found)
    with pytest.raises(BrainDataError, match="snr_scale of 0 or more, got -1"):
        brain_demo(snr_scale=-1)


def _inside(found, name):
    """Whether all controls lie within chance."""
    interval = found.chance[name].interval
    return all(interval.low <= runs.mean(name) <= interval.high for runs in found.controls.values())


def test_a_ridge_decoder_gives_back_the_mixture():
    rng = np.random.default_rng(0)
    mixtures = np.eye(len(EMOTIONS), dtype=np.float32)[rng.integers(1, len(EMOTIONS), 200)] * rng.random((200, 1))
    weights = rng.normal(size=(len(EMOTIONS), 40))
    decoder = Ridge(alphas=(1e-2,), device="cpu").fit((mixtures @ weights).astype(np.float32), mixtures)
    source = EmotionSource.from_brain(decoder, one(happy=0.7)[:8] @ weights)
    np.testing.assert_allclose(source.weights["happy"], 0.7, atol=0.01)
    assert max(weight for name, weight in source.weights.items() if name != "happy") < 0.01
