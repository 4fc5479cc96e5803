"""Test images that combine what training shows only apart: a red ring, after red squares and blue rings.

split = combination_holdout(dataset, ("shape", "color"), frac=0.2, shows=scene_combinations(dataset.stimuli.ids))
split.params["held_out"]  # [["ring", "red"], ...]
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

    Combinations are taken in an order of their hashes, and passed over where one value of a label would be left
    without a train image. The images are those that any subject saw; all subjects have the same parts.

    Labels are of one object an image. What else a picture shows stays unknown to them: a train image with a blue
    square in front may have the held-out red ring behind it. `shows` closes that hole, and
    `brainmodels.simulated.scene_combinations` makes it for drawn scenes.

    Args:
        dataset: whose stimuli have the labels.
        labels: names of two or more.
        frac: share of the occurring combinations that is held out; at least one.
        seed: of the choice, and of the validation images.
        percent: of `validation_ids`.
        shows: every combination in a picture, by image id, values in the order of `labels`. Images that show a held-out
            one beside a main object of another are in no part; `params["left_out"]` counts them.

    Raises:
        BrainDataError: fewer combinations can be held out than `frac` asks for.
        IdError: `shows` does not have all images.
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
    return split_from_ids("holdout_combo", train, test, None, percent, seed, params)


def _combinations(dataset: BrainDataset, labels: Sequence[str]) -> dict[str, Combination]:
    """The combination of each image that somebody saw, by id, sorted."""
    tables = [person.responses.trials.image_id for person in dataset.subjects.values()]
    if not tables:
        raise BrainDataError("expected subjects, whose images are divided, got none")
    ids = np.unique(np.concatenate(tables))
    columns = [dataset.stimuli.label(name, ids).astype(str).tolist() for name in labels]
    return dict(zip(ids.tolist(), zip(*columns, strict=True), strict=True))


def _contents(
    own: Mapping[str, Combination], shows: Mapping[str, Collection[Combination]] | None
) -> dict[str, frozenset[Combination]]:
    """All combinations in a picture, that of its labels among them."""
    missing = [] if shows is None else [name for name in own if name not in shows]
    if missing:
        raise IdError(f"expected what each of {len(own)} images shows, got nothing of {missing[0]}")
    others = {} if shows is None else shows
    return {name: frozenset({combination, *map(tuple, others.get(name, ()))}) for name, combination in own.items()}


def _choose(
    own: Mapping[str, Combination],
    training: Mapping[str, frozenset[Combination]],
    labels: Sequence[str],
    frac: float,
    seed: int,
) -> set[Combination]:
    """Combinations to hold out, such that each value of each label keeps an image among those to train on."""
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
    """What stands in the way, in words: the value that occurs in the fewest combinations of train images."""
    known = Counter(item for combination in {own[name] for name in training} for item in enumerate(combination))
    every = {item for combination in own.values() for item in enumerate(combination)}
    column, value = min(every, key=lambda item: (known[item], item))
    return f" ({labels[column]} {value!r} is in {known[column, value]} of the combinations of train images)"
