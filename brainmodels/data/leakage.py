"""Guards against scores that are too good: pictures under two ids, models that remember another fold.

Disjoint ids are asserted by `Split`, the ids of a normaliser by `Normalizer.check`; the control of a block design is
`brainmodels.metrics.controls.block_shuffle`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from veca.hashes import hex_digest

from ..errors import BrainDataError, LeakageError
from .dataset import PARTS, Split
from .stimuli import StimulusSet

__all__ = ["Duplicate", "check_duplicates", "check_new_weights"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duplicate:
    """Two images with the same content in two parts."""

    first: str
    first_part: str
    second: str
    second_part: str


def check_duplicates(
    stimuli: StimulusSet, split: Split, content: str = "pixels", allow_duplicates: bool = False
) -> list[Duplicate]:
    """Look for the same content under different ids in different parts of a split.

    Images of the split that `stimuli` does not hold are not looked at. For decoding of text, equal captions matter too:
    NeuSpeech/NeuSpeech1#2 is the case of test sentences that had all been in training.

    Args:
        stimuli: of the split.
        split: any.
        content: "pixels" compares the SHA-256 of pictures as stored, "captions" compares texts in lower case with
            single spaces.
        allow_duplicates: returns what was found, with a warning, instead of raising.

    Raises:
        LeakageError: content of one part is in another.
    """
    if content not in ("pixels", "captions"):
        raise BrainDataError(f"expected content 'pixels' or 'captions', got {content!r}")
    seen, found = {}, []
    for part in PARTS:
        for name in sorted(split.ids(part)):
            if name not in stimuli:
                continue
            for key in _contents(stimuli, name, content):
                first, first_part = seen.setdefault(key, (name, part))
                if first_part != part:
                    found.append(Duplicate(first, first_part, name, part))
    if found:
        one = found[0]
        text = (
            f"expected different {content} in the parts of {split.name!r}, got {len(found)} that are equal, such as "
            f"{one.first} ({one.first_part}) and {one.second} ({one.second_part})"
        )
        if not allow_duplicates:
            raise LeakageError(f"{text}; drop one of each, or pass allow_duplicates=True")
        _log.warning("%s", text)
    return found


def check_new_weights(initial: Mapping[str, np.ndarray], previous: Mapping[str, np.ndarray]) -> None:
    """Make sure that a fold of a cross-validation starts from a model of its own (dongyangli-del/EEG_Image_decode#7).

    Args:
        initial: trained parameters of the fold before training, by name; frozen ones left out.
        previous: the same of the fold before, after its training.

    Raises:
        LeakageError: a parameter starts where the fold before left it. Constant ones, such as zero biases, may.
        BrainDataError: the folds have parameters of other names, which cannot be compared.
    """
    other = sorted(initial.keys() ^ previous.keys())
    if other:
        raise BrainDataError(f"expected parameters of the same names in both folds, got {other[0]!r} in one alone")
    for name in initial:
        start, end = np.asarray(initial[name]), np.asarray(previous[name])
        if start.size > 1 and np.ptp(start) > 0 and np.array_equal(start, end):
            raise LeakageError(
                f"expected new weights in this fold, got {name!r} as the fold before left it; build a model per fold"
            )


def _contents(stimuli: StimulusSet, name: str, content: str) -> list:
    if content == "captions":
        return sorted({" ".join(text.lower().split()) for text in stimuli.captions(name)})
    pixels = stimuli.image(name)
    return [(pixels.shape, hex_digest([pixels]))]
