"""Named splits of images into train, validation and test parts.

    trials = dataset.subject("subj01").responses.trials
    split = shared1000(trials, shared_ids)
    split.params["variant"]  # "982 of 1000 shared images seen (37 sessions, older papers)"
    first_session(trials, split.test).params["budget"]  # "680 trials of 671 images from 1 session"

A split lists image ids. The trials of each part follow from the table of a subject's trials.
`params["budget"]` states the cost of recording the training part, see `recording_cost`.
`combinations.combination_holdout` makes one more split, "holdout_combo": its test images combine labels in new ways.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from veca.hashes import hex_digest

from ..errors import BrainDataError, IdError, LeakageError
from .dataset import Split
from .ids import as_ids
from .recording_costs import recording_cost
from .responses import TrialTable

__all__ = [
    "bold5000_5fold",
    "bold5000_repeated",
    "class_holdout",
    "first_250_images",
    "first_session",
    "holdout",
    "repeated_images",
    "shared1000",
    "split_from_ids",
    "validation_ids",
]

_SHARED_SEEN = {
    1000: "40 sessions",
    982: "37 sessions, older papers",
    930: "32 sessions",
    907: "30 sessions",
}


def validation_ids(train_ids: Iterable[str], percent: int = 5, seed: int = 0) -> frozenset[str]:
    """Choose the validation images among the train images.

    The choice depends on the id of the image alone: hash(seed, id) mod 100 < percent, with the SHA-256 of "seed:id".
    Adding images therefore changes no earlier choice.

    Args:
        train_ids: Ids of all train images.
        percent: Percentage of the images to choose.
        seed: Seed of the choice.

    Returns:
        The ids of the validation images.
    """
    return frozenset(name for name in map(str, train_ids) if hashed(seed, name) % 100 < percent)


def split_from_ids(
    name: str,
    train_ids: Iterable[str],
    test_ids: Iterable[str],
    percent: int = 5,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
    *,
    val_ids: Iterable[str] | None = None,
    sessions: Mapping[str, Iterable[int]] | None = None,
) -> Split:
    """A split from lists of ids.

    Args:
        name: Name of the rule that made the lists.
        train_ids: Ids of the train images.
        test_ids: Ids of the test images.
        percent: Percentage of the train images to validate on, where `val_ids` is None.
        seed: Seed of that choice, see `validation_ids`.
        params: Further parameters of the rule, kept in `Split.params`.
        val_ids: Ids of the validation images. None chooses them by `validation_ids` and takes them out of `train_ids`.
        sessions: Session numbers by part. A part that is named here has the trials of these sessions only.

    Raises:
        LeakageError: An id is in two parts.
    """
    train, test = (frozenset(as_ids(list(ids)).tolist()) for ids in (train_ids, test_ids))
    if train & test:
        raise LeakageError(f"expected disjoint train and test images of {name!r}, got {min(train & test)} in both")
    params = dict(params or {})
    if val_ids is None:
        val = validation_ids(train, percent, seed)
        train, params = train - val, {"val_percent": percent, "seed": seed, **params}
    else:
        val = frozenset(as_ids(list(val_ids)).tolist())
    sessions = {part: frozenset(map(int, numbers)) for part, numbers in (sessions or {}).items()} or None
    return Split(name, train, val, test, params, sessions=sessions)


def shared1000(
    trials: TrialTable | Sequence[TrialTable],
    shared_ids: Iterable[str],
    variant: str = "seen",
    percent: int = 5,
    seed: int = 0,
) -> Split:
    """The test set of the Natural Scenes Dataset: the 1000 images that all subjects were meant to see.

    A subject saw fewer of them where fewer sessions are available, and `params["variant"]` says which case it is:

    | sessions | shared images seen |
    |---|---|
    | 40 | 1000 |
    | 37 (older papers) | 982 |
    | 32 | 930 |
    | 30 | 907 |
    | 30, all eight subjects, three times each | 515 |

    A shared image that is not in the test part is not in the train part either.

    Args:
        trials: Table of all trials of one subject, or one table for each of several subjects.
        shared_ids: Ids of all shared images, those with masterordering <= 1000.
        variant: "seen" tests on images that any subject saw, "three_repeats" on images that each saw three times.
        percent: Percentage of the train images to validate on.
        seed: Seed of the choice of validation images.

    Raises:
        IdError: No shared image was shown.
        BrainDataError: `variant` is unknown.
    """
    tables = [trials] if isinstance(trials, TrialTable) else list(trials)
    shared = frozenset(map(str, shared_ids))
    shown = [presentations(table) for table in tables]
    seen = shared.intersection(*[set().union(*shown)])
    if variant == "seen":
        test, known = seen, _SHARED_SEEN.get(len(seen))
        text = f"{len(test)} of {len(shared)} shared images seen" + (f" ({known})" if known else "")
    elif variant == "three_repeats":
        test = frozenset(name for name in shared if all(counts.get(name, 0) >= 3 for counts in shown))
        known = " (all eight subjects, 30 sessions)" if len(test) == 515 else ""
        text = f"{len(test)} of {len(shared)} shared images with three repeats{known}"
    else:
        raise BrainDataError(f"expected variant 'seen' or 'three_repeats', got {variant!r}")
    if not test:
        raise IdError(f"expected some of {len(shared)} shared images among {_total(shown)} shown, got none ({variant})")
    params = {"variant": text, "shared": len(shared), "unused": len(seen - test)}
    return split_from_ids("shared1000", set().union(*shown) - shared, test, percent, seed, params)


def first_session(trials: TrialTable, test_ids: Iterable[str], percent: int = 5, seed: int = 0) -> Split:
    """Train on the trials of the first session that show no test image. MindEye2 calls this "1 hour" of data.

    About 680 of the 750 trials of an NSD session are left. Most of them are the only presentation of their image,
    because later sessions are not used. `first_250_images` is another task.

    Args:
        trials: Table of all trials of one subject.
        test_ids: Ids of the test images, which are tested on with the trials of all sessions.
        percent: Percentage of the train images to validate on.
        seed: Seed of the choice of validation images.

    Raises:
        BrainDataError: The session of a trial is unknown.
    """
    first = _known_sessions(trials)[0]
    test = frozenset(map(str, test_ids))
    train = set(trials.image_id[trials.session == first].tolist()) - test
    sessions = {"train": [first], "val": [first]}
    split = split_from_ids("first_session", train, test, percent, seed, {"session": int(first)}, sessions=sessions)
    split.params["budget"] = str(recording_cost(trials, split))
    return split


def first_250_images(
    trials: TrialTable,
    test_ids: Iterable[str],
    num_images: int = 250,
    repeats: int = 3,
    percent: int = 5,
    seed: int = 0,
) -> Split:
    """Train on the first 250 train images with all their repeats. SynBrain calls this "1 hour" of data.

    These are 750 trials from many sessions, so `first_session` is another task.

    Args:
        trials: Table of all trials of one subject.
        test_ids: Ids of the test images.
        num_images: Number of images to take, in the order of their first appearance.
        repeats: Number of presentations that an image must have. Images with more or fewer are passed over, and
            `params["passed_over"]` counts them.
        percent: Percentage of the train images to validate on.
        seed: Seed of the choice of validation images.

    Raises:
        IdError: Too few images were shown exactly `repeats` times.
    """
    test = frozenset(map(str, test_ids))
    counts = presentations(trials)
    in_time = trials.image_id[np.argsort(trials.trial, kind="stable")].tolist()
    order = [name for name in dict.fromkeys(in_time) if name not in test]
    chosen = [name for name in order if counts[name] == repeats][:num_images]
    if len(chosen) < num_images:
        raise IdError(f"expected {num_images} train images shown {repeats} times, got {len(chosen)} of {len(order)}")
    passed = order.index(chosen[-1]) + 1 - num_images
    params = {"num_images": num_images, "repeats": repeats, "passed_over": passed}
    split = split_from_ids(f"first_{num_images}_images", chosen, test, percent, seed, params)
    split.params["budget"] = str(recording_cost(trials, split))
    return split


def repeated_images(trials: TrialTable, at_least: int = 2) -> frozenset[str]:
    """Ids of the images that a subject saw `at_least` times or more."""
    return frozenset(name for name, count in presentations(trials).items() if count >= at_least)


def bold5000_repeated(trials: TrialTable, percent: int = 5, seed: int = 0) -> Split:
    """Test on the repeated images of BOLD5000 (113 of 4,916), train on those that were shown once.

    Args:
        trials: Table of all trials of one subject.
        percent: Percentage of the train images to validate on.
        seed: Seed of the choice of validation images.

    Raises:
        IdError: No image was shown twice.
    """
    test = _repeated(trials)
    train = set(presentations(trials)) - test
    return split_from_ids("bold5000_repeated", train, test, percent, seed, {"repeated": len(test)})


def bold5000_5fold(trials: TrialTable, fold: int, folds: int = 5, percent: int = 5, seed: int = 0) -> Split:
    """Test on one fold of the repeated images of BOLD5000, train on all other images, repeated or not.

    Args:
        trials: Table of all trials of one subject.
        fold: Number of the fold to test on, 0 to folds - 1.
        folds: Number of folds. They are disjoint and together hold all repeated images.
        percent: Percentage of the train images to validate on.
        seed: Seed of the folds and of the choice of validation images.

    Raises:
        IdError: No image was shown twice.
        BrainDataError: `fold` is out of range.
    """
    if not 0 <= fold < folds:
        raise BrainDataError(f"expected a fold from 0 to {folds - 1}, got {fold}")
    order = sorted(_repeated(trials), key=lambda name: hashed(f"{seed}:fold", name))
    test = order[fold::folds]
    train = set(presentations(trials)).difference(test)
    params = {"fold": fold, "folds": folds, "repeated": len(order)}
    return split_from_ids(f"bold5000_{folds}fold", train, test, percent, seed, params)


def holdout(
    trials: TrialTable,
    frac: float,
    seed: int = 0,
    by: str = "image",
    concepts: Mapping[str, str] | None = None,
    percent: int = 5,
) -> Split:
    """Test on a random share of the images, concepts or sessions.

    Args:
        trials: Table of all trials of one subject.
        frac: Share of the images, concepts or sessions to hold out, between 0 and 1. At least one is held out.
        seed: Seed of the choice, and of the choice of validation images.
        by: What is held out together. "image" means single images, "concept" all images of a concept. "session" tests
            on all trials of a session and trains on the images that it did not show.
        concepts: Concept of each image, by image id, for "concept".
        percent: Percentage of the train images to validate on.

    Raises:
        BrainDataError: An argument is out of range, a session is unknown, or no train image is left.
        IdError: An image has no concept.
    """
    if not 0 < frac < 1:
        raise BrainDataError(f"expected a share between 0 and 1, got {frac}")
    shown = sorted(presentations(trials))
    groups = _groups(trials, by, concepts, shown)
    order = sorted(groups, key=lambda group: hashed(f"{seed}:holdout", str(group)))
    held = order[: max(1, round(frac * len(order)))]
    test = set().union(*(groups[name] for name in held))
    sessions = {"test": held} if by == "session" else None
    train = set(shown) - test
    if not train:
        raise BrainDataError(f"expected images to train on beside {len(held)} held-out {by}s, got none")
    params = {"frac": frac, "by": by, "held_out": [str(name) for name in sorted(held)] if by != "image" else len(held)}
    return split_from_ids(f"holdout_{by}", train, test, percent, seed, params, sessions=sessions)


def class_holdout(split: Split, labels: Mapping[str, Any], per_class: int = 1) -> Split:
    """Validate on images of every class: those train images of a class whose ids have the smallest hashes.

    The validation images of `split` are train images first. The test part does not matter and does not change.

    Args:
        split: Split whose train images are divided. All its subjects have the same train images.
        labels: Class of each train and validation image, by image id.
        per_class: Number of validation images of each class.

    Returns:
        The split with another validation part, named "objects_val1" after "objects" and 1 image of each class.

    Raises:
        IdError: An image has no class.
        BrainDataError: A class has no image left to train on, or subjects have train images of their own.
    """
    if per_class < 1:
        raise BrainDataError(f"expected at least 1 validation image of each class, got {per_class}")
    if split.train_of is not None or split.val_of is not None:
        raise BrainDataError(
            f"expected one train part for all subjects, got those of single subjects in {split.name!r}"
        )
    classes: dict[Any, list[str]] = {}
    for name in sorted(split.train | split.val, key=lambda name: (hashed("0:class", name), name)):
        if name not in labels:
            raise IdError(f"expected a class of each of {len(split.train | split.val)} images, got none of {name}")
        classes.setdefault(labels[name], []).append(name)
    for label, names in classes.items():
        if len(names) <= per_class:
            raise BrainDataError(
                f"expected more than {per_class} train images of class {label} in {split.name!r}, got {len(names)}"
            )
    val = frozenset(name for names in classes.values() for name in names[:per_class])
    params = {**split.params, "val_per_class": per_class}
    train = (split.train | split.val) - val
    return replace(split, name=f"{split.name}_val{per_class}", train=train, val=val, params=params)


def _groups(trials: TrialTable, by: str, concepts: Mapping[str, str] | None, shown: Sequence[str]) -> dict:
    """Sets of image ids that are held out together, by image, concept or session."""
    if by == "image":
        return {name: {name} for name in shown}
    if by == "session":
        return {int(s): set(trials.image_id[trials.session == s].tolist()) for s in _known_sessions(trials)}
    if by != "concept":
        raise BrainDataError(f"expected by 'image', 'concept' or 'session', got {by!r}")
    known = concepts or {}
    missing = [name for name in shown if name not in known]
    if missing:
        raise IdError(f"expected a concept of each of {len(shown)} images, got none of {missing[0]}")
    groups = {}
    for name in shown:
        groups.setdefault(str(known[name]), set()).add(name)
    return groups


def hashed(seed: int | str, name: str) -> int:
    """64 bits of the SHA-256 of "seed:name": an order of names that does not change when others are added."""
    return int(hex_digest([f"{seed}:{name}"], 16), 16)


def presentations(trials: TrialTable) -> dict[str, int]:
    names, counts = np.unique(trials.image_id, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _repeated(trials: TrialTable) -> frozenset[str]:
    repeated = repeated_images(trials)
    if not repeated:
        raise IdError(f"expected repeated images, got {len(trials)} trials of as many images")
    return repeated


def _known_sessions(trials: TrialTable) -> np.ndarray:
    sessions = np.unique(trials.session)
    if not len(sessions) or sessions[0] < 0:
        raise BrainDataError("expected the session of every trial, got trials of unknown session (-1)")
    return sessions


def _total(shown: Sequence[Mapping[str, int]]) -> int:
    return len(set().union(*shown))
