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

Studies across subjects have further options. Tuning may be partly a subject's own (`individuality`), and places may
differ (`anatomy`). Signal-to-noise ratios and numbers of repeats may be given by subject.

The preset "lab" adds what data of a laboratory have, see `lab` and `LabPreset`: noise that is correlated in space and
time, voxels without signal, dead voxels, unequal repeats, runs and a bad session. Its noise ceilings are not published.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from veca.files import new_array, read_json, whole_file

from ..data.dataset import Split, Subject
from ..data.responses import Responses, TrialTable
from ..data.scalings import PSC
from ..data.spaces import VoxelSpace
from ..data.splits import split_from_ids
from ..errors import AxisError, BrainDataError, LayoutError, check_choice, near_names
from .lab import LabTruth, lab_noise, lab_space, presentations, run_numbers
from .presets import LabPreset, Preset, preset_of
from .scenes import SceneFeatures, scene_id, scene_stimuli
from .truth import Drift, SimulatedDataset, SubjectTruth
from .tuning import plant_tuning, simulated_space, with_own_weights

__all__ = ["simulate"]

_SLOPE_SD = 0.2
_NOISE_SOURCES = 5
_MOST_IN_MEMORY = 2**30  # bytes of responses of one subject


class _Stream(IntEnum):
    """The kinds of random draws. Each has its own generator, so a change of one does not affect the others."""

    TUNING, RELIABILITY, ORDER, DRIFT, NOISE, OWN_TUNING, PLACES, SIGNAL, PRESENTATIONS = range(9)


def simulate(
    preset: str | Preset = "tiny",
    *,
    seed: int = 0,
    n_subjects: int | None = None,
    snr_scale: float | Mapping[str, float | np.ndarray] = 1.0,
    repeats: int | Mapping[str, int] | None = None,
    tuning: str = "linear",
    individuality: float = 0.0,
    anatomy: str = "shared",
    drift: bool = True,
    mean_sd: float = 1.0,
    shared_noise: float = 0.0,
    folder: str | Path | None = None,
) -> SimulatedDataset:
    """Simulate fMRI of subjects "sim01", "sim02", ... who look at drawn scenes.

    Args:
        preset: Size of the study: "tiny", "small", "nsd_like" (15,724 voxels, 30,000 trials), "lab", which is untidy,
            or a `Preset`.
        seed: Seed of the scenes, the subjects and the noise, 0 or more.
        n_subjects: Number of subjects. None takes the preset's.
        snr_scale: Factor of every voxel's ncsnr, 0 or more. 0 gives noise only. A mapping gives a factor, or one for
            each voxel (V,), by subject; subjects that are left out have 1.
        repeats: Number of presentations of each image, also by subject. None takes the preset's.
        tuning: "linear" makes signals linear in the planted features. "nonlinear" adds conjunctions and divisive
            normalisation.
        individuality: Share of the variance of a voxel's signal that comes from weights of its own, 0 to 1. These are
            normal numbers, one for each planted feature, so that no other voxel says anything about them.
        anatomy: "shared" puts regions and receptive fields at the same places in all subjects. "shuffled" has the same
            responses, and puts each voxel at the place of another one, differently in each subject.
        drift: Whether each session has a gain, an offset and a slope.
        mean_sd: Standard deviation over voxels of their mean responses, 0 or more.
        shared_noise: Share of the noise variance that comes from 5 sources common to all voxels, 0 to 1.
        folder: Folder for one memory-mapped file of responses per subject. Files of an equal simulation are used
            again. None keeps responses in memory, up to 1 GiB a subject, so "nsd_like" needs a folder.

    Returns:
        Subjects, scenes with captions and labels, and the split "shared". It tests on the images that all subjects see
        and trains on the images that only one subject sees, 5 % of which are for validation. Sessions count from 1.
        Runs are unknown, except in "lab".

    Raises:
        BrainDataError: An argument is out of its range, or responses over 1 GiB have no `folder`.
        LayoutError: `folder` holds a file of another simulation.
    """
    preset = preset_of(preset)
    n_subjects = preset.subjects if n_subjects is None else n_subjects
    shares = 0 <= shared_noise <= 1 and 0 <= individuality <= 1
    if seed < 0 or n_subjects < 1 or mean_sd < 0 or not shares:
        raise BrainDataError(
            "expected seed and mean_sd of at least 0, n_subjects of at least 1, shared_noise and individuality from 0 "
            f"to 1, got {seed=}, {mean_sd=}, {n_subjects=}, {shared_noise=}, {individuality=}"
        )
    check_choice("anatomy", anatomy, ("shared", "shuffled"))
    names = [_name(number) for number in range(1, n_subjects + 1)]
    scales = _by_subject("snr_scale", snr_scale, names, 1.0)
    counts = _by_subject("repeats", preset.repeats if repeats is None else repeats, names, preset.repeats)
    options = {"tuning": tuning, "drift": drift, "mean_sd": mean_sd, "shared_noise": shared_noise}
    if individuality:
        options["individuality"] = individuality
    if anatomy != "shared":
        options["anatomy"] = anatomy
    features = SceneFeatures()
    subjects, truth = [], {}
    for number, name in enumerate(names, 1):
        own = replace(preset, repeats=counts[name])
        recipe = {"version": 1, "preset": asdict(own), "seed": seed, "snr_scale": scales[name], **options}
        recipe["preset"].pop("subjects")  # it changes no subject
        subject, planted = _simulate_subject(own, recipe | {"subject": number}, features, folder)
        subjects.append(subject)
        truth[subject.id] = planted
    stimuli = scene_stimuli(seed, preset.shared + n_subjects * preset.own)
    return SimulatedDataset(subjects, stimuli, {"shared": _shared_split(preset, seed, n_subjects)}, truth, features)


def _simulate_subject(
    preset: Preset, recipe: dict, features: SceneFeatures, folder: str | Path | None
) -> tuple[Subject, SubjectTruth]:
    seed, number = recipe["seed"], recipe["subject"]
    name, num_voxels = _name(number), preset.num_voxels(number - 1)
    ncsnr = _rng(recipe, _Stream.RELIABILITY).uniform(0.2, 1, num_voxels) * _scale_of(recipe, num_voxels)
    space = simulated_space(num_voxels, preset.box, ncsnr)
    planted = plant_tuning(space, recipe["tuning"], _rng(recipe, _Stream.TUNING))
    if "individuality" in recipe:
        planted = with_own_weights(planted, recipe["individuality"], _rng(recipe, _Stream.OWN_TUNING))
    masks: list[np.ndarray] = []
    if isinstance(preset, LabPreset):
        space, *masks = lab_space(space, preset, _rng(recipe, _Stream.SIGNAL))
        ncsnr = np.where(masks[0], ncsnr, 0.0)
    if "anatomy" in recipe:
        space = replace(space, index=_rng(recipe, _Stream.PLACES).permutation(space.index))
    rng = _rng(recipe, _Stream.DRIFT)
    mean = (rng.normal(size=num_voxels) * recipe["mean_sd"]).astype(np.float32)
    gain, offset, slope = rng.normal(size=(3, preset.sessions, num_voxels)).astype(np.float32) * bool(recipe["drift"])
    truth = SubjectTruth(
        tuning=planted,
        ncsnr=ncsnr,
        mean=mean,
        drift=Drift(gain, offset, slope * np.float32(_SLOPE_SD)),
        repeats=preset.repeats,
        features=features,
    )
    images, counts = np.array([*_shared_ids(preset, seed), *_own_ids(preset, seed, number)]), preset.repeats
    if isinstance(preset, LabPreset):
        shows = presentations(images.tolist(), preset, _rng(recipe, _Stream.PRESENTATIONS))
        truth, counts = LabTruth.of(truth, preset, masks, shows, _shared_ids(preset, seed)), list(shows.values())
    shown = _rng(recipe, _Stream.ORDER).permutation(np.repeat(images, counts))
    lengths = [len(part) for part in np.array_split(shown, preset.sessions)]
    session = np.repeat(np.arange(preset.sessions) + 1, lengths)
    run = run_numbers(session, preset.runs) if isinstance(preset, LabPreset) else -1
    trials = TrialTable.of(shown, session=session, run=run)
    shape, sessions = (len(trials), num_voxels), _sessions(trials, truth, recipe, space, preset)
    if folder is None:
        values = _in_memory(sessions, shape, name)
    else:
        values = _in_file(sessions, shape, Path(folder, name), recipe)
    responses = Responses(values, trials, unit=PSC)
    return Subject(name, responses, space, provenance={"layout": "simulated", **recipe}), truth


def _sessions(
    trials: TrialTable, truth: SubjectTruth, recipe: dict, space: VoxelSpace, preset: Preset
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and values (rows, voxels) of one session after the other, drawn one at a time."""
    ncsnr = truth.ncsnr.astype(np.float32)
    sources = _rng(recipe, _Stream.NOISE).normal(size=(_NOISE_SOURCES, len(ncsnr)))
    sources = (sources / np.linalg.norm(sources, axis=0)).astype(np.float32)
    shared = np.float32(recipe["shared_noise"])
    for session in range(1, trials.session.max() + 1):
        rows = np.flatnonzero(trials.session == session)
        rng = _rng(recipe, _Stream.NOISE, session)
        if isinstance(preset, LabPreset):
            noise = lab_noise(space, trials.run[rows], preset, session == preset.bad_session, rng)
        else:
            noise = rng.standard_normal((len(rows), len(ncsnr)), np.float32)
        noise = np.sqrt(1 - shared) * noise
        if shared:
            noise += np.sqrt(shared) * (rng.standard_normal((len(rows), _NOISE_SOURCES), np.float32) @ sources)
        ids, places = np.unique(trials.image_id[rows], return_inverse=True)
        values = ((truth.signal(ids) * ncsnr)[places] + noise) / np.sqrt(1 + ncsnr**2)
        if isinstance(truth, LabTruth):
            values[:, truth.dead] = 0
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


def _by_subject(what: str, given: Any, names: list[str], default: Any) -> dict[str, Any]:
    """A value for each subject: one for all, or those of a mapping and the default for the others."""
    given = given if isinstance(given, Mapping) else dict.fromkeys(names, given)
    values: dict[str, Any] = {**dict.fromkeys(names, default), **given}
    unknown = [name for name in values if name not in names]
    if unknown:
        raise BrainDataError(
            f"expected {what} of {', '.join(names)}, got one of {unknown[0]!r}{near_names(unknown[0], names)}"
        )
    if what == "snr_scale":
        values = {name: np.asarray(value, np.float64).tolist() for name, value in values.items()}
    for name, value in values.items():
        least, wrong = (0, "a negative one") if what == "snr_scale" else (1, value)
        if np.min(value) < least:
            raise BrainDataError(f"expected {what} of at least {least}, got {wrong} of {name}")
    return values


def _scale_of(recipe: dict, num_voxels: int) -> np.ndarray:
    """Factor of the ncsnr, () or (V,)."""
    scale = np.asarray(recipe["snr_scale"])
    if scale.shape not in ((), (num_voxels,)):
        name = _name(recipe["subject"])
        raise AxisError(f"expected one snr_scale of {name}, or {num_voxels}, got shape {scale.shape}")
    return scale


def _name(number: int) -> str:
    return f"sim{number:02d}"


def _rng(recipe: dict, stream: _Stream, *more: int) -> np.random.Generator:
    return np.random.default_rng([recipe["seed"], recipe["subject"], stream, *more])
