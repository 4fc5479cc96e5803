"""The test images of a layout without published ones: a given list, repeated images, or a share by hash.

split = held_out(trials, 0.1, by="concept", concepts=folders_of(ids))
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..data.dataset import Split
from ..data.responses import TrialTable
from ..data.splits import holdout, split_from_ids
from ..errors import BrainDataError, IdError, near_names

__all__ = ["folders_of", "given_split", "held_out", "most_shown"]

FEWEST = 10  # test images; fewer repeated images than that make no test part


def given_split(trials: TrialTable, test_ids: Collection[str], where: object, seed: int = 0, **params: object) -> Split:
    """The split "given", with test images that the user lists. All other images are for training and validation.

    Args:
        trials: Table of all trials of one subject.
        test_ids: Ids of the test images, which were all shown.
        where: Source of the list, for the message.
        seed: Seed of the choice of validation images.
        params: Further facts that are kept in `Split.params`.

    Raises:
        IdError: A test image was not shown.
        BrainDataError: The list is empty.
    """
    ids, shown = set(test_ids), set(trials.image_id.tolist())
    unknown = sorted(ids - shown)
    if unknown:
        raise IdError(
            f"expected test images that were shown in {where}, got {unknown[0]!r} and {len(unknown) - 1} more "
            f"that were not{near_names(unknown[0], sorted(shown))}"
        )
    if not ids:
        raise BrainDataError(f"expected some of {len(shown)} shown images as test images in {where}, got none")
    return split_from_ids("given", shown - ids, ids, seed=seed, params=params)


def most_shown(trials: TrialTable) -> frozenset[str]:
    """Ids of the images that were shown clearly more often than most, which data sets repeat to test on them.

    These are the images with more than half of the largest number of presentations, if that number is at least twice
    the median over images. There must be 10 or more of them. Otherwise the set is empty.
    """
    names, counts = np.unique(trials.image_id, return_counts=True)
    if not len(counts) or counts.max() < 2 * np.median(counts):
        return frozenset()
    often = names[2 * counts > counts.max()]
    return frozenset(often.tolist() if len(often) >= FEWEST else ())


def held_out(
    trials: TrialTable, frac: float, by: str = "image", concepts: Mapping[str, str] | None = None, seed: int = 0
) -> Split:
    """A share of the images, concepts or sessions by hash, see `brainmodels.data.holdout`.

    Raises:
        BrainDataError: All images have one concept, or an argument is out of range.
    """
    if by == "concept" and concepts and len(set(concepts.values())) < 2:
        raise BrainDataError(
            f"expected images in folders of two or more concepts for by='concept', got all in "
            f"{next(iter(concepts.values()))!r}"
        )
    return holdout(trials, frac, seed, by, concepts)


def folders_of(ids: Sequence[str]) -> dict[str, str]:
    """The folder of each image by its id, such as "animals" of "animals/cat.jpg". It is the concept of the image.

    Raises:
        IdError: An id has no folder.
    """
    bare = [name for name in ids if "/" not in name]
    if bare:
        raise IdError(
            f"expected a folder in the id of each image for by='concept', such as animals/cat.jpg, got {bare[0]!r} and "
            f"{len(bare) - 1} more without"
        )
    return {name: name.rpartition("/")[0] for name in ids}
