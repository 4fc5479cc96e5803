"""Simulated fMRI of subjects whose voxels are fully known, for tests, tutorials and continuous integration.

    dataset = simulate("tiny", seed=0)
    train = dataset.pairs("sim01", "shared", "train", average="repeats")
    dataset.truth["sim01"].ceiling()     # the best possible r^2 of each voxel

The response of a voxel in one trial is

    y = (n x + eps) / sqrt(1 + n^2)

Here x is the planted signal (see `tuning`), n is the voxel's ncsnr, drawn from U(0.2, 1), and eps is standard normal
noise. The drift of the session and the mean of the voxel are added to it.

Everything follows from the seed. A subject does not depend on the number of subjects. It keeps its order of images and
its noise when the signal-to-noise ratio or the tuning changes. The signal-to-noise ratio does not change its signal.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from enum import IntEnum
from pathlib import Path

import numpy as np
from tqdm import tqdm

from veca.files import new_array, read_json, whole_file

from ..data.dataset import Split, Subject
from ..data.responses import Responses, TrialTable
from ..data.scalings import PSC
from ..data.splits import split_from_ids
from ..errors import BrainDataError, LayoutError
from .presets import Preset, preset_of
from .scenes import SceneFeatures, scene_id, scene_stimuli
from .truth import Drift, SimulatedDataset, SubjectTruth
from .tuning import plant_tuning, simulated_space

__all__ = ["simulate"]

_SLOPE_SD = 0.2
_NOISE_SOURCES = 5
_MOST_IN_MEMORY = 2**30  # bytes of responses of one subject


class _Stream(IntEnum):
    """The kinds of random draws. Each has its own generator, so a change of one does not affect the others."""

    TUNING, RELIABILITY, ORDER, DRIFT, NOISE = range(5)


def simulate(
    preset: str | Preset = "tiny",
    *,
    seed: int = 0,
    n_subjects: int | None = None,
    snr_scale: float = 1.0,
    tuning: str = "linear",
    drift: bool = True,
    mean_sd: float = 1.0,
    shared_noise: float = 0.0,
    folder: str | Path | None = None,
) -> SimulatedDataset:
    """Simulate fMRI of subjects "sim01", "sim02", ... who look at drawn scenes.

    Args:
        preset: Size of the study: "tiny", "small", "nsd_like" (15,724 voxels, 30,000 trials), or a `Preset`.
        seed: Seed of the scenes, the subjects and the noise, 0 or more.
        n_subjects: Number of subjects. None takes the preset's.
        snr_scale: Factor of every voxel's ncsnr, 0 or more. 0 gives noise only.
        tuning: "linear" makes signals linear in the planted features. "nonlinear" adds conjunctions and divisive
            normalisation.
        drift: Whether each session has a gain, an offset and a slope.
        mean_sd: Standard deviation over voxels of their mean responses, 0 or more.
        shared_noise: Share of the noise variance that comes from 5 sources common to all voxels, 0 to 1.
        folder: Folder for one memory-mapped file of responses per subject. Files of an equal simulation are used
            again. None keeps responses in memory, up to 1 GiB a subject, so "nsd_like" needs a folder.

    Returns:
        Subjects, scenes with captions and labels, and the split "shared". It tests on the images that all subjects see
        and trains on the images that only one subject sees, 5 % of which are for validation. Sessions count from 1, and
        runs are unknown.

    Raises:
        BrainDataError: An argument is out of its range, or responses over 1 GiB have no `folder`.
        LayoutError: `folder` holds a file of another simulation.
    """
    preset = preset_of(preset)
    n_subjects = preset.subjects if n_subjects is None else n_subjects
    if seed < 0 or n_subjects < 1 or snr_scale < 0 or mean_sd < 0 or not 0 <= shared_noise <= 1:
        raise BrainDataError(
            "expected seed, snr_scale and mean_sd of at least 0, n_subjects of at least 1, shared_noise from 0 to 1, "
            f"got {seed=}, {snr_scale=}, {mean_sd=}, {n_subjects=}, {shared_noise=}"
        )
    options = {"snr_scale": snr_scale, "tuning": tuning, "drift": drift, "mean_sd": mean_sd}
    recipe = {"version": 1, "preset": asdict(preset), "seed": seed, **options, "shared_noise": shared_noise}
    recipe["preset"].pop("subjects")  # it changes no subject
    features = SceneFeatures()
    subjects, truth = [], {}
    for number in range(1, n_subjects + 1):
        subject, planted = _simulate_subject(preset, recipe | {"subject": number}, features, folder)
        subjects.append(subject)
        truth[subject.id] = planted
    stimuli = scene_stimuli(seed, preset.shared + n_subjects * preset.own)
    return SimulatedDataset(subjects, stimuli, {"shared": _shared_split(preset, seed, n_subjects)}, truth, features)


def _simulate_subject(
    preset: Preset, recipe: dict, features: SceneFeatures, folder: str | Path | None
) -> tuple[Subject, SubjectTruth]:
    seed, number = recipe["seed"], recipe["subject"]
    name, num_voxels = _name(number), preset.num_voxels(number - 1)
    ncsnr = _rng(recipe, _Stream.RELIABILITY).uniform(0.2, 1, num_voxels) * recipe["snr_scale"]
    space = simulated_space(num_voxels, preset.box, ncsnr)
    rng = _rng(recipe, _Stream.DRIFT)
    mean = (rng.normal(size=num_voxels) * recipe["mean_sd"]).astype(np.float32)
    gain, offset, slope = rng.normal(size=(3, preset.sessions, num_voxels)).astype(np.float32) * bool(recipe["drift"])
    truth = SubjectTruth(
        tuning=plant_tuning(space, recipe["tuning"], _rng(recipe, _Stream.TUNING)),
        ncsnr=ncsnr,
        mean=mean,
        drift=Drift(gain, offset, slope * np.float32(_SLOPE_SD)),
        repeats=preset.repeats,
        features=features,
    )
    images = np.array([*_shared_ids(preset, seed), *_own_ids(preset, seed, number)])
    shown = _rng(recipe, _Stream.ORDER).permutation(np.repeat(images, preset.repeats))
    lengths = [len(part) for part in np.array_split(shown, preset.sessions)]
    trials = TrialTable.of(shown, session=np.repeat(np.arange(preset.sessions) + 1, lengths))
    shape, sessions = (len(trials), num_voxels), _sessions(trials, truth, recipe)
    if folder is None:
        values = _in_memory(sessions, shape, name)
    else:
        values = _in_file(sessions, shape, Path(folder, name), recipe)
    responses = Responses(values, trials, unit=PSC)
    return Subject(name, responses, space, provenance={"layout": "simulated", **recipe}), truth


def _sessions(trials: TrialTable, truth: SubjectTruth, recipe: dict) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and values (rows, voxels) of one session after the other, drawn one at a time."""
    ncsnr = truth.ncsnr.astype(np.float32)
    sources = _rng(recipe, _Stream.NOISE).normal(size=(_NOISE_SOURCES, len(ncsnr)))
    sources = (sources / np.linalg.norm(sources, axis=0)).astype(np.float32)
    shared = np.float32(recipe["shared_noise"])
    for session in range(1, trials.session.max() + 1):
        rows = np.flatnonzero(trials.session == session)
        rng = _rng(recipe, _Stream.NOISE, session)
        noise = np.sqrt(1 - shared) * rng.standard_normal((len(rows), len(ncsnr)), np.float32)
        if shared:
            noise += np.sqrt(shared) * (rng.standard_normal((len(rows), _NOISE_SOURCES), np.float32) @ sources)
        ids, places = np.unique(trials.image_id[rows], return_inverse=True)
        values = ((truth.signal(ids) * ncsnr)[places] + noise) / np.sqrt(1 + ncsnr**2)
        yield rows, truth.drift.apply(values, session) + truth.mean


def _in_memory(sessions: Iterator, shape: tuple[int, int], name: str) -> np.ndarray:
    size = 4 * shape[0] * shape[1]
    if size > _MOST_IN_MEMORY:
        raise BrainDataError(f"expected folder= for {size / 2**30:.1f} GiB of responses of {name}, got None")
    values = np.empty(shape, np.float32)
    for rows, block in sessions:
        values[rows] = block
    values.flags.writeable = False
    return values


def _in_file(sessions: Iterator, shape: tuple[int, int], stem: Path, recipe: dict) -> np.ndarray:
    """The values, memory-mapped from `stem.npy`. Writes that file and its recipe, `stem.json`, if there is none."""
    path, record = stem.with_suffix(".npy"), stem.with_suffix(".json")
    recipe = json.loads(json.dumps(recipe))
    if path.exists():
        if not record.exists() or read_json(record, LayoutError) != recipe:
            raise LayoutError(f"expected {path} to be absent or of this simulation, got another one; name a new folder")
        return np.load(path, mmap_mode="r")
    stem.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        values = new_array(partial, shape, np.float32)
        for rows, block in tqdm(sessions, f"simulating {stem.name}", recipe["preset"]["sessions"], disable=None):
            values[rows] = block
        values.flush()
        del values
        record.write_text(json.dumps(recipe, indent=1))
    return np.load(path, mmap_mode="r")


def _shared_split(preset: Preset, seed: int, n_subjects: int) -> Split:
    own = {_name(number): frozenset(_own_ids(preset, seed, number)) for number in range(1, n_subjects + 1)}
    split = split_from_ids("shared", frozenset().union(*own.values()), _shared_ids(preset, seed))
    train_of = {name: ids & split.train for name, ids in own.items()}
    val_of = {name: ids & split.val for name, ids in own.items()}
    return replace(split, train_of=train_of, val_of=val_of)


def _shared_ids(preset: Preset, seed: int) -> list[str]:
    return [scene_id(seed, index) for index in range(preset.shared)]


def _own_ids(preset: Preset, seed: int, number: int) -> list[str]:
    """Ids of the images that only this subject sees, with subjects numbered from 1."""
    start = preset.shared + (number - 1) * preset.own
    return [scene_id(seed, index) for index in range(start, start + preset.own)]


def _name(number: int) -> str:
    return f"sim{number:02d}"


def _rng(recipe: dict, stream: _Stream, *more: int) -> np.random.Generator:
    return np.random.default_rng([recipe["seed"], recipe["subject"], stream, *more])
