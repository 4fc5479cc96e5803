"""Named splits of images. A split is made of ids; which rows they are follows for each subject."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import LeakageError
from .dataset import Split

__all__ = ["named_split", "validation_ids"]


def validation_ids(train_ids: Iterable[str], percent: int = 5, seed: int = 0) -> frozenset[str]:
    """The share of the train images that is held out for validation.

    An image is chosen by its own id, so that adding images moves no other: hash(seed, id) mod 100 < percent, from the
    SHA-256 of "seed:id".
    """
    return frozenset(
        name
        for name in map(str, train_ids)
        if int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") % 100 < percent
    )


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
    train, test = frozenset(map(str, train_ids)), frozenset(map(str, test_ids))
    if train & test:
        raise LeakageError(f"expected disjoint train and test images of {name!r}, got {min(train & test)} in both")
    val = validation_ids(train, percent, seed)
    return Split(name, train - val, val, test, {"val_percent": percent, "seed": seed, **(params or {})})
