"""Simulated speech: its phonemes, its visemes, its sound, and that the three agree in time."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.signal import butter, sosfilt, welch

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.metrics.sync import mouth_audio, speech_envelope
from brainmodels.simulated.speech import (
    OPENINGS,
    PHONEMES,
    TRANSITION,
    VISEMES,
    Phoneme,
    cut_schedule,
    draw_schedule,
    sentence_of,
    synthesize,
    visemes_of,
)

RATE = 16000
VOWELS = [name for name, sound in PHONEMES.items() if sound.kind == "vowel"]


def openings_of(schedule, frames, fps=25.0):
    weights = visemes_of(schedule, (np.arange(frames) + 0.5) / fps)
    return weights @ np.array([OPENINGS[name] for name in VISEMES])


def level(audio, start, end):
    part = audio[round(start * RATE) : round(end * RATE)]
    return float(np.sqrt(np.mean(np.square(part, dtype=np.float64))))


@pytest.mark.parametrize("seconds", [0.2, 1.28, 10.0])
def test_a_schedule_fills_its_recording(seconds):
    for seed in range(30):
        schedule = draw_schedule(np.random.default_rng(seed), seconds)
        assert schedule[0].start == 0 and schedule[-1].end == seconds
        assert schedule[0].name == schedule[-1].name == "sil"
        assert all(before.end == after.start for before, after in pairwise(schedule))
        assert all(phoneme.end > phoneme.start for phoneme in schedule)
        kinds = [PHONEMES[name].kind == "vowel" for name in sentence_of(schedule).split()]
        assert kinds == [False, True] * (len(kinds) // 2)  # syllables of a consonant and a vowel
        syllables = [b.end - a.start for a, b in pairwise(schedule) if a.name in "p b m f v"]
        assert all(1 / 6 - 1e-9 <= length <= 1 / 3 + 1e-9 for length in syllables)
        again = draw_schedule(np.random.default_rng(seed), seconds)
        assert again == schedule


def test_all_phonemes_are_spoken_and_sentences_differ():
    schedules = [draw_schedule(np.random.default_rng(seed), 2.0) for seed in range(60)]
    assert {phoneme.name for schedule in schedules for phoneme in schedule} == set(PHONEMES)
    assert len({sentence_of(schedule) for schedule in schedules}) == 60
    pauses = sum(phoneme.name == "sil" for schedule in schedules for phoneme in schedule[1:-1])
    assert pauses > 10


def test_visemes_change_within_80_ms_around_the_boundary():
    schedule = [Phoneme("sil", 0.0, 0.3), Phoneme("m", 0.3, 0.5), Phoneme("aa", 0.5, 0.8)]
    times = np.arange(0, 1, 0.0005)
    weights = visemes_of(schedule, times)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    for name, start, end in (("closed", 0.26, 0.34), ("open", 0.46, 0.54)):
        track = weights[:, VISEMES.index(name)]
        rising = times[(track > 0.001) & (track < 0.999) & (times < end + 0.05)]
        assert abs(rising[0] - start) < 0.004 and abs(rising[-1] - end) < 0.004
        np.testing.assert_allclose(track[np.searchsorted(times, (start + end) / 2)], 0.5, atol=0.02)
    assert (weights[times > 0.541, VISEMES.index("open")] == 1).all()  # held at the end
    assert TRANSITION == 0.08


def test_vowels_with_the_same_viseme_do_not_move_the_lips():
    schedule = [Phoneme("ae", 0.0, 0.2), Phoneme("aa", 0.2, 0.4)]
    weights = visemes_of(schedule, np.linspace(0, 0.4, 50))
    np.testing.assert_allclose(weights[:, VISEMES.index("open")], 1, atol=1e-6)


@pytest.mark.parametrize("name", VOWELS)
def test_vowels_have_their_formants(name):
    """Many pitches fill the gaps between harmonics. The slope of the source, 6 dB an octave or more, is taken off."""
    power = 0.0
    for seed in range(12):
        audio = synthesize([Phoneme(name, 0.0, 2.0)], 2.0, RATE, np.random.default_rng(seed))
        hertz, found = welch(audio, RATE, nperseg=1024)
        power = power + found
    spectrum = 10 * np.log10(power) + 20 * np.log10(np.hypot(hertz, 100))
    spectrum = np.convolve(spectrum, np.hanning(9) / np.hanning(9).sum(), "same")
    inner = np.flatnonzero((spectrum[1:-1] > spectrum[:-2]) & (spectrum[1:-1] > spectrum[2:])) + 1
    peaks = hertz[inner[hertz[inner] > 150]]
    for formant in PHONEMES[name].formants:
        nearest = peaks[np.abs(peaks - formant).argmin()]
        assert abs(nearest - formant) < max(40, 0.06 * formant), (name, formant, peaks[:6])


def test_the_other_vowel_has_other_formants():
    """The check above must be able to fail: aa has no peak near the first formant of iy."""
    audio = synthesize([Phoneme("aa", 0.0, 3.0)], 3.0, RATE)
    hertz, power = welch(audio, RATE, nperseg=1024)
    band = lambda centre: power[np.abs(hertz - centre) < 100].mean()  # noqa: E731
    assert band(1090) > 10 * band(2290)


def test_loudness_follows_the_opening_without_lag():
    rs = []
    for seed in range(40):
        rng = np.random.default_rng((7, seed))
        schedule = draw_schedule(rng, 1.28)
        envelope = speech_envelope(synthesize(schedule, 1.28, RATE, rng), RATE, 25, 32)
        found = mouth_audio(openings_of(schedule, 32), envelope, 25)
        assert found.best_lag == 0
        rs.append(found.r)
    assert min(rs) > 0.98 and np.mean(rs) > 0.99  # measured .990 and .995 on other seeds


def test_loudness_follows_the_opening_that_is_asked_for():
    schedule = [Phoneme("iy", 0.0, 0.5), Phoneme("aa", 0.5, 1.0)]
    audio = synthesize(schedule, 1.0, RATE, opening=lambda times: np.where(times < 0.3, 0.2, 0.8))
    for start, end, asked in ((0.05, 0.25, 0.2), (0.35, 0.65, 0.8), (0.65, 0.95, 0.8)):
        assert level(audio, start, end) == pytest.approx(0.15 * asked, rel=0.05)
    silent = synthesize(schedule, 1.0, RATE, opening=np.zeros_like)
    assert 0 < level(silent, 0, 1) < 0.01 * level(audio, 0.35, 0.65) * 2


def test_cuts_keep_what_was_between_them():
    schedule = [Phoneme("sil", 0.0, 0.2), Phoneme("p", 0.2, 0.3), Phoneme("aa", 0.3, 0.6), Phoneme("sil", 0.6, 0.9)]
    kept = cut_schedule(schedule, 0.25, 0.5)
    assert [phoneme.name for phoneme in kept] == ["p", "aa"]
    np.testing.assert_allclose([(x.start, x.end) for x in kept], [(0, 0.05), (0.05, 0.25)], atol=1e-12)
    assert cut_schedule(schedule, 0.0, 0.9) == schedule
    times = np.linspace(0.3, 0.7, 50)  # away from the cuts the visemes are the same
    found, expected = visemes_of(cut_schedule(schedule, 0.1, 0.9), times - 0.1), visemes_of(schedule, times)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for cuts in ((0.5, 0.5), (0.5, 1.0), (-0.1, 0.5)):
        with pytest.raises(BrainDataError, match=r"expected cuts in order from 0 to 0.9 s, got"):
            cut_schedule(schedule, *cuts)


def test_consonants_sound_like_consonants():
    def spoken(name):
        schedule = [Phoneme("sil", 0.0, 0.3), Phoneme(name, 0.3, 0.7), Phoneme("sil", 0.7, 1.0)]
        return synthesize(schedule, 1.0, RATE)

    def share_above(audio, hertz):
        frequencies, power = welch(audio[round(0.36 * RATE) : round(0.64 * RATE)], RATE, nperseg=1024)
        return power[frequencies > hertz].sum() / power.sum()

    def high(audio, start, end):
        return level(sosfilt(butter(4, 2000, "high", output="sos", fs=RATE), audio), start, end)

    quiet = level(spoken("sil"), 0.36, 0.64)
    assert level(spoken("p"), 0.36, 0.64) == pytest.approx(quiet, rel=0.5)  # the closure is silent
    for name in ("m", "b"):
        assert level(spoken(name), 0.36, 0.64) > 3 * quiet and share_above(spoken(name), 1000) < 0.1
    assert share_above(spoken("f"), 2500) > 0.8 and level(spoken("f"), 0.36, 0.64) > 3 * quiet
    assert 0.05 < share_above(spoken("v"), 2500) < 0.95  # noise and voice
    for name, sounds in (("p", True), ("b", True), ("m", False)):  # the burst comes when the lips part
        before, after = (high(spoken(name), *span) for span in ((0.66, 0.672), (0.674, 0.68)))
        assert (after > 5 * before) == sounds, name


def test_the_sound_depends_on_its_arguments_only():
    schedule = draw_schedule(np.random.default_rng(0), 1.0)
    first, again, other = (synthesize(schedule, 1.0, RATE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(synthesize(schedule, 1.0), synthesize(schedule, 1.0, rng=np.random.default_rng(0)))
    for rate in (8000, 16000, 22050, 48000):
        audio = synthesize(schedule, 1.0, rate)
        assert audio.shape == (rate,) and audio.dtype == np.float32 and np.isfinite(audio).all()
        assert 0.1 < np.abs(audio).max() < 1


def test_bad_arguments_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(BrainDataError, match=r"expected a recording of 0.2 s or more, got 0.1 s"):
        draw_schedule(rng, 0.1)
    with pytest.raises(BrainDataError, match="one or more phonemes, got none"):
        visemes_of([], np.zeros(3))
    with pytest.raises(BrainDataError, match=r"expected phoneme to be one of .*, got 'oo'"):
        visemes_of([Phoneme("oo", 0.0, 1.0)], np.zeros(3))
    gap = [Phoneme("aa", 0.0, 0.4), Phoneme("p", 0.5, 1.0)]
    with pytest.raises(BrainDataError, match=r"without gaps, .* got p from 0.5 to 1 s after 0.4 s"):
        synthesize(gap, 1.0)
    with pytest.raises(BrainDataError, match=r"got aa from 1 to 0.5 s"):
        synthesize([Phoneme("aa", 1.0, 0.5)], 1.0)
    fine = [Phoneme("aa", 0.0, 1.0)]
    with pytest.raises(AxisError, match=r"finite times \(T,\), got \(2, 2\)"):
        visemes_of(fine, np.zeros((2, 2)))
    with pytest.raises(BrainDataError, match="expected 8000 Hz or more and a positive length, got 4000 Hz and 1 s"):
        synthesize(fine, 1.0, 4000)
    for wrong in (lambda times: times - 0.5, lambda times: times[:-1], lambda times: times * np.nan):
        with pytest.raises(BrainDataError, match=r"expected finite openings \(16000,\) of 0 or more, got others of \("):
            synthesize(fine, 1.0, opening=wrong)
