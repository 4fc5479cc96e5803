"""Speech from a known schedule of phonemes: its sound, its visemes and the times of both.

    rng = np.random.default_rng(0)
    schedule = draw_schedule(rng, 2.0)
    audio = synthesize(schedule, 2.0, rng=rng)                      # (32000,) at 16 kHz
    weights = visemes_of(schedule, (np.arange(50) + 0.5) / 25)      # (50, 6), at the middle of each frame

The loudness of a vowel is the opening of its mouth, so the sound and the lips agree at every instant. Vowels are pulse
trains through three two-pole resonators. Their formants are the means of men in Peterson and Barney (1952).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, lfilter, sosfilt

from ..errors import AxisError, BrainDataError, check_choice

__all__ = [
    "OPENINGS",
    "PHONEMES",
    "TRANSITION",
    "VISEMES",
    "Phoneme",
    "Sound",
    "cut_schedule",
    "draw_schedule",
    "sentence_of",
    "synthesize",
    "visemes_of",
]

VISEMES = ("rest", "closed", "lip_teeth", "spread", "open", "round")
OPENINGS = {"rest": 0.0, "closed": 0.0, "lip_teeth": 0.1, "spread": 0.4, "open": 1.0, "round": 0.6}
"""Mouth opening of each viseme, relative to the widest. The sound is as loud."""
TRANSITION = 0.08
"""Seconds from one viseme to the next, centred at the boundary of their phonemes."""


class Sound(NamedTuple):
    """How a phoneme sounds and looks.

    Attributes:
        kind: "vowel", "stop", "nasal", "fricative" or "silence".
        viseme: One of `VISEMES`.
        voiced: Whether the vocal folds move.
        formants: Centres of three resonances in hertz. Empty unless the phoneme is a vowel.
    """

    kind: str
    viseme: str
    voiced: bool = False
    formants: tuple[float, ...] = ()


class Phoneme(NamedTuple):
    """A phoneme of a schedule.

    Attributes:
        name: A key of `PHONEMES`.
        start: Start in seconds.
        end: End in seconds.
    """

    name: str
    start: float
    end: float


PHONEMES: dict[str, Sound] = {
    "sil": Sound("silence", "rest"),
    "p": Sound("stop", "closed"),
    "b": Sound("stop", "closed", True),
    "m": Sound("nasal", "closed", True),
    "f": Sound("fricative", "lip_teeth"),
    "v": Sound("fricative", "lip_teeth", True),
    "iy": Sound("vowel", "spread", True, (270.0, 2290.0, 3010.0)),
    "eh": Sound("vowel", "spread", True, (530.0, 1840.0, 2480.0)),
    "ae": Sound("vowel", "open", True, (660.0, 1720.0, 2410.0)),
    "aa": Sound("vowel", "open", True, (730.0, 1090.0, 2440.0)),
    "ao": Sound("vowel", "round", True, (570.0, 840.0, 2410.0)),
    "uw": Sound("vowel", "round", True, (300.0, 870.0, 2240.0)),
}

_LEAD = (0.04, 0.14)  # seconds of silence at the start
_CONSONANT = (0.08, 0.1)  # seconds; not shorter than a transition, so that the lips arrive
_PAUSE = (0.14, 0.3)  # seconds
_PAUSES = 0.1  # probability of a pause after a syllable
_SYLLABLES = (3.2, 5.6)  # mean rate of a recording, 1/s
_SLOWEST, _FASTEST = 1 / 3, 1 / 6  # seconds of a syllable
_PITCH = (100.0, 145.0)  # mean pitch of a recording, Hz
_BANDWIDTHS = (60.0, 90.0, 150.0)  # of the three resonances, Hz
_LOUD = 0.15  # root mean square of the widest vowel; its peaks stay below 1
_MURMUR, _BURST, _BREATH = 0.06, 0.3, 0.008  # levels relative to the widest vowel


def draw_schedule(rng: np.random.Generator, seconds: float) -> list[Phoneme]:
    """Draw the phonemes of a recording: syllables of a consonant and a vowel, with pauses.

    There are 3 to 6 syllables a second. The recording starts and ends with silence.

    Args:
        rng: Source of random numbers.
        seconds: Length of the recording, 0.2 or more.

    Returns:
        Phonemes in the order of time. Each starts where the one before ends, the first at 0, and the last ends at
        `seconds`.

    Raises:
        BrainDataError: The recording is shorter than 0.2 s.
    """
    if not seconds >= 0.2:
        raise BrainDataError(f"expected a recording of 0.2 s or more, got {seconds:g} s")
    consonants = [name for name, sound in PHONEMES.items() if sound.kind not in ("vowel", "silence")]
    vowels = [name for name, sound in PHONEMES.items() if sound.kind == "vowel"]
    rate = rng.uniform(*_SYLLABLES)
    clock = min(float(rng.uniform(*_LEAD)), seconds / 4)
    schedule = [Phoneme("sil", 0.0, clock)]
    while True:
        length = float(np.clip(rng.uniform(0.85, 1.15) / rate, _FASTEST, _SLOWEST))
        consonant = float(rng.uniform(*_CONSONANT))
        names = consonants[rng.integers(len(consonants))], vowels[rng.integers(len(vowels))]
        if clock + length > seconds - TRANSITION / 2:
            break
        for name, end in zip(names, (clock + consonant, clock + length), strict=True):
            schedule.append(Phoneme(name, schedule[-1].end, end))
        clock += length
        if rng.random() < _PAUSES:
            clock = min(clock + float(rng.uniform(*_PAUSE)), seconds)
            schedule.append(Phoneme("sil", schedule[-1].end, clock))
    if schedule[-1].name == "sil":
        schedule[-1] = schedule[-1]._replace(end=seconds)
    else:
        schedule.append(Phoneme("sil", clock, seconds))
    return schedule


def cut_schedule(schedule: Sequence[Phoneme], start: float, end: float) -> list[Phoneme]:
    """The phonemes from one time to another. Those at the cuts become shorter, and times count from the first cut.

    Args:
        schedule: Phonemes in the order of time, without gaps.
        start: First cut in seconds.
        end: Last cut in seconds.

    Raises:
        BrainDataError: The schedule is empty, has gaps or an unknown phoneme, or does not last from `start` to `end`.
    """
    _check(schedule)
    if not schedule[0].start <= start < end <= schedule[-1].end + 1e-9:
        raise BrainDataError(
            f"expected cuts in order from {schedule[0].start:g} to {schedule[-1].end:g} s, got {start:g} and {end:g} s"
        )
    kept = [phoneme for phoneme in schedule if phoneme.start < end and phoneme.end > start]
    bounds = [0.0, *(phoneme.start - start for phoneme in kept[1:]), end - start]
    return [Phoneme(phoneme.name, *bounds[place : place + 2]) for place, phoneme in enumerate(kept)]


def sentence_of(schedule: Sequence[Phoneme]) -> str:
    """The sentence that is spoken: names of its phonemes without silences, such as "m aa p iy"."""
    return " ".join(phoneme.name for phoneme in schedule if PHONEMES[phoneme.name].kind != "silence")


def visemes_of(schedule: Sequence[Phoneme], times: np.ndarray) -> np.ndarray:
    """Weights of the visemes at given times. They sum to 1.

    A weight moves along half a cosine from 40 ms before the boundary of two phonemes to 40 ms after it. Before the
    start and after the end of the schedule the first and the last viseme are held.

    Args:
        schedule: Phonemes in the order of time, without gaps.
        times: (T,) Seconds.

    Returns:
        fp32 (T, 6), in the order of `VISEMES`.

    Raises:
        BrainDataError: The schedule is empty, has gaps, or an unknown phoneme.
        AxisError: `times` is not (T,), or not finite.
    """
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise AxisError(f"expected finite times (T,), got {times.shape}")
    _check(schedule)
    weights = np.zeros((len(times), len(VISEMES)))
    for place, phoneme in enumerate(schedule):
        weights[:, VISEMES.index(PHONEMES[phoneme.name].viseme)] += _share(schedule, place, times)
    return weights.astype(np.float32)


def synthesize(
    schedule: Sequence[Phoneme],
    seconds: float,
    sample_rate: int = 16000,
    rng: np.random.Generator | None = None,
    opening: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Sound of a schedule.

    Vowels, f and v are as loud as the mouth is open. The noise of f and v is high-passed, and v has voice too. A murmur
    stands for b and m. Where a phoneme follows, p and b end with a burst. Pauses hold a faint breath. The pitch falls
    over the recording and rises on some vowels.

    Args:
        schedule: Phonemes in the order of time, without gaps.
        seconds: Length of the sound. After the schedule its last phoneme is held.
        sample_rate: Sample rate in hertz, 8000 or more.
        rng: Source of pitch and noise. None starts a generator with seed 0.
        opening: Function of times (n,) in seconds that gives the mouth opening, relative to the widest. None takes
            `OPENINGS` of the visemes.

    Returns:
        fp32 (round(seconds * sample_rate),) in [-1, 1].

    Raises:
        BrainDataError: The schedule is empty, has gaps or an unknown phoneme, the sample rate is too low, the length is
            not positive, or an opening is negative or not finite.
    """
    if sample_rate < 8000 or round(seconds * sample_rate) < 1:
        raise BrainDataError(
            f"expected 8000 Hz or more and a positive length, got {sample_rate:g} Hz and {seconds:g} s"
        )
    _check(schedule)
    rng = np.random.default_rng(0) if rng is None else rng
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    pulses = _pulses(_pitch(schedule, times, rng), sample_rate)
    noise = rng.normal(size=len(times))
    murmur = _level(_resonate(pulses, (250.0,), sample_rate), sample_rate)
    voices = _voices({phoneme.name for phoneme in schedule}, pulses, murmur, noise, sample_rate)
    loud, power, quiet = (np.zeros(len(times)) for _ in range(3))
    for place, phoneme in enumerate(schedule):
        kind, _, voiced, _ = PHONEMES[phoneme.name]
        rows = slice(
            int(np.searchsorted(times, phoneme.start - TRANSITION / 2)) if place else 0,
            int(np.searchsorted(times, phoneme.end + TRANSITION / 2)) if place + 1 < len(schedule) else len(times),
        )
        share = _share(schedule, place, times[rows])
        if phoneme.name in voices:
            loud[rows] += share * voices[phoneme.name][rows]
            power[rows] += np.square(share)
        elif voiced:
            quiet[rows] += _MURMUR * share * murmur[rows]
        if kind == "stop" and place + 1 < len(schedule):
            since = times[rows] - (phoneme.end - TRANSITION / 3)  # the lips have just parted
            quiet[rows] += np.where(since >= 0, _BURST * np.exp(-since.clip(0) / 0.004), 0.0) * noise[rows]
    quiet += _BREATH * _level(lfilter([1.0], [1.0, -0.9], rng.normal(size=len(times))), sample_rate)
    loudness = _loudness(schedule, times, opening)
    sound = loudness * loud / np.sqrt(np.maximum(power, 1e-6)) + quiet  # powers add: the voices of a transition differ
    return (_LOUD * sound).astype(np.float32)


def _loudness(
    schedule: Sequence[Phoneme], times: np.ndarray, opening: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    if opening is None:
        return visemes_of(schedule, times) @ np.array([OPENINGS[name] for name in VISEMES])
    found = np.asarray(opening(times), np.float64)
    if found.shape != times.shape or not (np.isfinite(found).all() and found.min() >= 0):
        raise BrainDataError(f"expected finite openings {times.shape} of 0 or more, got others of {found.shape}")
    return found


def _voices(
    names: Iterable[str], pulses: np.ndarray, murmur: np.ndarray, noise: np.ndarray, sample_rate: int
) -> dict[str, np.ndarray]:
    """The sound of each vowel and fricative at a constant level, as long as the recording."""
    sharp = _level(sosfilt(butter(2, min(0.6, 6000 / sample_rate), "high", output="sos"), noise), sample_rate)
    voices = {}
    for name in names:
        kind, _, voiced, formants = PHONEMES[name]
        if kind == "vowel":
            voices[name] = _level(_resonate(pulses, formants, sample_rate), sample_rate)
        elif kind == "fricative":
            voices[name] = (sharp + murmur) / math.sqrt(2) if voiced else sharp
    return voices


def _check(schedule: Sequence[Phoneme]) -> None:
    if not schedule:
        raise BrainDataError("expected a schedule of one or more phonemes, got none")
    ends = schedule[0].start
    for phoneme in schedule:
        check_choice("phoneme", phoneme.name, list(PHONEMES))
        if not phoneme.end > phoneme.start or abs(phoneme.start - ends) > 1e-6:
            raise BrainDataError(
                f"expected phonemes without gaps, each with its start before its end, got {phoneme.name} from "
                f"{phoneme.start:g} to {phoneme.end:g} s after {ends:g} s"
            )
        ends = phoneme.end


def _share(schedule: Sequence[Phoneme], place: int, times: np.ndarray) -> np.ndarray:
    """Weight of a phoneme at each time, fp64 (T,). The weights of all phonemes sum to 1, even of very short ones."""
    share = _begun(times, schedule[place].start) if place else np.ones(len(times))
    return share - _begun(times, schedule[place].end) if place + 1 < len(schedule) else share


def _begun(times: np.ndarray, boundary: float) -> np.ndarray:
    """Progress of a transition, 0 to 1."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip((times - boundary) / TRANSITION + 0.5, 0, 1))


def _pitch(schedule: Sequence[Phoneme], times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pitch at each time in hertz: it falls by a quarter, is raised on some vowels and flutters a little."""
    base, fall = rng.uniform(*_PITCH), rng.uniform(0.15, 0.3)
    logs = fall * (0.5 - times / max(times[-1], 1e-9))
    for phoneme in schedule:
        if PHONEMES[phoneme.name].kind == "vowel":
            middle, width = (phoneme.start + phoneme.end) / 2, phoneme.end - phoneme.start
            logs += rng.uniform(0, 0.2) * np.exp(-0.5 * np.square((times - middle) / (0.4 * width)))
    knots = np.arange(0, times[-1] + 0.05, 0.02)
    return base * np.exp(logs + np.interp(times, knots, rng.normal(0, 0.01, len(knots))))


def _pulses(pitch: np.ndarray, sample_rate: int) -> np.ndarray:
    """A train of glottal pulses. Each is split between two samples, so that its time is not rounded."""
    phase = np.cumsum(pitch) / sample_rate
    at = np.flatnonzero(np.floor(phase[1:]) > np.floor(phase[:-1])) + 1
    late = (phase[at] - np.floor(phase[at])) * sample_rate / pitch[at]  # samples since the pulse, 0 to 1
    train = np.zeros(len(pitch))
    train[at] += 1 - late
    train[at - 1] += late
    return np.asarray(lfilter([1.0], [1.0, -np.exp(-2 * np.pi * 100 / sample_rate)], train))


def _resonate(source: np.ndarray, formants: Sequence[float], sample_rate: int) -> np.ndarray:
    """The source through a cascade of two-pole resonators with gain 1 at 0 Hz."""
    for centre, width in zip(formants, _BANDWIDTHS, strict=False):
        radius = np.exp(-np.pi * width / sample_rate)
        first, second = 2 * radius * np.cos(2 * np.pi * centre / sample_rate), -np.square(radius)
        source = np.asarray(lfilter([1 - first - second], [1.0, -first, -second], source))
    return source


def _level(sound: Any, sample_rate: int) -> np.ndarray:
    """The sound with a root mean square of 1 within about 30 ms. Silence stays silence."""
    power, width = np.square(np.asarray(sound)), round(0.03 * sample_rate)
    for _ in range(2):
        power = uniform_filter1d(power, width, mode="nearest")
    return np.asarray(sound) / np.sqrt(np.maximum(power, 1e-12))
