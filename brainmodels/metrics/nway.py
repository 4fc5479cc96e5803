"""N-way top-K accuracy: how often a classifier ranks the true class of a decoded object within K of N classes.

    for score in nway_scores(decoded_logits, real_logits, "convnext", labels):
        print(score)  # 2way_top1[convnext] ↑ ..., chance 0.500, ...; 10way_top3[convnext] ↑ ...

The other N - 1 classes are drawn at random. Their expectation has a closed form, which is exact, so no draws are
needed.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import AxisError, BrainDataError, need
from .record import Metric, Score
from .registry import metric, register
from .statistics import RESAMPLES, score_images

__all__ = ["nway_draws", "nway_scores", "nway_topk"]


def nway_topk(logits: np.ndarray, truth: np.ndarray, ways: int, k: int) -> np.ndarray:
    """Probability that the true class is within the first k of `ways` classes, the others drawn without replacement.

        P = sum_{j < k} C(g, j) C(C - 1 - g, N - 1 - j) / C(C - 1, N - 1)

    This is the hypergeometric probability of fewer than k rivals among N - 1. Of the C - 1 wrong classes, g score at
    least as high as the true one, so ties fail.

    Args:
        logits: (n, C) Logits of a classifier on decoded objects or images, on any increasing scale.
        truth: (n,) True classes, integers from 0.
        ways: Number N of classes to choose from, from 2 to C.
        k: Rank that still counts as a hit, from 1 to N - 1.

    Returns:
        fp64 (n,). The score is their mean, and chance is k / N.

    Raises:
        AxisError: Shapes do not match, or classes are not integers.
        BrainDataError: A logit is not finite, or a class, `ways` or `k` is out of range.
    """
    logits, truth = _check(logits, truth, ways, k)
    return _every_class(logits, ways, k)[np.arange(len(truth)), truth]


def nway_draws(logits: np.ndarray, truth: np.ndarray, ways: int, k: int, draws: int = 50, seed: int = 0) -> np.ndarray:
    """The same probability as `nway_topk`, estimated from random draws as published code does.

    Args:
        logits, truth, ways, k: As in `nway_topk`.
        draws: Number of draws of the wrong classes for each row.
        seed: Seed of the draws.

    Returns:
        (n,) shares of the draws.
    """
    logits, truth = _check(logits, truth, ways, k)
    rng, hits = np.random.default_rng(seed), np.zeros(len(truth))
    for row, (scores, true) in enumerate(zip(logits, truth, strict=True)):
        wrong = np.delete(scores, true)
        drawn = np.stack([rng.choice(wrong, ways - 1, replace=False) for _ in range(draws)])
        hits[row] = np.mean((drawn >= scores[true]).sum(1) < k)
    return hits


def nway_scores(
    decoded: np.ndarray,
    real: np.ndarray,
    classifier: str,
    labels: np.ndarray | None = None,
    protocols: Sequence[tuple[int, int]] = ((2, 1), (10, 3), (50, 1)),
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> list[Score]:
    """N-way top-K scores, each with the accuracy of the classifier itself.

    Args:
        decoded: (n, C) Logits of the classifier on what was decoded.
        real: (n, C) Logits of the same classifier on the true images or objects, in the same order.
        classifier: Name of the classifier. It becomes part of the metric's name.
        labels: (n,) True classes. None takes the classifier's labels of the real ones (Chen et al., 2023), so its
            mistakes count as truth.
        protocols: Pairs (N, K). Those with N above C are left out.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of images that are drawn together, such as their subject. None draws single images.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Shapes do not match, or classes are not integers.
        BrainDataError: A logit is not finite, or a class or protocol is out of range.
    """
    if np.shape(decoded) != np.shape(real):
        raise AxisError(f"expected logits of the same images, got {np.shape(decoded)} and {np.shape(real)}")
    own = np.argmax(real, axis=1)
    truth = own if labels is None else np.asarray(labels)
    note = "truth is the classifier's own label of the real image"
    if labels is not None:
        note = f"accuracy of the classifier on real ones {np.mean(own == truth):.3f}"
    base = {"note": note} | conditions
    scores = []
    for ways, k in (pair for pair in protocols if pair[0] <= np.shape(decoded)[1]):
        logits, truth = _check(decoded, truth, ways, k)
        table = _every_class(logits, ways, k)[:, truth].T  # [class of real i, decoded j]
        definition = metric(f"{ways}way_top{k}[{classifier}]")
        scores.append(score_images(definition, np.diagonal(table), table, resamples, seed, clusters, **base))
    return scores


def _every_class(logits: np.ndarray, ways: int, k: int) -> np.ndarray:
    """P of every class as if it were the true one, (n, C)."""
    try:
        from scipy.stats import hypergeom
    except ImportError as error:
        raise need("scipy", "N-way top-K") from error
    classes, ordered = logits.shape[1], np.sort(logits, axis=1)
    below = np.stack([np.searchsorted(row, scores) for row, scores in zip(ordered, logits, strict=True)])
    not_below = classes - below - 1  # g
    return hypergeom.cdf(k - 1, classes - 1, np.arange(classes), ways - 1)[not_below]


def _check(logits: np.ndarray, truth: np.ndarray, ways: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    logits, truth = np.asarray(logits, dtype=np.float64), np.asarray(truth)
    if logits.ndim != 2 or truth.shape != (len(logits),) or truth.dtype.kind not in "iu":
        raise AxisError(
            f"expected logits (n, classes) and integer classes (n,), got {logits.shape} and {truth.dtype} {truth.shape}"
        )
    classes = logits.shape[1]
    if not np.isfinite(logits).all() or (len(truth) and not 0 <= truth.min() <= truth.max() < classes):
        raise BrainDataError(
            f"expected finite logits and classes from 0 to {classes - 1}, got NaN, infinite or larger ones"
        )
    if not (1 <= k < ways <= classes):
        raise BrainDataError(f"expected 1 <= k < ways <= {classes}, got k {k} and ways {ways}")
    return logits, truth


register(
    Metric(
        "{ways:d}way_top{k:d}[{classifier}]",
        "semantic",
        "up",
        None,
        None,
        "probability that the classifier ranks the true class within k of it and ways - 1 random others; closed form, "
        "ties fail",
    ),
    lambda ways, k, classifier: int(k) / int(ways),
)
