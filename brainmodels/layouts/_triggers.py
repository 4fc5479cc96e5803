"""Codes of events in a recording, from its channel of triggers or from its markers, as they were recorded."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import LayoutError

if TYPE_CHECKING:
    from mne.io import BaseRaw

__all__ = ["check_samples", "counted", "marked_codes", "other_markers", "triggered_codes"]

_log = logging.getLogger(__name__)

_CODE = re.compile(r"(?:Stimulus/)?(?:S\s*)?(\d+)")
_COMPOSED = ("STI101", "STI 014")  # channels that join the bits of all others
_SHOWN = 20  # kinds of codes or markers in a message


def triggered_codes(raw: "BaseRaw", mask: int | None = None, min_gap: float = 0.0) -> np.ndarray | None:
    """Codes of the stimulus channels. Any change to a code other than 0 is an event, with or without 0 in between.

    What the channel holds at its first sample is no event. The log names such a code, and codes that came down from a
    higher one, because the trigger may just have been settling.

    Args:
        raw: Recording.
        mask: Bits that count. None means all.
        min_gap: Shortest time in seconds that a code lasts if it came down from another. Shorter ones are left out.

    Returns:
        Sample and code of each event, int64 (events, 2), or None where there is no stimulus channel.
    """
    import mne

    names = [raw.ch_names[pick] for pick in mne.pick_types(raw.info, meg=False, stim=True)]
    if not names:
        return None
    found = []
    for name in [name for name in _COMPOSED if name in names][:1] or names:
        stored = raw.get_data(np.array([raw.ch_names.index(name)]), verbose="error")[0]
        codes = np.abs(np.rint(np.nan_to_num(stored)).astype(np.int64))
        codes = codes if mask is None else codes & mask
        at = np.flatnonzero(np.diff(codes)) + 1
        lasted = np.diff(at, append=len(codes))
        before, after = codes[at - 1], codes[at]
        lower = (after != 0) & (before > after)
        kept = (after != 0) & ~(lower & (lasted < min_gap * raw.info["sfreq"]))
        if codes[:1].any():
            _log.warning("%s: channel %s starts with code %d, which is no event", _name(raw), name, codes[0])
        if (lower & kept).any():
            first = np.flatnonzero(lower & kept)[0]
            text = (
                "%s: %d of %d codes follow a higher one without a return to 0, the first is %d after %d at sample %d; "
                "if the trigger was settling, pass min_gap or drop_codes in the recipe"
            )
            counts = (lower & kept).sum(), kept.sum()
            _log.warning(text, _name(raw), *counts, after[first], before[first], at[first])
        found.append(np.stack([at[kept], after[kept]], 1))
    return np.unique(np.concatenate(found), axis=0)


def marked_codes(raw: "BaseRaw", mask: int | None = None) -> np.ndarray:
    """Sample and code of each marker such as "Stimulus/S100", "S100" or "100", int64 (events, 2)."""
    onset = raw.annotations.onset - (0 if raw.annotations.orig_time is None else raw.first_time)
    matches = [_CODE.fullmatch(text) for text in raw.annotations.description]
    found = [
        (round(time * raw.info["sfreq"]), int(match[1])) for time, match in zip(onset, matches, strict=True) if match
    ]
    events = np.asarray(found, dtype=np.int64).reshape(-1, 2)
    if mask is not None:
        events[:, 1] &= mask
        events = events[events[:, 1] != 0]
    return events


def other_markers(raw: "BaseRaw") -> str:
    """The end of a message that names the markers without a code, or nothing."""
    texts = [text for text in raw.annotations.description if _CODE.fullmatch(text) is None]
    return f"; markers of other kinds are {counted(texts)}" if texts else ""


def counted(values: list) -> str:
    """Different values with their counts, such as "100 (15 times)", the most frequent first where there are many."""
    counts = Counter(values)
    kinds = sorted(counts.items()) if len(counts) <= _SHOWN else counts.most_common(_SHOWN)
    more = f" and {len(counts) - len(kinds)} more" if len(counts) > len(kinds) else ""
    return ", ".join(f"{value} ({count} times)" for value, count in kinds) + more


def check_samples(events: np.ndarray, path: str | Path) -> None:
    """Check that no two events, (events, 2) of sample and code, lie at one sample. The `LayoutError` names both."""
    samples, counts = np.unique(events[:, 0], return_counts=True)
    if (counts > 1).any():
        sample = samples[counts > 1][0]
        codes = ", ".join(map(str, events[events[:, 0] == sample, 1]))
        raise LayoutError(
            f"expected one event at a sample of {path}, got codes {codes} at sample {sample}, and {(counts > 1).sum()} "
            "such samples in all; remove the marker, or name it in repairs.json"
        )


def _name(raw: "BaseRaw") -> str:
    return str(raw.filenames[0] if raw.filenames and raw.filenames[0] else "recording")
