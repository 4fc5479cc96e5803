"""Regions of EEG channels by name, bins of time, and whether two recordings have the same channels and times.

regions_of(space.ch_names)["occipital"]  # ("PO7", "PO5", ..., "CB2")
binned(values, space.sfreq, 0.04)  # (n, C, T) to (n, C, bins), means of 40 ms
"""

import re
from collections.abc import Sequence

import numpy as np

from ..errors import AxisError, BrainDataError, UnitsError
from .spaces import SensorSpace

__all__ = ["REGIONS", "binned", "check_space", "region_of", "regions_of", "time_slices"]

REGIONS = {
    "frontal": ("FP", "AF", "F"),
    "central": ("FC", "C", "CP"),
    "temporal": ("FT", "T", "TP", "M"),
    "parietal": ("P",),
    "occipital": ("PO", "O", "CB"),
}
"""Letters of the channels of each region, in the extended 10-20 system. M is the mastoid, CB lies below O."""

_NAME = re.compile(r"(?P<letters>[A-Z]+?)(?P<place>Z|[0-9]{1,2})")
_REGION = {letters: region for region, group in REGIONS.items() for letters in group}


def region_of(ch_name: str) -> str:
    """Region of a channel, by the letters before its number or Z, in any case: "occipital" for "POz".

    Args:
        ch_name: Name of the channel in the extended 10-20 system.

    Raises:
        BrainDataError: The name is not one of that system, or its letters belong to no region.
    """
    match = _NAME.fullmatch(ch_name.strip().upper())
    if match is None or match["letters"] not in _REGION:
        letters = ", ".join(_REGION)
        raise BrainDataError(f"expected a channel whose name is a number or Z after one of {letters}, got {ch_name!r}")
    return _REGION[match["letters"]]


def regions_of(ch_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Channels of each region, by name.

    The regions are those of `REGIONS`, in this order. A region without channels is left out. The 64 channels of EEG-3D
    give 14 frontal, 21 central, 8 temporal, 9 parietal and 12 occipital ones.

    Args:
        ch_names: Names of the channels. Their spelling and order are kept.

    Raises:
        BrainDataError: A channel belongs to no region.
    """
    places = [region_of(name) for name in ch_names]
    found = {
        region: tuple(name for name, place in zip(ch_names, places, strict=True) if place == region)
        for region in REGIONS
    }
    return {region: names for region, names in found.items() if names}


def time_slices(num_times: int, sfreq: float, seconds: float) -> list[slice]:
    """Consecutive slices of `seconds` over all samples. The last one is shorter where they do not fit exactly.

    Args:
        num_times: Number of samples.
        sfreq: Sampling rate in hertz.
        seconds: Length of a slice in seconds.

    Raises:
        BrainDataError: A slice would be shorter than a sample.
    """
    width = round(seconds * sfreq)
    if width < 1:
        raise BrainDataError(f"expected slices of one sample or more, {1 / sfreq:g} s, got {seconds:g} s")
    return [slice(start, min(start + width, num_times)) for start in range(0, num_times, width)]


def binned(values: np.ndarray, sfreq: float, seconds: float) -> np.ndarray:
    """Means over the slices of `time_slices`.

    Args:
        values: Trials, (n, C, T).
        sfreq: Sampling rate in hertz.
        seconds: Length of a bin in seconds.

    Returns:
        (n, C, bins), in the type of the values.

    Raises:
        AxisError: The values do not have three axes.
        BrainDataError: A bin would be shorter than a sample.
    """
    if np.ndim(values) != 3:
        raise AxisError(f"expected trials (n, channels, times), got {np.shape(values)}")
    parts = time_slices(values.shape[2], sfreq, seconds)
    return np.stack([values[:, :, part].mean(2) for part in parts], 2)  # (n, C, bins)


def check_space(expected: SensorSpace, given: SensorSpace, stream: str) -> None:
    """Check that trials have the channels, times and unit that a model was fitted with.

    Args:
        expected: Space of the fit.
        given: Space of the trials.
        stream: Name of the stream, for messages.

    Raises:
        AxisError: The channels or their order, the sampling rate, the number of times or their start differ.
        UnitsError: The units differ.
    """
    first, second = list(expected.ch_names), list(given.ch_names)
    if len(first) != len(second):
        raise AxisError(f"expected {len(first)} channels of {stream} as in the fit, got {len(second)}")
    for place, (wanted, got) in enumerate(zip(first, second, strict=True)):
        if wanted != got:
            raise AxisError(f"expected channel {wanted} of {stream} at position {place} as in the fit, got {got}")
    if expected.sfreq != given.sfreq:
        raise AxisError(f"expected {expected.sfreq:g} Hz of {stream} as in the fit, got {given.sfreq:g} Hz")
    if len(expected.times) != len(given.times):
        raise AxisError(f"expected {len(expected.times)} times of {stream} as in the fit, got {len(given.times)}")
    if len(expected.times) and abs(expected.times[0] - given.times[0]) * expected.sfreq > 0.5:
        raise AxisError(
            f"expected times of {stream} from {expected.times[0]:g} s as in the fit, got {given.times[0]:g} s"
        )
    if expected.unit != given.unit:
        raise UnitsError(f"expected {stream} in {expected.unit} as in the fit, got {given.unit}")
