"""Neuroscan `.cnt` files say nowhere whether a sample takes two bytes or four. This module finds out.

The header takes 900 bytes and 75 more a channel; then come the samples, then the table of events, whose position is in
the header. Hence position - 900 - 75 C = width * C * samples, and only the true width solves it. A reader that guesses
returns noise that looks like data (mne-tools/mne-python#9482, #12393).
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
    """What the header of a `.cnt` file says, and the width that follows.

    Attributes:
        n_chans: channels.
        sfreq: samples a second, hertz.
        n_samples: of each channel.
        event_table: position of the events in the file, bytes.
        data_format: "int16" or "int32", as MNE names it.
    """

    n_chans: int
    sfreq: float
    n_samples: int
    event_table: int
    data_format: str


def read_cnt_header(path: str | Path) -> CNTHeader:
    """Read a header and compute the width of a sample.

    Positions are stored in 32 bits and wrap around in files above 2 GiB; the equation is solved modulo 2^32, and the
    events must lie within the file.

    Raises:
        LayoutError: the file is too short for its header, or no width of 2 or 4 bytes agrees with it.
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
