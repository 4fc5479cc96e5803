"""Splits whose test images combine labels as no train image does.

    split = combination_holdout(dataset, ("shape", "color"), frac=0.2, shows=scene_combinations(dataset.stimuli.ids))
    split.params["held_out"]  # [["ring", "red"], ...]

Training may show red squares and blue rings, for example, and the test red rings.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..errors import BrainDataError, IdError
from .dataset import BrainDataset, Split
from .splits import hashed, split_from_ids, validation_ids

__all__ = ["combination_holdout"]

Combination = tuple[str, ...]


def combination_holdout(
    dataset: BrainDataset,
    labels: Sequence[str] = ("shape", "color"),
    frac: float = 0.2,
    seed: int = 0,
    percent: int = 5,
    shows: Mapping[str, Collection[Combination]] | None = None,
) -> Split:
    """Hold out combinations of labels: the test images show pairs that no train or validation image shows.

    Combinations are tried in the order of their hashes. One is passed over where its removal would leave a value of a
    label without a train image. All images that any subject saw are divided, and all subjects have the same parts.

    Labels describe one object of an image, and a picture may show more. A train image with a blue square in front may
    have the held-out red ring behind it. `shows` excludes such images;
    `brainmodels.simulated.scene_combinations` makes it for drawn scenes.

    Args:
        dataset: Data set whose stimuli have the labels.
        labels: Names of two or more labels to combine.
        frac: Share of the occurring combinations to hold out, between 0 and 1. At least one is held out.
        seed: Seed of the choice, and of the choice of validation images.
        percent: Percentage of the train images to validate on.
        shows: All combinations that a picture shows, by image id, with values in the order of `labels`. An image that
            shows a held-out combination only beside its main object is in no part. `params["left_out"]` counts them.

    Raises:
        BrainDataError: Fewer combinations can be held out than `frac` asks for.
        IdError: `shows` lacks an image.
    """
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise BrainDataError(f"expected two or more different labels to combine, got {tuple(labels)}")
    if not 0 < frac < 1:
        raise BrainDataError(f"expected a share between 0 and 1, got {frac}")
    own = _combinations(dataset, labels)
    content = _contents(own, shows)
    validating = validation_ids(own, percent, seed)
    training = {name: content[name] for name in own if name not in validating}
    held = _choose(own, training, labels, frac, seed)
    test = {name for name, combination in own.items() if combination in held}
    train = {name for name in own if not content[name] & held}
    params = {
        "labels": list(labels),
        "frac": frac,
        "combinations": len(set(own.values())),
        "held_out": sorted(map(list, held)),
        "left_out": len(own) - len(train) - len(test),
    }
    return split_from_ids("holdout_combo", train, test, percent, seed, params)


def _combinations(dataset: BrainDataset, labels: Sequence[str]) -> dict[str, Combination]:
    """The combination of each image that any subject saw, by id, sorted."""
    tables = [person.responses.trials.image_id for person in dataset.subjects.values()]
    if not tables:
        raise BrainDataError("expected subjects, whose images are divided, got none")
    ids = np.unique(np.concatenate(tables))
    columns = [dataset.stimuli.label(name, ids).astype(str).tolist() for name in labels]
    return dict(zip(ids.tolist(), zip(*columns, strict=True), strict=True))


def _contents(
    own: Mapping[str, Combination], shows: Mapping[str, Collection[Combination]] | None
) -> dict[str, frozenset[Combination]]:
    """All combinations in a picture, including the one of its labels."""
    missing = [] if shows is None else [name for name in own if name not in shows]
    if missing:
        raise IdError(f"expected the combinations that each of {len(own)} images shows, got none for {missing[0]}")
    others = {} if shows is None else shows
    return {name: frozenset({combination, *map(tuple, others.get(name, ()))}) for name, combination in own.items()}


def _choose(
    own: Mapping[str, Combination],
    training: Mapping[str, frozenset[Combination]],
    labels: Sequence[str],
    frac: float,
    seed: int,
) -> set[Combination]:
    """Combinations to hold out, such that training still shows each value of each label."""
    occurring = sorted(set(own.values()))
    wanted = max(1, round(frac * len(occurring)))
    values = {item for combination in occurring for item in enumerate(combination)}
    held, left = set(), dict(training)
    for candidate in sorted(occurring, key=lambda combination: hashed(f"{seed}:combination", repr(combination))):
        if len(held) == wanted:
            break
        kept = {name: content for name, content in left.items() if candidate not in content}
        if {item for name in kept for item in enumerate(own[name])} == values:
            held, left = held | {candidate}, kept
    if len(held) < wanted:
        raise BrainDataError(
            f"expected {wanted} of {len(occurring)} combinations of {' and '.join(labels)} to hold out while training "
            f"keeps every value of each, got {len(held)}{_rarest(own, training, labels)}; ask for a smaller frac, or "
            "for labels that occur in more combinations"
        )
    return held


def _rarest(own: Mapping[str, Combination], training: Mapping[str, object], labels: Sequence[str]) -> str:
    """The value that occurs in the fewest combinations of train images, as the end of a message."""
    known = Counter(item for combination in {own[name] for name in training} for item in enumerate(combination))
    every = {item for combination in own.values() for item in enumerate(combination)}
    column, value = min(every, key=lambda item: (known[item], item))
    return f" ({labels[column]} {value!r} is in {known[column, value]} of the combinations of train images)"
