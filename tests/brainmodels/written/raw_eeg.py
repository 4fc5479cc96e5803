"""Writes a simulated subject as continuous recordings: FIF, BrainVision, EDF, BDF and Neuroscan CNT."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from brainmodels.data.dataset import BrainDataset
from brainmodels.errors import BrainDataError, need

__all__ = ["write_bdf", "write_brainvision", "write_cnt", "write_edf", "write_fif", "write_raw_eeg"]

VOLTS = 1e-5  # volts of one standard deviation of the simulated noise
_RECORD_SECONDS = 0.5  # length of a record of EDF and BDF
_ANNOTATION_BYTES = 240  # bytes for annotations in a record


def write_raw_eeg(
    dataset: BrainDataset,
    root: str | Path,
    subject: str = "sim01",
    form: str = "fif",
    sessions: int = 2,
    code: int = 100,
    image_size: int = 64,
) -> dict[str, str]:
    """Write recordings with lists of what they show, and the images.

    Half a second of zeros comes before and after each trial. Epochs of the length of a trial, unfiltered and without
    baseline, are then the trials, to the precision of the format:

    | form | precision |
    |---|---|
    | FIF (fp32) | exact |
    | BrainVision | 1e-6 microvolts |
    | EDF, BDF | half a count, with 16 and 24 bits over the range of a channel |
    | CNT | half a microvolt, because counts are whole microvolts |

    Args:
        dataset: Data set of `simulate_eeg`. One unit of its values becomes 10 microvolts.
        root: Folder to write to, which is created if it is missing.
        subject: Id of the subject, which is also the name of its folder.
        form: Format of the recordings: "fif", "brainvision", "edf", "bdf", "cnt32" or "cnt16".
        sessions: Number of recordings, with about equally many trials each.
        code: Code of the onset of every image.
        image_size: Side of the PNG files in pixels.

    Returns:
        Ids that `layouts.raw_eeg.load` gives to the images, by their ids in `dataset`.
    """
    root, person = Path(root), dataset.subject(subject)
    (root / subject).mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    names = {image_id: image_id.replace(":", "_") for image_id in np.unique(person.responses.trials.image_id).tolist()}
    for image_id, name in names.items():
        Image.fromarray(dataset.stimuli.image(image_id, image_size)).save(root / "images" / f"{name}.png")
    onset = -round(person.space.times[0] * person.space.sfreq)
    pause = np.zeros((len(person.space), round(person.space.sfreq / 2)))
    for number, trials in enumerate(np.array_split(np.arange(len(person.responses)), sessions), 1):
        pieces, events, start = [pause], [], pause.shape[1]
        for trial in person.responses.batch(trials):
            events.append((start + onset, code))
            pieces += [trial.astype(np.float64) * VOLTS, pause]
            start += trial.shape[1] + pause.shape[1]
        path = root / subject / f"session{number:02d}"
        _WRITERS[form](path, np.concatenate(pieces, axis=1), person.space.ch_names, person.space.sfreq, events)
        shown = person.responses.trials.image_id[trials].tolist()
        path.with_suffix(".txt").write_text("".join(f"{names[image_id]}\n" for image_id in shown), encoding="utf-8")
    return {image_id: f"raw:{name}" for image_id, name in names.items()}


def write_fif(
    path: str | Path, data: np.ndarray, ch_names: Sequence[str], sfreq: float, events: Sequence[tuple[int, int]]
) -> Path:
    """Write `path`.fif with a stimulus channel STI.

    Args:
        path: Path of the file without its suffix.
        data: Signals (channels, samples) in volts.
        ch_names: Names of the channels.
        sfreq: Sampling rate in hertz.
        events: Sample and code of each event.
    """
    try:
        import mne
    except ImportError as error:
        raise need("mne", "writing a FIF file") from error
    stimulus = np.zeros((1, data.shape[1]))
    for sample, code in events:
        stimulus[0, sample] = code
    info = mne.create_info([*ch_names, "STI"], sfreq, ["eeg"] * len(ch_names) + ["stim"])
    out = Path(path).with_name(f"{Path(path).name}.fif")
    raw = mne.io.RawArray(np.concatenate([data, stimulus]), info, verbose="error")
    raw.save(out, overwrite=True, verbose="error")
    return out


def write_brainvision(
    path: str | Path, data: np.ndarray, ch_names: Sequence[str], sfreq: float, events: Sequence[tuple[int, int]]
) -> Path:
    """Write `path`.vhdr with its .vmrk and .eeg, in fp32 microvolts. The arguments are those of `write_fif`."""
    path = Path(path)
    title = "Brain Vision Data Exchange {} File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\nDataFile={}.eeg\n"
    channels = "".join(f"Ch{number}={name},,1,µV\n" for number, name in enumerate(ch_names, 1))
    header = (
        f"{title.format('Header', path.name)}MarkerFile={path.name}.vmrk\nDataFormat=BINARY\n"
        f"DataOrientation=MULTIPLEXED\nNumberOfChannels={len(ch_names)}\nSamplingInterval={1e6 / sfreq:g}\n\n"
        f"[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n{channels}"
    )
    markers = "Mk1=New Segment,,1,1,0,20260101000000000000\n" + "".join(
        f"Mk{number}=Stimulus,S{code:3d},{sample + 1},1,0\n" for number, (sample, code) in enumerate(events, 2)
    )
    path.with_suffix(".vhdr").write_text(header, encoding="utf-8")
    path.with_suffix(".vmrk").write_text(
        f"{title.format('Marker', path.name)}\n[Marker Infos]\n{markers}", encoding="utf-8"
    )
    (data.T * 1e6).astype("<f4").tofile(path.with_suffix(".eeg"))
    return path.with_suffix(".vhdr")


def write_cnt(
    path: str | Path,
    data: np.ndarray,
    ch_names: Sequence[str],
    sfreq: float,
    events: Sequence[tuple[int, int]],
    width: int = 4,
) -> Path:
    """Write `path`.cnt in the format of Neuroscan, little endian, one count a microvolt.

    Other arguments are those of `write_fif`. Values are rounded to whole microvolts.

    Args:
        width: Number of bytes of a sample, 2 or 4.
    """
    n_chans, n_samples = data.shape
    start = 900 + 75 * n_chans
    header = bytearray(start)
    struct.pack_into("<H", header, 370, n_chans)
    struct.pack_into("<H", header, 376, round(sfreq))
    struct.pack_into("<i", header, 864, n_samples)
    struct.pack_into("<i", header, 886, start + width * n_chans * n_samples)
    header[225:245] = b"01/02/26".ljust(10, b"\0") + b"12:00:00".ljust(10, b"\0")
    for number, name in enumerate(ch_names):
        at = 900 + 75 * number
        header[at : at + 10] = name.encode("ascii").ljust(10, b"\0")
        angle = 2 * np.pi * number / n_chans
        struct.pack_into("<2f", header, at + 19, np.cos(angle), np.sin(angle))
        struct.pack_into("<f", header, at + 59, 204.8)
        struct.pack_into("<f", header, at + 71, 1.0)
    counts = np.rint(data.T * 1e6)
    limits = np.iinfo(f"<i{width}")
    if counts.min() < limits.min or counts.max() > limits.max:
        raise BrainDataError(f"expected counts of {limits.dtype}, got {counts.min():g} to {counts.max():g}")
    table = struct.pack("<Bii", 1, 8 * len(events), 0)
    for sample, code in events:
        table += struct.pack("<HBbi", code, 0, 0, start + width * n_chans * (sample + 1))
    out = Path(path).with_suffix(".cnt")
    out.write_bytes(bytes(header) + counts.astype(f"<i{width}").tobytes() + table)
    return out


def write_edf(
    path: str | Path, data: np.ndarray, ch_names: Sequence[str], sfreq: float, events: Sequence[tuple[int, int]]
) -> Path:
    """Write `path`.edf in the format EDF+C, with records of half a second and events as annotations.

    The largest absolute value of a channel, rounded up to a whole microvolt, is 32767 counts
    (https://www.edfplus.info/specs/edfplus.html). The arguments are those of `write_fif`, and samples must fill whole
    records.
    """
    counts, limits = _counted(data, 32767)
    per_record = _samples_per_record(data, sfreq)
    records = counts.reshape(len(counts), -1, per_record).transpose(1, 0, 2).astype("<i2")
    notes = np.stack([_annotations(number, per_record, sfreq, events) for number in range(len(records))])
    signals = [(name, "uV", limit, 32767, per_record) for name, limit in zip(ch_names, limits, strict=True)]
    signals.append(("EDF Annotations", "", 1, 32767, _ANNOTATION_BYTES // 2))
    body = np.concatenate([records.reshape(len(records), -1).view(np.uint8), notes], axis=1)
    out = Path(path).with_name(f"{Path(path).name}.edf")
    out.write_bytes(_edf_header(b"0".ljust(8), "EDF+C", len(records), signals) + body.tobytes())
    return out


def write_bdf(
    path: str | Path, data: np.ndarray, ch_names: Sequence[str], sfreq: float, events: Sequence[tuple[int, int]]
) -> Path:
    """Write `path`.bdf in the format of BioSemi, with 24 bits and events in a channel Status, as `write_edf` does."""
    counts, limits = _counted(data, 2**23 - 1)
    per_record = _samples_per_record(data, sfreq)
    status = np.zeros((1, data.shape[1]), np.int64)
    for sample, code in events:
        status[0, sample] = code
    counts = np.concatenate([counts, status])
    records = counts.reshape(len(counts), -1, per_record).transpose(1, 0, 2).astype("<i4")
    signals = [(name, "uV", limit, 2**23 - 1, per_record) for name, limit in zip(ch_names, limits, strict=True)]
    signals.append(("Status", "Boolean", 2**23 - 1, 2**23 - 1, per_record))
    body = records[..., None].view(np.uint8)[..., :3]  # the highest byte repeats the sign
    out = Path(path).with_name(f"{Path(path).name}.bdf")
    out.write_bytes(_edf_header(b"\xffBIOSEMI", "24BIT", len(records), signals) + body.tobytes())
    return out


def _counted(data: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (channels, samples), and the microvolts of `top` counts of each channel."""
    limits = np.maximum(1, np.ceil(np.abs(data).max(axis=1) * 1e6)).astype(np.int64)
    return np.rint(data * 1e6 / limits[:, None] * top).astype(np.int64), limits


def _samples_per_record(data: np.ndarray, sfreq: float) -> int:
    per_record = sfreq * _RECORD_SECONDS
    if per_record % 1 or data.shape[1] % per_record:
        raise BrainDataError(
            f"expected whole records of {_RECORD_SECONDS} s, got {data.shape[1]} samples at {sfreq:g} Hz"
        )
    return int(per_record)


def _annotations(number: int, per_record: int, sfreq: float, events: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes of a record's annotations: its start, then its events."""
    start = number * per_record
    text = f"+{start / sfreq:.6f}\x14\x14\0"
    for sample, code in events:
        if start <= sample < start + per_record:
            text += f"+{sample / sfreq:.6f}\x14{code}\x14\0"
    if len(text) > _ANNOTATION_BYTES:
        raise BrainDataError(f"expected events in at most {_ANNOTATION_BYTES} bytes a record, got {len(text)}")
    return np.frombuffer(text.encode("ascii").ljust(_ANNOTATION_BYTES, b"\0"), np.uint8)


def _edf_header(version: bytes, kind: str, records: int, signals: Sequence[tuple[str, str, int, int, int]]) -> bytes:
    """The header: 256 bytes, then 256 a signal, from name, unit, limit in that unit and in counts, samples a record."""
    names, units, limits, tops, lengths = zip(*signals, strict=True)
    fixed = [
        ("X X X X", 80),
        ("Startdate 01-JAN-2026 X X X", 80),
        ("01.01.26", 8),
        ("12.00.00", 8),
        (256 * (len(signals) + 1), 8),
        (kind, 44),
        (records, 8),
        (f"{_RECORD_SECONDS:g}", 8),
        (len(signals), 4),
    ]
    empty = [""] * len(signals)
    columns = [
        (names, 16),
        (empty, 80),  # transducers
        (units, 8),
        ([-limit for limit in limits], 8),
        (limits, 8),
        ([-top for top in tops], 8),
        (tops, 8),
        (empty, 80),  # filters
        (lengths, 8),
        (empty, 32),
    ]
    fields = fixed + [(value, width) for values, width in columns for value in values]
    return version + "".join(str(value).ljust(width) for value, width in fields).encode("ascii")


def _write_cnt16(*arguments) -> Path:
    return write_cnt(*arguments, width=2)


_WRITERS = {
    "fif": write_fif,
    "brainvision": write_brainvision,
    "edf": write_edf,
    "bdf": write_bdf,
    "cnt32": write_cnt,
    "cnt16": _write_cnt16,
}
