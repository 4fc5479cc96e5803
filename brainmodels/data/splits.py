"""Named splits of images. A split is made of ids; which rows they are follows for each subject.

trials = dataset.subject("subj01").responses.trials
split = shared1000(trials, shared_ids)
split.params["variant"]  # "982 of 1000 shared images seen (37 sessions, older papers)"
first_session(trials, split.test).params["budget"]  # "680 trials of 671 images from 1 session"

`holdout_combo`, whose test images combine labels as no train image does, is `combinations.combination_holdout`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from veca.hashes import hex_digest

from ..errors import BrainDataError, IdError, LeakageError
from .budgets import budget
from .dataset import BrainDataset, Split
from .responses import TrialTable

__all__ = [
    "bold5000_5fold",
    "bold5000_repeated",
    "context_split",
    "first_250_images",
    "first_session",
    "holdout",
    "loso",
    "named_split",
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
    """The share of the train images that is held out for validation.

    An image is chosen by its own id, so that adding images moves no other: hash(seed, id) mod 100 < percent, from the
    SHA-256 of "seed:id".
    """
    return frozenset(name for name in map(str, train_ids) if hashed(seed, name) % 100 < percent)


def named_split(
    name: str,
    train_ids: Iterable[str],
    test_ids: Iterable[str],
    percent: int = 5,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
) -> Split:
    """A split with validation images taken from those of training.

    Args:
        name: of the rule.
        train_ids, test_ids: disjoint, or it is a `LeakageError`.
        percent, seed: of `validation_ids`.
        params: what else defines the rule.
    """
    return split_from_ids(name, train_ids, test_ids, None, percent, seed, params)


def split_from_ids(
    name: str,
    train_ids: Iterable[str],
    test_ids: Iterable[str],
    val_ids: Iterable[str] | None = None,
    percent: int = 5,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
    sessions: Mapping[str, Iterable[int]] | None = None,
) -> Split:
    """A split of ids that someone chose.

    Args:
        name: of the rule.
        train_ids, test_ids: disjoint, or it is a `LeakageError`.
        val_ids: disjoint of both; None takes `validation_ids` out of the train images.
        percent, seed: of `validation_ids`.
        params: what else defines the rule.
        sessions: by part, the only sessions whose trials belong to it.
    """
    train, test = frozenset(map(str, train_ids)), frozenset(map(str, test_ids))
    if train & test:
        raise LeakageError(f"expected disjoint train and test images of {name!r}, got {min(train & test)} in both")
    params = dict(params or {})
    if val_ids is None:
        val = validation_ids(train, percent, seed)
        train, params = train - val, {"val_percent": percent, "seed": seed, **params}
    else:
        val = frozenset(map(str, val_ids))
    sessions = {part: frozenset(map(int, numbers)) for part, numbers in (sessions or {}).items()} or None
    return Split(name, train, val, test, params, sessions=sessions)


def shared1000(
    trials: TrialTable | Sequence[TrialTable],
    shared_ids: Iterable[str],
    variant: str = "seen",
    percent: int = 5,
    seed: int = 0,
) -> Split:
    """The test set of the Natural Scenes Dataset: the images that all subjects were to see.

    How many of the 1000 are left depends on the sessions: 1000 after 40, 982 after 37 (older papers), 930 after 32,
    907 after 30, and 515 were shown three times to all eight subjects. `params["variant"]` says which it is. A shared
    image that is not tested on is not trained on either.

    Args:
        trials: of one subject, or of several.
        shared_ids: of all shared images, those with masterordering <= 1000.
        variant: "seen" tests on what any of the subjects saw, "three_repeats" on what each of them saw three times.
        percent, seed: of `validation_ids`.

    Raises:
        IdError: no shared image was shown.
    """
    tables = [trials] if isinstance(trials, TrialTable) else list(trials)
    shared = frozenset(map(str, shared_ids))
    shown = [_presentations(table) for table in tables]
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
    return named_split("shared1000", set().union(*shown) - shared, test, percent, seed, params)


def first_session(trials: TrialTable, test_ids: Iterable[str], percent: int = 5, seed: int = 0) -> Split:
    """Train on the trials of the first session that show no test image: MindEye2's "1 hour".

    Of the 750 trials of an NSD session about 680 are left, most of them the only presentation of their image. Later
    presentations of the same images are not used. Not the same task as `first_250_images`.

    Args:
        trials: of one subject.
        test_ids: tested on, with the trials of all sessions.
        percent, seed: of `validation_ids`.
    """
    first = _known_sessions(trials)[0]
    test = frozenset(map(str, test_ids))
    train = set(trials.image_id[trials.session == first].tolist()) - test
    sessions = {"train": [first], "val": [first]}
    split = split_from_ids("first_session", train, test, None, percent, seed, {"session": int(first)}, sessions)
    split.params["budget"] = str(budget(trials, split))
    return split


def first_250_images(
    trials: TrialTable,
    test_ids: Iterable[str],
    num_images: int = 250,
    repeats: int = 3,
    percent: int = 5,
    seed: int = 0,
) -> Split:
    """Train on the first 250 train images with all their repeats: SynBrain's "1 hour", 750 trials of many sessions.

    Args:
        trials: of one subject.
        test_ids: tested on.
        num_images: in the order of their first appearance, among those that were shown often enough.
        repeats: how often; an image that was shown more or less often is passed over, `params["passed_over"]` counts.
        percent, seed: of `validation_ids`.
    """
    test = frozenset(map(str, test_ids))
    counts = _presentations(trials)
    in_time = trials.image_id[np.argsort(trials.trial, kind="stable")].tolist()
    order = [name for name in dict.fromkeys(in_time) if name not in test]
    chosen = [name for name in order if counts[name] == repeats][:num_images]
    if len(chosen) < num_images:
        raise IdError(f"expected {num_images} train images shown {repeats} times, got {len(chosen)} of {len(order)}")
    passed = order.index(chosen[-1]) + 1 - num_images
    params = {"num_images": num_images, "repeats": repeats, "passed_over": passed}
    split = named_split(f"first_{num_images}_images", chosen, test, percent, seed, params)
    split.params["budget"] = str(budget(trials, split))
    return split


def loso(
    dataset: BrainDataset,
    subject: str,
    test: Split | str,
    n_context: int,
    seed: int = 0,
    draw: int = 0,
    draws: int = 5,
    percent: int = 5,
) -> Split:
    """Leave one subject out: train on the others, and on a few context images of the subject that is left out.

    The test images are removed from every subject, because those who are trained on saw them too. The subject that is
    left out has no validation images; the others have theirs.

    Args:
        dataset: of several subjects.
        subject: who is left out.
        test: the split whose test images are tested on.
        n_context: images that the subject gives; every image counts with all its repeats.
        seed: of the order in which images are taken.
        draw: from 0 to draws - 1; the images of two draws are disjoint, those of a smaller `n_context` are among
            those of a larger one.
        draws: how many disjoint ones there have to be.
        percent: of `validation_ids`.

    Raises:
        IdError: the subject saw too few images for that.
    """
    test = dataset.split(test) if isinstance(test, str) else test
    dataset.subject(subject)
    shown = {
        name: set(_presentations(person.responses.trials)) - test.test for name, person in dataset.subjects.items()
    }
    if len(shown) < 2:
        raise BrainDataError(f"expected other subjects than {subject} to train on, got none")
    val = validation_ids(set().union(*(ids for name, ids in shown.items() if name != subject)), percent, seed)
    train_of = {name: frozenset(ids - val) for name, ids in shown.items()}
    train_of[subject] = _context_images(train_of[subject], subject, n_context, seed, draw, draws)
    params = {"subject": subject, "test": test.name, "n_context": n_context, "seed": seed, "draw": draw}
    params |= {"draws": draws, "val_percent": percent, "budget_seed": seed}
    split = Split(
        name=f"loso-{subject}",
        train=frozenset().union(*train_of.values()),
        val=val,
        test=test.test,
        params=params,
        train_of=train_of,
        val_of={subject: frozenset()},
    )
    split.params["budget"] = str(budget(dataset.subject(subject).responses.trials, split, subject))
    return split


def context_split(
    dataset: BrainDataset, subject: str, test: Split, n_context: int, seed: int = 0, draw: int = 0, draws: int = 1
) -> Split:
    """A split in which one subject has few train images: the context from which a model is adapted to it.

    Other subjects keep their train images. The subject has no validation images.

    Args:
        dataset: Data set with the subject.
        subject: Subject that gives the context.
        test: Split whose train images are drawn from and whose test images are tested on.
        n_context: Number of images; every image counts with all its repeats.
        seed: Seed of the order in which images are taken.
        draw: Number of the draw, 0 to draws - 1; the images of two draws are disjoint, and those of a smaller
            `n_context` are among those of a larger one.
        draws: Number of disjoint draws that there have to be.

    Raises:
        IdError: The subject saw too few images for that.
    """
    shown = set(_presentations(dataset.subject(subject).responses.trials))
    pool = (test.ids("train", subject) | test.ids("val", subject)) & shown
    chosen = _context_images(pool, subject, n_context, seed, draw, draws)
    others = {name: test.ids("train", name) for name in dataset.subjects if name != subject}
    params = {"subject": subject, "test": test.name, "n_context": n_context, "seed": seed, "draw": draw, "draws": draws}
    return Split(
        f"context-{subject}",
        train=frozenset().union(chosen, *others.values()),
        val=frozenset(),
        test=test.test,
        params=params,
        train_of={**others, subject: chosen},
        sessions=test.sessions,
    )


def _context_images(
    pool: Iterable[str], subject: str, n_context: int, seed: int, draw: int, draws: int
) -> frozenset[str]:
    """Images of one of several disjoint draws, in an order by hash."""
    if not 0 <= draw < draws:
        raise BrainDataError(f"expected a draw from 0 to {draws - 1}, got {draw}")
    order = sorted(pool, key=lambda name: hashed(f"{seed}:context", name))
    if len(order) < n_context * draws:
        raise IdError(
            f"expected {draws} x {n_context} train images of {subject} for disjoint draws, got {len(order)}; "
            "ask for less context or fewer draws"
        )
    return frozenset(order[draw::draws][:n_context])


def repeated_images(trials: TrialTable, at_least: int = 2) -> frozenset[str]:
    """Images that a subject saw several times."""
    return frozenset(name for name, count in _presentations(trials).items() if count >= at_least)


def bold5000_repeated(trials: TrialTable, percent: int = 5, seed: int = 0) -> Split:
    """Test on the repeated images of BOLD5000 (113 of 4,916), train on those that were shown once."""
    test = _repeated(trials)
    train = set(_presentations(trials)) - test
    return named_split("bold5000_repeated", train, test, percent, seed, {"repeated": len(test)})


def bold5000_5fold(trials: TrialTable, fold: int, folds: int = 5, percent: int = 5, seed: int = 0) -> Split:
    """Test on one fold of the repeated images of BOLD5000, train on all others, repeated or not.

    Args:
        trials: of one subject.
        fold: from 0 to folds - 1.
        folds: how many; they are disjoint and together hold all repeated images.
        percent: of `validation_ids`.
        seed: of the folds and of the validation images.
    """
    if not 0 <= fold < folds:
        raise BrainDataError(f"expected a fold from 0 to {folds - 1}, got {fold}")
    order = sorted(_repeated(trials), key=lambda name: hashed(f"{seed}:fold", name))
    test = order[fold::folds]
    train = set(_presentations(trials)).difference(test)
    params = {"fold": fold, "folds": folds, "repeated": len(order)}
    return named_split(f"bold5000_{folds}fold", train, test, percent, seed, params)


def holdout(
    trials: TrialTable,
    frac: float,
    seed: int = 0,
    by: str = "image",
    concepts: Mapping[str, str] | None = None,
    percent: int = 5,
) -> Split:
    """Test on a share of what was shown.

    Args:
        trials: of one subject.
        frac: share of the images, concepts or sessions that are held out; at least one.
        seed: of the choice, and of the validation images.
        by: "image"; "concept", which holds out all images of a concept; "session", which tests on all trials of a
            session and trains on the images that it did not show.
        concepts: concept of each image, by id.
        percent: of `validation_ids`.
    """
    if not 0 < frac < 1:
        raise BrainDataError(f"expected a share between 0 and 1, got {frac}")
    shown = sorted(_presentations(trials))
    groups = _groups(trials, by, concepts, shown)
    order = sorted(groups, key=lambda group: hashed(f"{seed}:holdout", str(group)))
    held = order[: max(1, round(frac * len(order)))]
    test = set().union(*(groups[name] for name in held))
    sessions = {"test": held} if by == "session" else None
    train = set(shown) - test
    if not train:
        raise BrainDataError(f"expected images to train on beside {len(held)} held-out {by}s, got none")
    params = {"frac": frac, "by": by, "held_out": [str(name) for name in sorted(held)] if by != "image" else len(held)}
    return split_from_ids(f"holdout_{by}", train, test, None, percent, seed, params, sessions)


def _groups(trials: TrialTable, by: str, concepts: Mapping[str, str] | None, shown: Sequence[str]) -> dict:
    """What is held out together: ids by image, concept or session."""
    if by == "image":
        return {name: {name} for name in shown}
    if by == "session":
        return {int(s): set(trials.image_id[trials.session == s].tolist()) for s in _known_sessions(trials)}
    if by != "concept":
        raise BrainDataError(f"expected by 'image', 'concept' or 'session', got {by!r}")
    missing = [name for name in shown if name not in (concepts or {})]
    if missing:
        raise IdError(f"expected a concept of each of {len(shown)} images, got none of {missing[0]}")
    groups = {}
    for name in shown:
        groups.setdefault(str(concepts[name]), set()).add(name)
    return groups


def hashed(seed: int | str, name: str) -> int:
    """64 bits of the SHA-256 of "seed:name": an order of names that does not change when others are added."""
    return int(hex_digest([f"{seed}:{name}"], 16), 16)


def _presentations(trials: TrialTable) -> dict[str, int]:
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
