"""Raw EEG of any vendor, read, filtered and cut into epochs with MNE.

    dataset = load(root, "sub01", event_id={"onset": 100}, epochs=EEG3D_STATIC)

The image of each event comes from a list beside the recording, or from a different code for every image. Codes are
those that the amplifier stored. They are never guessed or renumbered.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.data.names import entries, stem

from ..data.dataset import BrainDataset, Subject
from ..data.responses import Responses, TrialTable
from ..data.spaces import SensorSpace
from ..data.stimuli import ImageFiles, StimulusSet
from ..errors import AxisError, BrainDataError, IdError, LayoutError, near_names
from ._epoch_splits import epoch_splits, names_of_test
from ._files import by_name, check_finite, find_images, provenance, read_json, read_text
from ._recordings import KINDS, READERS, check_montage, eeg_picks, mark_gaps, read_raw
from ._triggers import check_samples, counted, marked_codes, other_markers, triggered_codes
from .eeg3d import EEG3D_CHANNELS

if TYPE_CHECKING:
    from mne.io import BaseRaw

__all__ = [
    "EEG3D_DYNAMIC",
    "EEG3D_STATIC",
    "EpochRecipe",
    "continuous",
    "cut",
    "describe",
    "detect",
    "epoch",
    "find_events",
    "load",
    "read_raw",
    "space_of",
]

_log = logging.getLogger(__name__)

_REPAIRS = "repairs.json"


@dataclass(frozen=True)
class EpochRecipe:
    """The steps from a recording to epochs, in this order: channels, filter, reference, epochs, sampling rate.

    Attributes:
        tmin: Start of an epoch, in seconds from the event.
        tmax: End of an epoch, in seconds from the event. As in MNE, the sample at tmax belongs to the epoch. Resampled
            epochs have (tmax - tmin) * sfreq samples.
        sfreq: Sampling rate of the epochs in hertz. None keeps the rate of the recording.
        l_freq: Lower edge of a zero-phase FIR filter in hertz. None filters no low frequencies.
        h_freq: Upper edge of the filter in hertz. None filters no high frequencies.
        phase: "zero", or "zero-double" for a filter that is applied twice.
        reference: Names of channels whose mean is subtracted from all channels, or "average" for all of them. None
            keeps the recorded reference.
        baseline: Interval in seconds whose mean is subtracted from each epoch. None as an end means the epoch's own
            end. None in place of the interval subtracts nothing.
        channels: Names of the channels to keep, in this order. None keeps all of the kind in recorded order.
        drop_codes: Codes of events to leave out.
        min_gap: Shortest time between two events in seconds. Of two closer events the first is dropped, because the
            trigger was still settling. So is a code that came down from a higher one and lasts shorter.
        mask: Bits of the recorded codes that count, such as 0xFF where an amplifier stores its own state in the high
            bits (BioSemi). None means all.
        kind: Kind of the channels: "eeg", or "mag" and "grad" for magnetometers and gradiometers of MEG.
        montage: Name in MNE of the positions of the channels, such as "biosemi128", for maps of the head. None means
            names of the 10-05 system.
    """

    tmin: float
    tmax: float
    sfreq: float | None = None
    l_freq: float | None = None
    h_freq: float | None = None
    phase: str = "zero"
    reference: Sequence[str] | str | None = None
    baseline: tuple[float | None, float | None] | None = None
    channels: Sequence[str] | None = None
    drop_codes: Sequence[int] = ()
    min_gap: float = 0.0
    mask: int | None = None
    kind: str = "eeg"
    montage: str | None = None

    def num_times(self, sfreq: float) -> int:
        """Number of samples in an epoch of a recording with this sampling rate in hertz."""
        if self.sfreq in (None, sfreq):
            return round(self.tmax * sfreq) - round(self.tmin * sfreq) + 1
        return round((self.tmax - self.tmin) * self.sfreq)


_EEG3D = {
    "l_freq": 0.1,
    "h_freq": 100.0,
    "phase": "zero-double",
    "reference": ("FZ",),
    "baseline": (None, 0.0),
    "channels": EEG3D_CHANNELS,
    "drop_codes": (255,),
    "min_gap": 0.002,
}
EEG3D_STATIC = EpochRecipe(-0.2, 0.8, 250.0, **_EEG3D)
"""Recipe for the pictures of EEG-3D, whose onsets have code 100. FZ is the reference, so its values become 0."""
EEG3D_DYNAMIC = EpochRecipe(-0.2, 5.8, 100.0, **_EEG3D)
"""Recipe for the videos of EEG-3D, whose onsets have code 120. Code 150 follows after 1 s, and code 50 after 6 s."""


def detect(root: str | Path) -> bool:
    """Whether a folder has sub-folders with recordings."""
    return any(path.suffix.lower() in READERS for folder in entries(root) for path in entries(folder))


def describe() -> str:
    """The files that are needed, with their shapes."""
    return f"""SUBJECT/NAME{{{",".join(READERS)}}}: recordings, one a session in sorted order, run-2 before run-10
SUBJECT/NAME.txt: one line for each event of `event_id` in the order of time, the name of the image it shows. Without
    it, the names in `event_id` are those of the images
SUBJECT/{_REPAIRS}, optional: {{NAME: {{"add": [[sample, code], ...], "drop": [sample, ...]}}}} for triggers that
    were lost or sent by mistake
images/NAME.png or .jpg: pictures by name, unless stimuli= has them"""


def load(
    root: str | Path,
    subject: str,
    *,
    event_id: Mapping[str, int],
    epochs: EpochRecipe,
    stimuli: StimulusSet | None = None,
    files: Sequence[str | Path] | None = None,
    test: str | Path | Sequence[str] | None = None,
    holdout: float | None = None,
    seed: int = 0,
    allocate: Callable[..., np.ndarray] = np.empty,
) -> BrainDataset:
    """Load the epochs of one participant's recordings, in volts.

    Args:
        root: Folder with the files that `describe` lists.
        subject: Name of the participant's folder in it.
        event_id: Codes of the events to cut out, by name. There is one code for all onsets, or one for each image.
        epochs: Recipe for the epochs.
        stimuli: Images whose ids the lists and `event_id` name. None makes ids "raw:NAME" for the pictures in `images`.
        files: Paths of the recordings, in the order of sessions. None means all in the participant's folder, sorted by
            name with numbers as numbers.
        test: Names of the test images, or the path of a text file in `root` with one name a line.
        holdout: Share of the images to test on. Without it and `test`, images that were shown clearly more often than
            most are tested on, or a random fifth if there are none.
        seed: Seed of the choice of test and of validation images.
        allocate: Function (shape, dtype) -> array for the values, fp32.

    Returns:
        A data set with one split, "given", "repeated" or "holdout_image". There is none for a single image.

    Raises:
        LayoutError: There are no recordings or two of one name, an event is missing, two events lie at one sample, or
            an epoch reaches beyond an end of its recording.
        IdError: A list and the events differ in number, or an image is unknown.
        AxisError: Recordings differ in channels or rate.
        UnitsError: The amplitudes are not those of EEG in volts.
        BrainDataError: Two names of `event_id` have one code.
    """
    root, folder = Path(root), Path(root) / subject
    paths = [Path(path) for path in files] if files is not None else _recordings(folder)
    repairs = _read_repairs(folder, paths)
    sessions = []
    for path in paths:
        raw = read_raw(path, epochs.kind)
        events = _select(find_events(raw, epochs, repairs.get(stem(path, READERS))), event_id, raw, path)
        sessions.append((raw, events, _names_of(events, event_id, path)))
    ids, tested = np.concatenate([names for _, _, names in sessions]), names_of_test(test, root)
    if stimuli is None:
        stimuli, prefix = _found_stimuli(root / "images", np.unique(ids).tolist()), "raw:"
        ids = np.char.add(prefix, ids)
        tested = None if tested is None else [name if name.startswith(prefix) else prefix + name for name in tested]
    stimuli.rows(np.unique(ids))

    space = space_of(sessions[0][0], epochs, paths[0])
    values = allocate((len(ids), len(space), len(space.times)), np.float32)
    row = 0
    for (raw, events, _), path in zip(sessions, paths, strict=True):
        other = space_of(raw, epochs, path)
        if (other.ch_names, other.sfreq) != (space.ch_names, space.sfreq) or len(other.times) != len(space.times):
            raise AxisError(
                f"expected {len(space)} channels and {space.sfreq:g} Hz of {paths[0]} in {path}, got {len(other)} and "
                f"{other.sfreq:g} Hz, or another order of channels; pass channels= and sfreq= in the recipe"
            )
        block = epoch(raw, events, epochs)
        check_finite(block, path, first_row=row)
        values[row : row + len(block)] = block
        row += len(block)
    session = np.repeat(np.arange(len(sessions)) + 1, [len(names) for _, _, names in sessions])
    responses = Responses(values, TrialTable.of(ids, session=session), unit=space.unit)
    facts = provenance("raw_eeg", root, paths, event_id=dict(event_id), recipe=repr(epochs))
    splits = epoch_splits(responses.trials, tested, holdout, seed, test if isinstance(test, str | Path) else "test=")
    return BrainDataset([Subject(subject, responses, space, provenance=facts)], stimuli, splits)


def find_events(raw: "BaseRaw", recipe: EpochRecipe, repairs: Mapping[str, Any] | None = None) -> np.ndarray:
    """All events of stimuli in a recording, with their recorded codes.

    Events come from stimulus channels where there are some, at every change to a code other than 0. Otherwise they come
    from annotations such as "Stimulus/S100", "S100" or "100", whose number is the code. Other annotations, such as
    "Response/R1", are ignored.

    Args:
        raw: Recording to search.
        recipe: Recipe whose `mask`, `drop_codes` and `min_gap` are applied.
        repairs: Corrections: "add" lists pairs of sample and code, and "drop" lists samples. Samples count from the
            start of the file.

    Returns:
        Sample and code of each event, int64 (events, 2), in the order of time.

    Raises:
        LayoutError: An event to drop does not exist.
    """
    events = triggered_codes(raw, recipe.mask, recipe.min_gap)
    if events is None:
        events = marked_codes(raw, recipe.mask)
    events = events[~np.isin(events[:, 1], list(recipe.drop_codes))]
    events = events[np.argsort(events[:, 0], kind="stable")]
    settling = np.diff(events[:, 0], append=np.iinfo(np.int64).max) < recipe.min_gap * raw.info["sfreq"]
    return _repair(events[~settling], repairs or {}, raw)


def epoch(raw: "BaseRaw", events: np.ndarray, recipe: EpochRecipe) -> np.ndarray:
    """Filter a recording and cut it into epochs, (events, channels, times) in volts. No epoch is rejected.

    Args:
        raw: Recording from `read_raw`, which is not changed.
        events: Sample and code of each event, (events, 2).
        recipe: Recipe for the epochs.

    Raises:
        LayoutError: An epoch reaches beyond an end of the recording.
        AxisError: A channel is missing.
    """
    path = Path(str(raw.filenames[0]))
    return cut(continuous(raw, recipe, path), events, recipe, path)


def continuous(raw: "BaseRaw", recipe: EpochRecipe, path: str | Path) -> "BaseRaw":
    """A copy of a recording with the channels of a recipe in their order, filtered and referenced.

    Stretches on either side of a gap (NaN) are filtered each by itself. Channels that are marked as bad are kept, and
    named in the log.

    Args:
        raw: Recording, which is not changed.
        recipe: Recipe for the channels, the filter and the reference.
        path: File of the recording, for messages.

    Raises:
        AxisError: A channel is missing.
    """
    raw = raw.copy().load_data(verbose="error")
    raw.pick(_picked(raw, recipe, path), verbose="error")
    if raw.info["bads"]:
        text = "%s: channels marked as bad are used like the others: %s; name the channels to keep in channels="
        _log.warning(text, path, ", ".join(raw.info["bads"]))
    if recipe.l_freq is not None or recipe.h_freq is not None:
        mark_gaps(raw)
        raw.filter(recipe.l_freq, recipe.h_freq, fir_design="firwin", phase=recipe.phase, verbose="error")
    if recipe.reference is not None:
        reference: Any = recipe.reference if isinstance(recipe.reference, str) else list(recipe.reference)
        raw.set_eeg_reference(reference, verbose="error")
    return raw


def cut(raw: "BaseRaw", events: np.ndarray, recipe: EpochRecipe, path: str | Path) -> np.ndarray:
    """Epochs of a recording from `continuous`, (events, channels, times) in volts.

    Pass some events at a time where memory is short.

    Args:
        raw: Recording from `continuous`.
        events: Sample and code of each event, (events, 2).
        recipe: Recipe for the window, the baseline and the rate.
        path: File of the recording, for messages.

    Raises:
        LayoutError: An epoch reaches beyond an end of the recording, or two events lie at one sample.
    """
    import mne

    check_samples(events, path)
    triples = np.column_stack([events[:, 0] + raw.first_samp, np.zeros_like(events[:, 0]), events[:, 1]])
    epochs = mne.Epochs(
        raw,
        triples,
        tmin=recipe.tmin,
        tmax=recipe.tmax,
        baseline=recipe.baseline,
        reject_by_annotation=False,
        event_repeated="error",
        preload=True,
        verbose="error",
    )
    if len(epochs) != len(events):
        lost = [int(events[i, 0]) for i, reasons in enumerate(epochs.drop_log) if reasons]
        raise LayoutError(
            f"expected {len(events)} epochs from {recipe.tmin} to {recipe.tmax} s in {path}, got "
            f"{len(epochs)}: those at samples {lost} reach beyond its ends"
        )
    rate = raw.info["sfreq"]
    data = epochs.get_data(copy=False)
    return data if recipe.sfreq in (None, rate) else _resample(data, rate, recipe.sfreq, recipe.num_times(rate))


def _resample(epochs: np.ndarray, rate: float, sfreq: float, num_times: int) -> np.ndarray:
    """Epochs at another rate. The time of the first sample stays the same.

    A polyphase filter is used for that reason. Resampling by Fourier transform pads each epoch first. Where the padding
    is no whole number of new samples, it moves the epoch by up to half a sample, which is 5 ms at 100 Hz.
    """
    from scipy.signal import resample_poly

    ratio = Fraction(sfreq / rate).limit_denominator(10_000)
    return resample_poly(epochs, ratio.numerator, ratio.denominator, axis=-1, padtype="line")[..., :num_times]


def _recordings(folder: Path) -> list[Path]:
    paths = [path for path in entries(folder) if path.suffix.lower() in READERS]
    by_name(paths, tuple(READERS))  # refuses one recording in two formats
    if not paths:
        known = [path.name for path in entries(folder.parent) if path.is_dir()]
        raise LayoutError(
            f"expected recordings ending in {', '.join(READERS)} in {folder}, got none{near_names(folder.name, known)}"
        )
    return paths


def _read_repairs(folder: Path, paths: Sequence[Path]) -> dict[str, Mapping[str, Any]]:
    path = folder / _REPAIRS
    repairs = read_json(path) if path.is_file() else {}
    known = [stem(recording, READERS) for recording in paths]
    for name, entry in repairs.items():
        if name not in known or set(entry) - {"add", "drop"}:
            raise LayoutError(
                f"expected names of recordings ({', '.join(known)}) with 'add' and 'drop' in {path}, got {name!r}: "
                f"{entry}"
            )
    return repairs


def _repair(events: np.ndarray, repairs: Mapping[str, Any], raw: "BaseRaw") -> np.ndarray:
    dropped = np.asarray(repairs.get("drop", []), np.int64)
    unknown = np.setdiff1d(dropped, events[:, 0])
    if unknown.size:
        raise LayoutError(
            f"expected events to drop at samples {unknown.tolist()} of {raw.filenames[0]}, got none there"
        )
    added = np.asarray(repairs.get("add", []), np.int64).reshape(-1, 2)
    events = np.concatenate([events[~np.isin(events[:, 0], dropped)], added])
    return events[np.argsort(events[:, 0], kind="stable")]


def _select(events: np.ndarray, event_id: Mapping[str, int], raw: "BaseRaw", path: Path) -> np.ndarray:
    if len(set(event_id.values())) != len(event_id):
        raise BrainDataError(f"expected a different code for each name of event_id, got {dict(event_id)}")
    wanted = np.isin(events[:, 1], list(event_id.values()))
    others = counted(events[~wanted, 1].tolist())
    if not wanted.any():
        masked = set((events[:, 1] & 0xFF).tolist()) & set(event_id.values())
        remedy = "; their low bits fit, pass mask=0xFF in the recipe" if masked else ""
        raise LayoutError(
            f"expected events with codes {sorted(event_id.values())} in {path}, got {others or 'no events at all'}"
            f"{other_markers(raw)}{remedy}"
        )
    if others:
        _log.info("%s: events of other codes are left out: %s", path, others)
    check_samples(events[wanted], path)
    return events[wanted]


def _names_of(events: np.ndarray, event_id: Mapping[str, int], path: Path) -> np.ndarray:
    """The name of the image of each event, from the list beside the recording, or else by its code."""
    listed = path.with_suffix(".txt")
    if not listed.is_file():
        names = {code: name for name, code in event_id.items()}
        return np.array([names[code] for code in events[:, 1].tolist()])
    lines = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    if len(lines) != len(events):
        raise IdError(
            f"expected one line of {listed} for each of {len(events)} events of {path}, got {len(lines)}; name lost or "
            f"doubled triggers in {_REPAIRS}"
        )
    return np.array(lines)


def _found_stimuli(folder: Path, names: Sequence[str]) -> StimulusSet:
    return StimulusSet([f"raw:{name}" for name in names], ImageFiles(find_images(folder, names)))


def _picked(raw: "BaseRaw", recipe: EpochRecipe, path: str | Path) -> list[str]:
    if recipe.channels is None:
        return [raw.ch_names[i] for i in eeg_picks(raw, recipe.kind)]
    missing = [name for name in recipe.channels if name not in raw.ch_names]
    if missing:
        near = near_names(missing[0], raw.ch_names)
        raise AxisError(f"expected channels {', '.join(missing)} in {path}, got none of these names{near}")
    return list(recipe.channels)


def space_of(raw: "BaseRaw", recipe: EpochRecipe, path: str | Path) -> SensorSpace:
    """Channels, rate and times of the epochs that a recipe makes of a recording.

    Args:
        raw: Recording to cut.
        recipe: Recipe for the epochs.
        path: File of the recording, for messages.

    Raises:
        AxisError: A channel is missing, or the montage has no place for half of them.
        BrainDataError: MNE knows no such montage.
    """
    rate = raw.info["sfreq"]
    sfreq = rate if recipe.sfreq is None else recipe.sfreq
    times = round(recipe.tmin * rate) / rate + np.arange(recipe.num_times(rate)) / sfreq
    names = tuple(_picked(raw, recipe, path))
    if recipe.montage is not None:
        check_montage(recipe.montage, names, path)
    return SensorSpace(names, float(sfreq), times, KINDS[recipe.kind], recipe.montage)
