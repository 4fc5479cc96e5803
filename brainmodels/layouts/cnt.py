"""The header of Neuroscan `.cnt` files, and the width of their samples, which no field of the header contains.

    read_cnt_header("session01.cnt").data_format  # "int16" or "int32"

The width is computed from the position of the table of events, which the header does contain. A file has 900 bytes,
75 bytes for each of C channels, the samples, and then the events:

    position - 900 - 75 C = width * C * samples

Only the true width solves this. A reader that guesses the width may return noise that looks like data
(mne-tools/mne-python#9482, #12393).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import LayoutError

__all__ = ["CNTHeader", "read_cnt_header"]

HEADER_BYTES, CHANNEL_BYTES = 900, 75
_WIDTHS = {2: "int16", 4: "int32"}


@dataclass(frozen=True)
class CNTHeader:
    """The header of a `.cnt` file, and the computed type of its samples.

    Attributes:
        n_chans: Number of channels.
        sfreq: Sampling rate in hertz.
        n_samples: Number of samples in each channel.
        event_table: Position of the table of events in the file, bytes.
        data_format: Type of the samples, "int16" or "int32", as MNE names it.
    """

    n_chans: int
    sfreq: float
    n_samples: int
    event_table: int
    data_format: str


def read_cnt_header(path: str | Path) -> CNTHeader:
    """Read the header of a file and compute the type of its samples.

    Positions have 32 bits and wrap around in large files. The equation is therefore solved modulo 2^32, and the events
    must lie within the file.

    Raises:
        LayoutError: The file is too short for its header, or neither 2 nor 4 bytes a sample agree with it.
    """
    path = Path(path)
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise LayoutError(f"expected a header of {HEADER_BYTES} bytes in {path}, got a file of {size}")
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    n_chans, rate = struct.unpack_from("<H", header, 370)[0], struct.unpack_from("<H", header, 376)[0]
    n_samples, stored = struct.unpack_from("<i", header, 864)[0], struct.unpack_from("<I", header, 886)[0]
    if n_chans < 1 or n_samples < 1 or rate < 1:
        raise LayoutError(
            f"expected channels, samples and a rate above 0 in {path}, got {n_chans}, {n_samples} and {rate} Hz; "
            "header damaged, or not a Neuroscan file"
        )
    start = HEADER_BYTES + CHANNEL_BYTES * n_chans
    for width, data_format in _WIDTHS.items():
        event_table = start + width * n_chans * n_samples
        if event_table % 2**32 == stored:
            if event_table > size:
                raise LayoutError(
                    f"expected events at byte {event_table} of {path}, got a file of {size}: it is truncated; "
                    "copy it again"
                )
            return CNTHeader(n_chans, float(rate), n_samples, event_table, data_format)
    width = (stored - start) / (n_chans * n_samples)
    raise LayoutError(
        f"expected 2 or 4 bytes per sample in {path}, got bytes per sample = {width:.3g} from {n_chans} channels, "
        f"{n_samples} samples, events at byte {stored} of {size}; header or file truncated"
    )
