"""Which images a recording trains and tests on, where the data set does not say it."""

from collections.abc import Sequence
from pathlib import Path

from ..data.dataset import Split
from ..data.responses import TrialTable
from ..data.splits import split_from_ids
from ..errors import BrainDataError, LayoutError
from ._files import read_text
from ._held_out import given_split, held_out, most_shown

__all__ = ["epoch_splits", "names_of_test"]

_SHARE = 0.2  # of the images, where none is repeated clearly more often than others


def epoch_splits(
    trials: TrialTable,
    test: Sequence[str] | None = None,
    holdout: float | None = None,
    seed: int = 0,
    where: object = "test=",
) -> dict[str, Split]:
    """The split of a recording by its name. A recording of a single image has none.

    | given | test images |
    |---|---|
    | `test` | these |
    | `holdout` | a random share |
    | neither | images that were shown clearly more often than most, 10 or more, as in THINGS-EEG2 |
    | neither, and there are no such images | a random fifth |

    Args:
        trials: Table of all trials.
        test: Ids of the test images.
        holdout: Share of the images to test on.
        seed: Seed of the choice of test and of validation images.
        where: Source of `test`, for messages.

    Raises:
        BrainDataError: Both `test` and `holdout` are given, or no image is left to train on.
        IdError: A test image was never shown.
    """
    if test is not None and holdout is not None:
        raise BrainDataError(f"expected test= or holdout=, got {len(test)} test images and a share of {holdout:g}")
    if test is not None:
        split = given_split(trials, test, where, seed)
        if not split.train:
            raise BrainDataError(f"expected images to train on beside the test images of {where}, got none")
        return {split.name: split}
    shown = set(trials.image_id.tolist())
    if len(shown) < 2 and holdout is None:
        return {}
    often = frozenset() if holdout is not None else most_shown(trials)
    if often:
        params = {"repeated": len(often)}
        return {"repeated": split_from_ids("repeated", shown - often, often, seed=seed, params=params)}
    split = held_out(trials, _SHARE if holdout is None else holdout, seed=seed)
    return {split.name: split}


def names_of_test(test: str | Path | Sequence[str] | None, root: Path) -> list[str] | None:
    """Names of test images: a sequence, or the path below `root` of a text file with one name a line. None stays None.

    Raises:
        LayoutError: There is no such file.
    """
    if test is None:
        return None
    if not isinstance(test, str | Path):
        return [str(name) for name in test]
    path = root / test
    if not path.is_file():
        raise LayoutError(f"expected names of test images, one a line, in {path}, got no such file")
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
