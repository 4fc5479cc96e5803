"""Checks for two causes of scores that are too good: equal images in two parts, and weights kept between folds.

    check_duplicates(dataset.stimuli, split)      # raises where a test picture is also a train picture
    duplicates_of(dataset.stimuli, split)         # the same, and tells in words what was found
    check_new_weights(initial, previous)          # raises where a fold starts from the weights of the last one

Other checks have other places. `Split` refuses ids in two parts, and `Normalizer.check` refuses statistics of test
images. `brainmodels.metrics.controls.block_shuffle` is the control of a block design.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BrainDataError, LeakageError
from .dataset import PARTS, Split, Subject
from .stimuli import StimulusSet

__all__ = ["Duplicate", "check_duplicates", "check_new_weights", "duplicates_of"]

_log = logging.getLogger(__name__)
_NAMED = 5  # pairs of duplicates that a message names


@dataclass(frozen=True)
class Duplicate:
    """Two images with the same content in two parts of a split.

    Attributes:
        first: Id of one image.
        first_part: Part of that image.
        second: Id of the other image.
        second_part: Part of the other image.
    """

    first: str
    first_part: str
    second: str
    second_part: str

    def __str__(self) -> str:
        return f"{self.first} ({self.first_part}) and {self.second} ({self.second_part})"


def check_duplicates(
    stimuli: StimulusSet,
    split: Split,
    content: str = "pixels",
    allow_duplicates: bool = False,
    subjects: Sequence[Subject] = (),
) -> list[Duplicate]:
    """Look for images with the same content under different ids in different parts of a split.

    Images of the split without a picture in `stimuli` are not looked at. Equal captions matter for the decoding of
    text: in NeuSpeech/NeuSpeech1#2 all test sentences had been in training.

    Args:
        stimuli: Images of the split.
        split: Split to check.
        content: "pixels" compares the SHA-256 of pictures as stored. "captions" compares texts in lower case with
            single spaces.
        allow_duplicates: Whether to warn instead of raising.
        subjects: Subjects that are trained or tested on. Only images that they saw are compared. Default: all images.

    Returns:
        The pairs of equal images.

    Raises:
        LeakageError: Content of one part is also in another.
        BrainDataError: `content` is unknown.
    """
    if content not in ("pixels", "captions"):
        raise BrainDataError(f"expected content 'pixels' or 'captions', got {content!r}")
    seen, found = {}, []
    for part in PARTS:
        for name in _images_of(stimuli, split, part, content, subjects):
            for key in _contents(stimuli, name, content):
                first, first_part = seen.setdefault(key, (name, part))
                if first_part != part:
                    found.append(Duplicate(first, first_part, name, part))
    if found:
        text = (
            f"expected different {content} in the parts of {split.name!r}, got {len(found)} that are equal, such as "
            + "; ".join(map(str, found[:_NAMED]))
        )
        if not allow_duplicates:
            raise LeakageError(f"{text}; drop one of each, or pass allow_duplicates=True")
        _log.warning("%s", text)
    return found


def duplicates_of(
    stimuli: StimulusSet, split: Split, allow_duplicates: bool = False, subjects: Sequence[Subject] = ()
) -> str:
    """Look for equal pictures in two parts of a split, and tell in words what was found.

    Args:
        stimuli: Images of the split.
        split: Split to check.
        allow_duplicates: Whether to warn instead of raising.
        subjects: Subjects that are trained or tested on. Only images that they saw are compared. Default: all images.

    Raises:
        LeakageError: A picture of one part is also in another.
    """
    compared = sum(len(_images_of(stimuli, split, part, "pixels", subjects)) for part in PARTS)
    found = check_duplicates(stimuli, split, allow_duplicates=allow_duplicates, subjects=subjects)
    if not compared:
        return "pictures are not known, so duplicates were not looked for"
    if not found:
        return f"no equal pictures in two parts of the split, of {compared} compared"
    named = "; ".join(map(str, found[:_NAMED]))
    return f"{len(found)} of {compared} pictures are duplicates of pictures in another part (allowed), such as {named}"


def check_new_weights(initial: Mapping[str, np.ndarray], previous: Mapping[str, np.ndarray]) -> None:
    """Check that a fold of a cross-validation starts from new weights.

    dongyangli-del/EEG_Image_decode#7 is a case where one model was trained through all folds.

    Args:
        initial: Parameters of this fold before its training, by name, without frozen ones.
        previous: Parameters of the previous fold after its training, by name.

    Raises:
        LeakageError: A parameter starts with the values that the previous fold ended with. Constant parameters, such
            as zero biases, may be equal.
        BrainDataError: The names of the parameters differ, so they cannot be compared.
    """
    other = sorted(initial.keys() ^ previous.keys())
    if other:
        raise BrainDataError(f"expected equal names of parameters in both folds, got {other[0]!r} in one of them only")
    for name in initial:
        start, end = np.asarray(initial[name]), np.asarray(previous[name])
        if start.size > 1 and np.ptp(start) > 0 and np.array_equal(start, end):
            raise LeakageError(
                f"expected new weights in this fold, got {name!r} as the fold before left it; build a model per fold"
            )


def _images_of(stimuli: StimulusSet, split: Split, part: str, content: str, subjects: Sequence[Subject]) -> list[str]:
    """Ids of the images of a part that can be compared, sorted."""
    names = set(split.ids(part))
    if subjects:
        names = set().union(*(_shown(person, split, part) for person in subjects))
    return sorted(x for x in names if x in stimuli and (content != "pixels" or stimuli.has_picture(x)))


def _shown(person: Subject, split: Split, part: str) -> set[str]:
    trials = person.responses.trials
    return set(trials.image_id[split.rows(trials, part, person.id)].tolist())


def _contents(stimuli: StimulusSet, name: str, content: str) -> list:
    """Keys that are equal where the content is: one for the pixels, or one for each caption."""
    if content == "captions":
        return sorted({" ".join(text.lower().split()) for text in stimuli.captions(name)})
    return [stimuli.digest(name)]
