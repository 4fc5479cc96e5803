"""What the decoder of a whole window loses without the channels of a region.

rows = occlude_regions(data, targets, options)
rows[0].region, rows[0].two_way.value    # "occipital", the drop of two-way identification
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.sensors import REGIONS, region_of
from ..errors import BrainDataError
from ..metrics.retrieval import two_way
from ..metrics.statistics import Difference, paired_difference
from ..records import to_json
from .epoch_data import EpochData
from .epoch_results import EpochOptions, Targets
from .epoch_scores import WindowDecoder

__all__ = ["OTHER", "Occluded", "channel_regions", "occlude_regions"]

_SYSTEMS = ("standard_", "colin27_", "easycap-M1", "brainproducts-RNP")  # montages of the 10-05 system
OTHER = "other"
"""Region of channels whose names are not those of the extended 10-20 system."""


@dataclass(frozen=True)
class Occluded:
    """What is lost without a region.

    Attributes:
        region: Name of the region.
        channels: Names of its channels.
        two_way: Drop of two-way identification, with its interval over test images.
        top1: Drop of the share of test images that are found first.
    """

    region: str
    channels: tuple[str, ...]
    two_way: Difference
    top1: Difference

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return to_json(self)


def channel_regions(ch_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Channels of each region, in the order of `data.sensors.REGIONS`, then those with other names.

    Empty where half of the names or more are none of the extended 10-20 system, as with BioSemi's names or MEG.
    """
    found: dict[str, list[str]] = {}
    for name in ch_names:
        try:
            region = region_of(name)
        except BrainDataError:
            region = OTHER
        found.setdefault(region, []).append(name)
    if 2 * len(found.get(OTHER, ())) >= len(ch_names):
        return {}
    return {region: tuple(found[region]) for region in (*REGIONS, OTHER) if region in found}


def occlude_regions(data: EpochData, targets: Targets, options: EpochOptions) -> list[Occluded]:
    """Give the channels of each region their mean over the test images, and decode again without another fit.

    Args:
        data: Responses.
        targets: Features of the images.
        options: Resamples and seed.

    Returns:
        A row for each region, or none where the names of the channels say nothing of regions.
    """
    known = data.space.montage is None or data.space.montage.startswith(_SYSTEMS)
    regions = channel_regions(data.space.ch_names) if known else {}
    if not regions:
        return []
    decoder = WindowDecoder.fit(data, targets)
    whole = _measures(decoder, data.test)
    rows = []
    for region, names in regions.items():
        without = data.test.copy()
        channels = np.isin(np.asarray(data.space.ch_names), names)
        without[:, channels] = without[:, channels].mean(0)
        drops = [
            paired_difference(before, after, options.resamples, options.seed)
            for before, after in zip(whole, _measures(decoder, without), strict=True)
        ]
        rows.append(Occluded(region, names, *drops))
    return rows


def _measures(decoder: WindowDecoder, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two-way identification and whether the right image is first, (m,) each."""
    similar = decoder.similarities(epochs)
    first = similar.argmax(1) == np.arange(len(similar))
    return two_way(similar.T), first.astype(np.float64)
