"""EEG and MEG recordings of any vendor, opened with MNE and checked to be EEG in volts or MEG in tesla.

    raw = read_raw("sub01/session01.vhdr")

The checks find damaged files, samples that are read with the wrong width, and units other than volts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AxisError, BrainDataError, LayoutError, UnitsError, near_names, need
from .cnt import read_cnt_header

if TYPE_CHECKING:
    from mne.io import BaseRaw

__all__ = ["KINDS", "READERS", "check_amplitudes", "check_montage", "eeg_picks", "mark_gaps", "read_raw"]

READERS = {
    ".fif": "read_raw_fif",
    ".vhdr": "read_raw_brainvision",
    ".edf": "read_raw_edf",
    ".bdf": "read_raw_bdf",
    ".set": "read_raw_eeglab",
    ".dat": "read_raw_curry",
    ".cdt": "read_raw_curry",
    ".cnt": "read_raw_cnt",
}
KINDS = {"eeg": "V", "mag": "T", "grad": "T/m"}
"""Kinds of channels in the words of MNE, with their units: EEG, magnetometers and gradiometers of MEG."""

_AMPLITUDES = {"eeg": (1e-7, 1e-3), "mag": (1e-15, 1e-9), "grad": (1e-13, 1e-8)}  # of the median absolute deviation
_VARIANCE_RATIO = 1e4
_PROBE_SECONDS = 60.0
_EDF_BYTES = {".edf": 2, ".bdf": 3}  # bytes of a sample


def read_raw(path: str | Path, kind: str = "eeg") -> "BaseRaw":
    """Open a recording by its suffix, without reading all samples, and check the unit of its values.

    A `.cnt` file that starts with RIFF comes from ANT Neuro, any other one from Neuroscan. For the latter, the width of
    a sample is computed (see `cnt`). An `.edf` or `.bdf` file must have no gaps, and the length that its header says.

    Args:
        path: Path of the recording, with one of the suffixes in `READERS`.
        kind: Kind of the channels that are used, one of `KINDS`.

    Returns:
        The recording as an object of MNE.

    Raises:
        LayoutError: The suffix has no reader, or the file is damaged. In a `.cnt` file, this includes neighbouring
            channels whose variances differ by more than 10^4, because samples are then read with the wrong width.
        UnitsError: The median absolute deviation is not that of such channels, 1e-7 to 1e-3 V for EEG.
    """
    try:
        import mne
    except ImportError as error:
        raise need("mne", f"reading {Path(path).name}") from error
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise LayoutError(f"expected a recording ending in {', '.join(READERS)}, got {path}")
    if not path.is_file():
        raise LayoutError(f"expected a recording at {path}, got no such file")
    reader, options = READERS[suffix], {}
    if suffix in _EDF_BYTES:
        _check_records(path, _EDF_BYTES[suffix])
    if suffix == ".cnt":
        with path.open("rb") as file:
            riff = file.read(4) in (b"RIFF", b"RF64")
        if riff:
            reader = "read_raw_ant"
        else:
            options["data_format"] = read_cnt_header(path).data_format
    try:
        raw = getattr(mne.io, reader)(path, preload=False, verbose="error", **options)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise LayoutError(f"expected a complete recording at {path}, got: {error}") from error
    check_amplitudes(raw, path, neighbours="data_format" in options, kind=kind)
    return raw


def check_amplitudes(raw: "BaseRaw", path: Path, neighbours: bool = False, kind: str = "eeg") -> None:
    """Check that the values of a recording can be EEG in volts, or MEG in tesla.

    The check uses a minute from the middle, or all samples where that minute is a gap. It ignores values that are not
    finite, channels that never change, and the offset of each channel.

    Args:
        raw: Recording to check.
        path: File of the recording, for messages.
        neighbours: Whether to compare the variances of neighbouring channels.
        kind: Kind of the channels, one of `KINDS`.

    Raises:
        LayoutError: There is no such channel with a signal, or neighbouring variances differ by more than 10^4.
        UnitsError: The median absolute deviation is not that of such channels, 1e-7 to 1e-3 V for EEG.
    """
    picks = eeg_picks(raw, kind)
    if not picks.size:
        name = {"eeg": "EEG"}.get(kind, kind)
        raise LayoutError(f"expected {name} channels in {path}, got types {sorted(set(raw.get_channel_types()))}")
    half = int(_PROBE_SECONDS * raw.info["sfreq"] / 2)
    middle = raw.n_times // 2
    data = raw.get_data(picks, max(0, middle - half), min(raw.n_times, middle + half), verbose="error")
    if not np.isfinite(data).any():
        data = raw.get_data(picks, verbose="error")
    data = np.where(np.isfinite(data), data, np.nan)
    data = data[~np.isnan(data).all(1)]
    if not len(data):
        raise LayoutError(f"expected signals in {path}, got {len(picks)} channels without a finite value")
    data = data[np.nanmax(data, axis=1) > np.nanmin(data, axis=1)]
    if not len(data):
        raise LayoutError(f"expected signals in {path}, got {len(picks)} channels that never change")
    amplitude = float(np.nanmedian(np.abs(data - np.nanmedian(data, axis=1, keepdims=True))))
    low, high = _AMPLITUDES[kind]
    if neighbours and len(data) > 1:
        ratio = np.exp(np.abs(np.diff(np.log(np.nanvar(data, axis=1))))).max()
        if ratio > _VARIANCE_RATIO:
            raise LayoutError(
                f"expected neighbouring channels of {path} with variances within a factor of {_VARIANCE_RATIO:g}, got "
                f"{ratio:.3g}: samples are probably read with the wrong width; header damaged"
            )
    if not low <= amplitude <= high:
        unit = {"V": "volts", "T": "tesla"}.get(KINDS[kind], KINDS[kind])
        prefix = "micro" if kind == "eeg" else "femto"
        raise UnitsError(
            f"expected a median absolute amplitude of {low:g} to {high:g} {KINDS[kind]} in {path}, got "
            f"{amplitude:.3g}; the unit is probably not {unit}, as after an export in {prefix}{unit}"
        )


def check_montage(name: str, ch_names: Sequence[str], path: str | Path) -> None:
    """Check that a montage of MNE has places for at least half of the channels.

    Args:
        name: Name of the montage, such as "biosemi128".
        ch_names: Names of the channels.
        path: File of the recording, for messages.

    Raises:
        BrainDataError: MNE knows no such montage.
        AxisError: More than half of the channels have no place.
    """
    from mne.channels import get_builtin_montages, make_standard_montage

    known = [str(montage) for montage in get_builtin_montages()]
    try:
        places = {place.upper() for place in make_standard_montage(name).ch_names}
    except ValueError:
        raise BrainDataError(f"expected a montage of MNE, got {name!r}{near_names(name, known)}") from None
    absent = [channel for channel in ch_names if channel.upper() not in places]
    if 2 * len(absent) > len(ch_names):
        raise AxisError(
            f"expected channels of {path} in the montage {name}, got none of {', '.join(absent[:5])} and "
            f"{len(absent)} without a place in all"
        )


def mark_gaps(raw: "BaseRaw") -> None:
    """Annotate stretches with values that are not finite, so that filters of MNE stop at both of their ends."""
    import mne

    bad = np.zeros(raw.n_times + 2, bool)
    for channel in range(len(raw.ch_names)):
        bad[1:-1] |= ~np.isfinite(raw.get_data(np.array([channel]), verbose="error")[0])
    start, stop = np.flatnonzero(np.diff(bad.astype(np.int8))).reshape(-1, 2).T
    if start.size:
        present, sfreq = raw.annotations, raw.info["sfreq"]
        onset = start / sfreq + (0 if present.orig_time is None else raw.first_time)
        gaps = mne.Annotations(onset, (stop - start) / sfreq, "bad_acq_skip", orig_time=present.orig_time)
        raw.set_annotations(present + gaps, verbose="error")


def _check_records(path: Path, width: int) -> None:
    """Check the length of an EDF or BDF file against its header. MNE reads a truncated file without a warning.

    The format is described at https://www.edfplus.info/specs/edf.html. The header has 256 bytes, then 256 for each
    signal. The latter end with 8 bytes for each signal's samples in a record, then 32 reserved bytes for each signal.

    | bytes | content |
    |---|---|
    | 184 to 191 | length of the header |
    | 192 to 235 | reserved; EDF+ says here whether records follow each other without gaps |
    | 236 to 243 | number of records |
    | 252 to 255 | number of signals |

    Args:
        path: Path of the file.
        width: Number of bytes of a sample.

    Raises:
        LayoutError: The header is damaged, the file has gaps, or it has another length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(256)
        try:
            start, records, n_chans = (int(header[at]) for at in (slice(184, 192), slice(236, 244), slice(252, 256)))
            if start != 256 * (n_chans + 1) or n_chans < 1 or records < 1:
                raise ValueError(f"{start} bytes of header, {records} records of {n_chans} signals")
            file.seek(256 + 216 * n_chans)
            samples = sum(int(file.read(8)) for _ in range(n_chans))
        except ValueError as error:
            raise LayoutError(
                f"expected the header of a finished EDF or BDF recording in {path}, got: {error}; the file is damaged, "
                "or the recording was not stopped properly"
            ) from None
    if header[192:197] in (b"EDF+D", b"BDF+D"):
        raise LayoutError(
            f"expected a recording without gaps in {path}, got {header[192:197].decode()}, whose records do not follow "
            "each other; export it as continuous pieces"
        )
    expected = start + records * samples * width
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise LayoutError(
            f"expected {expected} bytes of {path} for {records} records of {samples} samples, got {size}: the file is "
            f"{state}; copy it again"
        )


def eeg_picks(raw: "BaseRaw", kind: str = "eeg") -> np.ndarray:
    """Positions of the EEG channels, or of another of `KINDS`, those that are marked as bad included."""
    import mne

    none: Any = []  # the default leaves out bad channels
    meg: Any = False if kind == "eeg" else kind
    return mne.pick_types(raw.info, meg=meg, eeg=kind == "eeg", exclude=none)
