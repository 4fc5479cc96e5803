"""Splits by subject: one is left out and gives only a few images, the context from which a model is adapted to it.

split = loso(dataset, "subj01", "shared1000", n_context=50)
split.ids("train", "subj01")  # 50 image ids

`shared_part` makes a split whose subjects have some train images in common.
"""

from collections.abc import Iterable
from dataclasses import replace

from ..errors import BrainDataError, IdError
from .dataset import BrainDataset, Split
from .recording_costs import recording_cost
from .splits import hashed, presentations, validation_ids

__all__ = ["context_split", "loso", "shared_part"]


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

    The test images are removed from every subject, because the other subjects saw them too. The left-out subject has no
    validation images.

    Args:
        dataset: Data set of two or more subjects.
        subject: Id of the subject to leave out.
        test: Split, or name of the split, whose test images are the test part.
        n_context: Number of context images of the left-out subject. Each counts with all its repeats.
        seed: Seed of the order in which context images are taken.
        draw: Number of the draw, 0 to draws - 1. Two draws share no context image. The images of a smaller `n_context`
            are among those of a larger one.
        draws: Number of disjoint draws that must be possible.
        percent: Percentage of the other subjects' images to validate on.

    Raises:
        IdError: The subject saw too few images for that many disjoint draws.
        BrainDataError: There is no other subject, or `draw` is out of range.
    """
    test = dataset.split(test) if isinstance(test, str) else test
    dataset.subject(subject)
    shown = {name: set(presentations(person.responses.trials)) - test.test for name, person in dataset.subjects.items()}
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
    split.params["budget"] = str(recording_cost(dataset.subject(subject).responses.trials, split, subject))
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
    shown = set(presentations(dataset.subject(subject).responses.trials))
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


def shared_part(dataset: BrainDataset, test: Split | str, train: int, seed: int = 0) -> Split:
    """A split that trains every subject on some of the test images too, so that subjects have train images in common.

    Args:
        dataset: Data set of two or more subjects.
        test: Split, or name of the split, whose test images are divided.
        train: Number of test images to train on instead. Every subject saw them.
        seed: Seed of the choice, which goes by the ids.

    Raises:
        IdError: Fewer images than `train` and one to test on were shown to all subjects.
    """
    test = dataset.split(test) if isinstance(test, str) else test
    seen = [set(presentations(person.responses.trials)) for person in dataset.subjects.values()]
    order = sorted(test.test.intersection(*seen), key=lambda name: hashed(f"{seed}:shared", name))
    if train < 1 or len(order) <= train:
        raise IdError(
            f"expected from 1 to {max(len(order) - 1, 0)} of the {len(order)} test images of {test.name!r} that all "
            f"subjects saw, got {train}"
        )
    moved = frozenset(order[:train])
    return replace(
        test,
        name=f"{test.name}-{train}",
        train=test.train | moved,
        test=test.test - moved,
        params={**test.params, "test_of": test.name, "shared_train": train, "shared_seed": seed},
        train_of={name: test.ids("train", name) | moved for name in dataset.subjects},
        val_of={name: test.ids("val", name) for name in dataset.subjects},
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
