"""Decoded captions against labels of the images: does the caption hold the right word, and no other of its kind?

    for score in caption_label_scores(captions, {"shape": {"sim0:000001": "circle", ...}}):
        print(score)
    # caption_label[shape] ↑ 0.930 [...], chance 0.128 [...]

Two captions of one template have many words in common, right or wrong. Captions of other images reach a METEOR of .5 on
drawn scenes. A label is right or wrong.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError, IdError, near_names
from .record import Metric, Score
from .registry import metric, register
from .statistics import RESAMPLES, score_images
from .text import words

__all__ = ["caption_label_scores", "levels_in", "majority_rate"]

UNSAID = ("plain",)


def levels_in(text: str, levels: Sequence[str]) -> set[str]:
    """The levels whose words stand in a caption, one after the other.

    A level within a longer one that is there does not count: "top left" is not also "top".

    Args:
        text: A caption.
        levels: Levels of a label, of one word or several.
    """
    said = words(text)
    found = [level for level in levels if _within(words(level), said)]
    return {x for x in found if not any(x != y and _within(words(x), words(y)) for y in found)}


def majority_rate(truth: Sequence[str]) -> float:
    """Share of the most frequent level: what a caption reaches that always says the same."""
    return float(np.unique(np.asarray(truth, dtype=str), return_counts=True)[1].max() / len(truth))


def caption_label_scores(
    captions: Mapping[str, str],
    labels: Mapping[str, Mapping[str, str]],
    levels: Mapping[str, Sequence[str]] | None = None,
    unsaid: Collection[str] = UNSAID,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **conditions,
) -> list[Score]:
    """Share of images whose caption holds the word of the true level, and of no other level of that label.

    A level of `unsaid` has no word: there the caption must hold none of the label. The chance is that of permuted
    pairs, in expectation over all permutations. The note has the rate of the most frequent level.

    Args:
        captions: Decoded captions by image id.
        labels: True level by image id, by name of the label, for the same images.
        levels: All levels of each label; None takes those that occur.
        unsaid: Levels without a word.
        resamples: Number of bootstrap samples, and of permutations for the interval of the chance.
        seed: Seed of both.
        conditions: Further fields of `Score`.

    Returns:
        A score `caption_label[name]` for each label, in their order.

    Raises:
        AxisError: There are fewer than two images.
        IdError: An image has no label.
        BrainDataError: A true level is not among the levels.
    """
    ids = list(captions)
    if len(ids) < 2:
        raise AxisError(f"expected captions of two or more images, got {len(ids)}")
    scores = []
    for name, known in labels.items():
        truth = [_level(known, image, name) for image in ids]
        every = list(dict.fromkeys(truth)) if levels is None else list(levels[name])
        for level in truth:
            if level not in every:
                raise BrainDataError(f"expected a level of {name} ({', '.join(every)}), got {level!r}")
        spoken = [level for level in every if level not in unsaid]
        said = [levels_in(captions[image], spoken) for image in ids]
        wanted = [set() if level in unsaid else {level} for level in truth]
        table = np.array([[float(right == given) for given in said] for right in wanted])
        own: dict[str, Any] = dict(conditions)
        own["note"] = "; ".join(filter(None, [own.get("note"), f"most frequent level {majority_rate(truth):.3f}"]))
        own = {"chance": float(table.mean()), "resamples": resamples, "seed": seed} | own
        scores.append(score_images(metric(f"caption_label[{name}]"), np.diagonal(table), table, **own))
    return scores


def _level(known: Mapping[str, str], image: str, name: str) -> str:
    if image not in known:
        raise IdError(f"expected a label {name} of {image!r}, got none{near_names(image, list(known))}")
    return str(known[image])


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether the words of `part` stand in `whole`, one after the other."""
    count = len(part)
    return any(list(whole[start : start + count]) == list(part) for start in range(len(whole) - count + 1))


register(
    Metric(
        "caption_label[{label}]",
        "text",
        "up",
        None,
        None,
        "share of images whose caption holds the word of the true level of this label and of no other level",
    )
)
