"""Simulated EEG of people who see coloured solids, as a still picture and as a turning video, with a known truth.

    study = simulate_objects("nano")
    test = ObjectTrials.of(study, "sim01", "test", average="repeats")
    study.truth["sim01"].posterior(test, "class").argmax(1)     # the best possible guesses

Responses are those of `simulate_eeg`, with other factors: body, part, class (their conjunction), colour and stretch of
the object. Shape drives occipital, temporal and parietal channels, colour occipital and temporal ones, stretch parietal
ones. Both streams are parts of one presentation, and their noise is independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from veca.data.solids import BODIES, CLASSES, COLORS, PARTS, STRETCHES, SolidSource, make_solid, solid_id

from ..data.dataset import BrainDataset, Split, Subject
from ..data.objects import STREAMS, ObjectStudy, ObjectTrials
from ..data.responses import Responses, TrialTable
from ..data.sensors import region_of
from ..data.spaces import SensorSpace
from ..data.splits import split_from_ids
from ..data.stimuli import StimulusSet
from ..errors import BrainDataError, check_choice
from ..layouts.eeg3d import EEG3D_CHANNELS
from .eeg import ideal_observer
from .truth import EEGTruth
from .waves import NOISE, ONSET, ORDER, OWN_STREAM, WINDOWS, noise, plant

__all__ = ["OBJECT_PRESETS", "ObjectPreset", "ObjectTruth", "SimulatedObjects", "simulate_objects"]

_TRAIN_OBJECTS, _TEST_OBJECTS = range(8), range(8, 10)
_REPEATS = {False: 2, True: 4}  # presentations of train and of test objects
_SHAPE = {"occipital": 1.0, "temporal": 0.6, "parietal": 0.5}
_REGIONS = {
    "class": _SHAPE,
    "body": _SHAPE,
    "part": _SHAPE,
    "color": {"occipital": 0.8, "temporal": 1.0},
    "stretch": {"parietal": 1.0},
}
"""Gain of the channels of each region, by factor. Other regions have the gain `_ELSEWHERE`."""
_ELSEWHERE = 0.1
_AMPLITUDES = {"class": 0.6, "body": 1.0, "part": 0.8, "color": 0.8, "stretch": 0.4}
_DRIFT = 5  # stream of random numbers, after those of `waves`
_WAVES = 12  # cosines of the drift, of half a cycle to six cycles in the recording
_BLOCK = 128  # trials that the ideal observer reads at a time


@dataclass(frozen=True)
class ObjectPreset:
    """Size and noise of a simulated study.

    Attributes:
        bodies: Number of bodies, the first ones of `veca.data.solids.BODIES`.
        parts: Number of parts, the first ones of `PARTS`. Each body with each part is a class.
        n_chans: Number of channels of EEG-3D, spread over the head.
        snr_db: Signal-to-noise ratio of a single trial of one stream in decibels.
    """

    bodies: int
    parts: int
    n_chans: int
    snr_db: float

    @property
    def classes(self) -> tuple[int, ...]:
        """Numbers of the classes among those of the solids, ascending."""
        return tuple(body * len(PARTS) + part for body in range(self.bodies) for part in range(self.parts))

    @property
    def ch_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        places = np.linspace(0, len(EEG3D_CHANNELS) - 1, self.n_chans).round().astype(int)
        return tuple(EEG3D_CHANNELS[place] for place in places)


OBJECT_PRESETS = {
    "tiny": ObjectPreset(bodies=3, parts=2, n_chans=16, snr_db=-12.0),
    "nano": ObjectPreset(bodies=6, parts=4, n_chans=64, snr_db=-20.0),
    "eeg3d_like": ObjectPreset(bodies=12, parts=6, n_chans=64, snr_db=-26.0),
}


@dataclass(frozen=True)
class ObjectTruth:
    """The true model of one subject's responses in both streams.

    Attributes:
        static: Model of the responses to pictures.
        dynamic: Model of the responses to videos.
    """

    static: EEGTruth
    dynamic: EEGTruth

    def posterior(self, trials: ObjectTrials, label: str = "class") -> np.ndarray:
        """Posterior probabilities of a label in the streams of the trials. On average, no decoder is right more often.

        Drift is not part of the model.

        Args:
            trials: Trials or means of this subject. `trials.repeats` says how many trials each row averages.
            label: "class", "body", "part", "color" or "stretch".

        Returns:
            Probabilities fp64 (n, levels). The levels have the order of the label's numbers, or of `static.levels`.

        Raises:
            BrainDataError: The label is unknown.
            AxisError: The trials have other channels or times than the subject.
        """
        truths = {name: getattr(self, name) for name in trials.streams}
        found = []
        for start in range(0, len(trials), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(trials)))
            found.append(ideal_observer(truths, trials.batch(rows), label, trials.repeats[rows]))
        return np.concatenate(found) if found else np.empty((0, len(self.static.levels[label])))


class SimulatedObjects(ObjectStudy):
    """A study that has the truth about its subjects.

    Attributes:
        truth: An `ObjectTruth` by subject id.
    """

    def __init__(
        self,
        static: BrainDataset,
        dynamic: BrainDataset,
        truth: Mapping[str, ObjectTruth],
    ):
        super().__init__(static, dynamic, color_names=tuple(COLORS))
        self.truth = dict(truth)


def simulate_objects(
    preset: str | ObjectPreset = "nano",
    n_subjects: int = 1,
    snr_db: float | None = None,
    seed: int = 0,
    order: str = "random",
    drift: float = 0.0,
) -> SimulatedObjects:
    """Simulate EEG of subjects "sim01", "sim02", ... who all look at the same solids.

    Each class has ten objects. Objects 0 to 7 are for training and are shown twice, 8 and 9 for testing and four times.
    There are 24 sessions. From means of four test presentations, the ideal observer of both streams finds these shares,
    as means of seeds 0 to 2:

    | preset | classes | channels | trials | snr_db | class, top-1 | class, top-5 | colour |
    |---|---|---|---|---|---|---|---|
    | tiny | 6 | 16 | 144 | -12 | 1.00 | 1.00 | 1.00 |
    | nano | 24 | 64 | 576 | -20 | 1.00 | 1.00 | 1.00 |
    | nano | | | | -25 | 0.98 | 1.00 | 0.94 |
    | nano | | | | -28 | 0.90 | 0.99 | 0.80 |
    | eeg3d_like | 72 | 64 | 1728 | -26 | 0.94 | 0.99 | 0.89 |

    Args:
        preset: "tiny", "nano" or "eeg3d_like", which has the shapes of EEG-3D. Or sizes of your own.
        n_subjects: Number of subjects.
        snr_db: Signal-to-noise ratio of a single trial of one stream in decibels. None takes that of the preset. -inf
            gives noise only.
        seed: Seed of solids, templates, order and noise, 0 or more.
        order: "random" mixes all trials. "blocked" shows all objects of a class one after the other, so that time alone
            predicts the class.
        drift: Standard deviation of slow changes of the channels' levels over the recording, in units of the noise.
            With blocked order they tell the class.

    Returns:
        A study with fp32 values, the split "objects" and no features. Labels are "class", "name", "object", "color",
        "body", "part" and "stretch". Classes are numbered in the order of `veca.data.solids.CLASSES`.

    Raises:
        BrainDataError: An argument is unknown or out of its range.
    """
    if not isinstance(preset, ObjectPreset):
        preset = OBJECT_PRESETS[check_choice("preset", preset, list(OBJECT_PRESETS))]
    check_choice("order", order, ("random", "blocked"))
    if n_subjects < 1 or seed < 0 or not drift >= 0:
        raise BrainDataError(
            f"expected n_subjects of at least 1, a seed and a drift of at least 0, got {n_subjects}, {seed} and {drift}"
        )
    stimuli, split = _stimuli(preset, seed), _split(preset, seed)
    snr = 10 ** ((preset.snr_db if snr_db is None else snr_db) / 10)
    facts = {"layout": "simulated", "seed": seed, "snr": snr, "order": order, "drift": drift}
    people: dict[str, list[Subject]] = {kind: [] for kind in STREAMS}
    truth = {}
    for number in range(1, n_subjects + 1):
        name, shown = f"sim{number:02d}", _shown(stimuli, order, seed, number)
        session = np.arange(len(shown)) // len(preset.classes) + 1
        offsets = _offsets(len(shown), preset.n_chans, drift, seed, number)
        models = {}
        for kind in STREAMS:
            models[kind], mixing = _plant(kind, preset, snr, seed, number)
            keys = (seed, NOISE, number), OWN_STREAM[kind]
            values = _record(models[kind], kind, mixing, stimuli, shown, offsets, keys)
            unit = "standard deviations of the noise"
            responses = Responses(values, TrialTable.of(shown, session=session, run=session), unit=unit)
            num_times, sfreq = WINDOWS[kind]
            space = SensorSpace(preset.ch_names, sfreq, np.arange(num_times) / sfreq - ONSET, unit="z")
            design = "block" if order == "blocked" else "event"
            people[kind].append(Subject(name, responses, space, design=design, provenance={**facts, "kind": kind}))
        truth[name] = ObjectTruth(**models)
    static, dynamic = (BrainDataset(people[kind], stimuli, {split.name: split}) for kind in STREAMS)
    return SimulatedObjects(static, dynamic, truth)


def _stimuli(preset: ObjectPreset, seed: int) -> StimulusSet:
    ids, labels = [], {name: [] for name in ("class", "name", "object", "color", "body", "part", "stretch")}
    for place, cls in enumerate(preset.classes):
        for number in (*_TRAIN_OBJECTS, *_TEST_OBJECTS):
            solid = make_solid(cls, number, seed)
            ids.append(solid_id(seed, cls, number))
            facts = (
                place,
                CLASSES[cls],
                number,
                list(COLORS).index(solid.color),
                solid.body,
                solid.part,
                solid.stretch,
            )
            for column, value in zip(labels.values(), facts, strict=True):
                column.append(value)
    return StimulusSet(ids, SolidSource(ids), labels=labels)


def _split(preset: ObjectPreset, seed: int) -> Split:
    train, test = (
        [solid_id(seed, cls, number) for cls in preset.classes for number in numbers]
        for numbers in (_TRAIN_OBJECTS, _TEST_OBJECTS)
    )
    return split_from_ids("objects", train, test, params={"test_objects": list(_TEST_OBJECTS)}, val_ids=[])


def _shown(stimuli: StimulusSet, order: str, seed: int, number: int) -> np.ndarray:
    """Object of each trial in the order of time, (trials,)."""
    repeats = [_REPEATS[bool(x)] for x in np.isin(stimuli.labels["object"], list(_TEST_OBJECTS))]
    shown = np.repeat(stimuli.ids, repeats)
    rng = np.random.default_rng((seed, ORDER, number))
    shown = shown[rng.permutation(len(shown))]
    if order == "blocked":
        classes = stimuli.label("class", shown)
        shown = shown[np.argsort(rng.permutation(classes.max() + 1)[classes], kind="stable")]
    return shown


def _plant(kind: str, preset: ObjectPreset, snr: float, seed: int, number: int) -> tuple[EEGTruth, np.ndarray]:
    """The true model of one stream of a subject, and the matrix that mixes its sources of noise."""
    levels: dict[str, Sequence[Any]] = {
        "class": range(len(preset.classes)),
        "body": BODIES[: preset.bodies],
        "part": PARTS[: preset.parts],
        "color": range(len(COLORS)),
        "stretch": range(len(STRETCHES)),
    }
    rows = [
        (body * preset.parts + part, body, part, *others)
        for body, part, *others in np.ndindex(*map(len, list(levels.values())[1:]))
    ]
    columns = zip(levels.values(), np.array(rows).T, strict=True)
    members = np.hstack([np.eye(len(names))[column] for names, column in columns])  # (combinations, levels)
    regions = [region_of(name) for name in preset.ch_names]
    gains = {
        name: _AMPLITUDES[name] * np.array([_REGIONS[name].get(region, _ELSEWHERE) for region in regions])
        for name in levels
    }
    prior = np.full(len(members), 1 / len(members))
    return plant(kind, gains, levels, members, prior, snr, seed, number)


def _offsets(trials: int, n_chans: int, drift: float, seed: int, number: int) -> np.ndarray:
    """Level of each channel in each trial, (trials, channels): slow waves over the recording with variance drift^2."""
    rng = np.random.default_rng((seed, _DRIFT, number))
    time = np.linspace(0, 1, trials)[:, None]
    waves = np.cos(np.pi * np.arange(1, _WAVES + 1) * time + rng.uniform(0, 2 * np.pi, _WAVES))
    return drift * np.sqrt(2 / _WAVES) * waves @ rng.normal(size=(_WAVES, n_chans))


def _record(
    truth: EEGTruth,
    kind: str,
    mixing: np.ndarray,
    stimuli: StimulusSet,
    shown: np.ndarray,
    offsets: np.ndarray,
    keys: tuple[tuple, tuple],
) -> np.ndarray:
    """Values of all trials, fp32 (trials, channels, times)."""
    num_times, _ = WINDOWS[kind]
    values = np.empty((len(shown), len(mixing), num_times), np.float32)
    for trial, image_id in enumerate(shown):
        rng = np.random.default_rng((*keys[0], trial, *keys[1]))
        evoked = np.sqrt(truth.snr) * truth.evoked(stimuli, [image_id])[0]
        values[trial] = evoked + noise(mixing, num_times, rng) + offsets[trial][:, None]
    return values
