"""Retrieval of the right image from a gallery, and identification between two images.

    S = similarity(brain, image)  # (n, n), row i is brain i, column j is image j; pairs on the diagonal
    image_given_brain(S)          # 0.41: share of brains that find their image among all n
    brain_given_image(S)          # 0.43: share of images that find their brain among all n
    full_gallery(S)               # Scores with gallery in the name, interval and chance
    identification(real, decoded, "grid")  # two-way identification, as a Score

A tie at the top is not a hit. Candidates within 1e-12 of the true one share a rank, the middle one. A candidate that
ties with all others therefore has the middle rank of the gallery.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError
from .record import Interval, Metric, Score
from .registry import metric, register
from .statistics import RESAMPLES, bootstrap, permutation_chance, score_images

__all__ = [
    "DIRECTIONS",
    "brain_given_image",
    "correlation_matrix",
    "full_gallery",
    "galleries_of_300",
    "identification",
    "image_given_brain",
    "mindeye_compat",
    "rank_table",
    "ranks",
    "similarity",
    "two_way",
    "two_way_pairs",
]

DIRECTIONS = ("image_given_brain", "brain_given_image")
_TIE = 1e-12  # matrix products of equal rows may differ in the last digits
_BATCH_NUMBERS = 2**21


def similarity(brain: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Cosine similarity of every brain-derived with every image feature, S[i, j] = cos(brain_i, image_j).

    Args:
        brain: (n, ...) Features decoded from responses. They are flattened.
        image: (m, ...) Features of images, in the order of the brains if they are pairs.

    Returns:
        fp64 (n, m). The similarity of a feature vector of zeros is 0.

    Raises:
        AxisError: Features of different lengths.
        BrainDataError: Features that are not finite.
    """
    return _cosines(brain, image, centred=False)


def correlation_matrix(real: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Pearson correlation over features of every real with every decoded image, R[i, j] = r(real_i, decoded_j).

    Args:
        real: (n, ...) Features of real images. They are flattened.
        decoded: (m, ...) Features of decoded images.

    Returns:
        fp64 (n, m); 0 where one of the two is constant.

    Raises:
        AxisError: Features of different lengths.
        BrainDataError: Features that are not finite.
    """
    return _cosines(real, decoded, centred=True)


def image_given_brain(similarities: np.ndarray, k: int = 1) -> float:
    """Share of brains (rows) that rank their own image within the first k."""
    return float(np.mean(ranks(similarities, "image_given_brain") <= k))


def brain_given_image(similarities: np.ndarray, k: int = 1) -> float:
    """Share of images (columns) that rank their own brain within the first k."""
    return float(np.mean(ranks(similarities, "brain_given_image") <= k))


def mindeye_compat(similarities: np.ndarray, k: int = 1) -> dict[str, float]:
    """The two directions under the names that code derived from MindEye uses.

    Its shared helper transposes the matrix, so "fwd" is `brain_given_image` and "bwd" is `image_given_brain`. The
    columns "Image" and "Brain" of published tables may therefore mean the opposite of what they say.

    Args:
        similarities: (n, n) Similarities, rows brains, columns images, pairs on the diagonal.
        k: Largest rank that counts as a hit.
    """
    return {"fwd": brain_given_image(similarities, k), "bwd": image_given_brain(similarities, k)}


def ranks(similarities: np.ndarray, direction: str) -> np.ndarray:
    """Ranks of the true candidates, from 1, one for each query. Ties take the middle rank.

    Args:
        similarities: (n, n) Similarities, rows brains, columns images, pairs on the diagonal.
        direction: "image_given_brain" or "brain_given_image".

    Returns:
        (n,) fp64.

    Raises:
        AxisError: `similarities` is not a square table of two or more pairs.
        BrainDataError: An unknown direction, or similarities that are not finite.
    """
    queries = _queries(similarities, direction)
    truth = np.diagonal(queries)[:, None]
    above = (queries > truth + _TIE).sum(1)
    tied = (np.abs(queries - truth) <= _TIE).sum(1) - 1
    return 1 + above + tied / 2


def full_gallery(
    similarities: np.ndarray,
    top: Sequence[int] = (1, 5, 10),
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> list[Score]:
    """Protocol "full": top-k, median rank and mean rank in both directions, with the whole test set as gallery.

    Intervals come from resampled queries against the full gallery, and chance from permuted pairs.

    Args:
        similarities: (n, n) Similarities, rows brains, columns images, pairs on the diagonal.
        top: Values of k. Those that reach the gallery are left out.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of queries that are drawn together. None draws single queries.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: `similarities` is not a square table of two or more pairs.
        BrainDataError: Similarities that are not finite.
    """
    conditions = {"note": "protocol full"} | conditions
    scores = []
    for direction in DIRECTIONS:
        table = rank_table(_queries(similarities, direction))  # (query, candidate)
        gallery = len(table)
        rank = np.diagonal(table)
        options: dict[str, Any] = {"resamples": resamples, "seed": seed, "clusters": clusters} | conditions
        for k in (k for k in top if k < gallery):
            name = metric(f"{direction}_top{k}@{gallery}")
            scores.append(score_images(name, rank <= k, table <= k, **options))
        scores.append(score_images(metric(f"{direction}_mean_rank@{gallery}"), rank, table, **options))
        scores.append(_median_rank(direction, table, resamples, seed, clusters, conditions))
    return scores


def galleries_of_300(
    similarities: np.ndarray, gallery: int = 300, draws: int = 30, permutations: int = 200, seed: int = 0, **conditions
) -> list[Score]:
    """Protocol "300x30": top-1 among 300 random test images, mean over 30 draws without replacement.

    The interval is mean ± 1.96 sd / sqrt(30), as published. It covers the draws, which share images, so it is narrower
    than an interval for new images. Chance comes from permuted pairs, over the same draws.

    Args:
        similarities: (n, n) Similarities, rows brains, columns images; n at least `gallery`.
        gallery: Number of images in a draw.
        draws: Number of draws.
        permutations: Number of permutations for the chance interval.
        seed: Seed of the draws and of the permutations.
        conditions: Further fields of `Score`.

    Raises:
        BrainDataError: Fewer images than `gallery`, or similarities that are not finite.
        AxisError: `similarities` is not a square table of two or more pairs.
    """
    count = len(_queries(similarities, DIRECTIONS[0]))
    if not 1 < gallery <= count:
        raise BrainDataError(
            f"expected {gallery} or more test images, got {count}; a smaller gallery is another metric: use "
            "full_gallery, or pass gallery="
        )
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(count, gallery, replace=False) for _ in range(draws)]
    own, scores = np.arange(count), []
    for direction in DIRECTIONS:
        queries = np.ascontiguousarray(_queries(similarities, direction))
        tops = np.array([_mean_top1(queries, [pick], own) for pick in chosen])
        half = 1.96 * tops.std(ddof=1) / np.sqrt(draws) if draws > 1 else np.nan
        value = float(tops.mean())
        chance = permutation_chance(lambda order, q=queries: _mean_top1(q, chosen, order), count, permutations, seed)
        found = {
            "interval": Interval(value - half, value + half, 0.95, f"{draws} draws") if draws > 1 else None,
            "chance_interval": chance.interval,
            "note": f"protocol {gallery}x{draws} from {count} images",
            "n_of": "images of a draw",
            "seed": seed,
        }
        scores.append(Score(metric(f"{direction}_top1@{gallery}"), value, gallery, **(found | conditions)))
    return scores


def two_way(correlations: np.ndarray) -> np.ndarray:
    """Two-way identification of each decoded image against all others, exhaustive.

        s_j = #{i != j : R[i, j] < R[j, j]} / (n - 1)

    s_j is the share of wrong real images that correlate less with decoded image j than the right one does. The
    comparison is strict, and chance is 0.5.

    Args:
        correlations: R (n, n), rows real images, columns decoded images, pairs on the diagonal.

    Returns:
        s (n,). The score is its mean.

    Raises:
        AxisError: `correlations` is not a square table of two or more pairs.
        BrainDataError: Correlations that are not finite.
    """
    return np.diagonal(two_way_pairs(correlations)).copy()


def two_way_pairs(correlations: np.ndarray) -> np.ndarray:
    """Two-way identification of every possible pair.

    Args:
        correlations: R (n, n), rows real images, columns decoded images, pairs on the diagonal.

    Returns:
        (n, n). Entry [i, j] is s_j of `two_way` as if real image i were the right one for decoded image j.
    """
    columns = _queries(correlations, "brain_given_image")  # (decoded, real)
    ordered = np.sort(columns, axis=1)
    below = np.stack([np.searchsorted(row, values - _TIE) for row, values in zip(ordered, columns, strict=True)])
    return below.T / (len(below) - 1)


def identification(
    real: np.ndarray,
    decoded: np.ndarray,
    features: str,
    name: str = "two_way",
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> Score:
    """Two-way identification from features of real and decoded images, as a score.

    Args:
        real, decoded: (n, ...) Features of the same images in the same order. They are flattened.
        features: Name of the extractor. It becomes part of the metric's name.
        name: Name of the metric without its extractor.
        resamples: Number of bootstrap samples, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of images that are drawn together. None draws single images.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Real and decoded images differ in number, or features in length.
        BrainDataError: Features that are not finite.
    """
    if len(real) != len(decoded):
        raise AxisError(f"expected features of the same images, got {len(real)} and {len(decoded)}")
    pairs = two_way_pairs(correlation_matrix(real, decoded))
    definition = metric(f"{name}[{features}]")
    return score_images(definition, np.diagonal(pairs), pairs, resamples, seed, clusters, **conditions)


def _cosines(first: np.ndarray, second: np.ndarray, centred: bool) -> np.ndarray:
    """Cosines of rows, after each row's mean is subtracted if `centred`; sums in fp64 over blocks."""
    first, second = (np.asarray(array).reshape(len(array), -1) for array in (first, second))
    if first.shape[1] != second.shape[1]:
        raise AxisError(f"expected features of one length, got {first.shape[1]} and {second.shape[1]}")
    means = [x.mean(1, dtype=np.float64, keepdims=True) if centred else 0.0 for x in (first, second)]
    dots, squares = np.zeros((len(first), len(second))), [np.zeros(len(first)), np.zeros(len(second))]
    step = max(1, _BATCH_NUMBERS // max(len(first), len(second), 1))
    for start in range(0, first.shape[1], step):
        blocks = [x[:, start : start + step] - mean for x, mean in zip((first, second), means, strict=True)]
        blocks = [block.astype(np.float64, copy=False) for block in blocks]
        dots += blocks[0] @ blocks[1].T
        for total, block in zip(squares, blocks, strict=True):
            total += np.square(block).sum(1)
    norms = []
    for x, total in zip((first, second), squares, strict=True):
        flat = (x == x[:, :1]).all(1) if centred else total == 0
        norms.append(np.where(flat, np.inf, np.sqrt(total)))
    cosines = dots / norms[0][:, None] / norms[1]
    if not np.isfinite(cosines).all():
        raise BrainDataError("expected finite features, got NaN or infinite ones")
    return cosines


def _queries(table: np.ndarray, direction: str) -> np.ndarray:
    """The table, turned so that each row is a query."""
    if direction not in DIRECTIONS:
        raise BrainDataError(f"expected direction {' or '.join(DIRECTIONS)}, got {direction!r}")
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise AxisError(f"expected a table (n, n) of two or more pairs, got {table.shape}")
    if not np.isfinite(table).all():
        raise BrainDataError(f"expected finite similarities, got {int(np.sum(~np.isfinite(table)))} that are not")
    return table if direction == "image_given_brain" else table.T


def rank_table(queries: np.ndarray) -> np.ndarray:
    """Rank of every candidate for every query, as if it were the true one.

    Args:
        queries: (n, candidates) Similarities, one query in each row.

    Returns:
        fp64 (n, candidates), ranks from 1; ties take the middle rank.
    """
    table = np.empty(queries.shape)
    for out, row in zip(table, queries, strict=True):
        ordered = np.sort(row)
        above = len(row) - np.searchsorted(ordered, row + _TIE, side="right")
        not_below = len(row) - np.searchsorted(ordered, row - _TIE, side="left")
        out[:] = 1 + above + (not_below - above - 1) / 2
    return table


def _median_rank(
    direction: str,
    table: np.ndarray,
    resamples: int,
    seed: int,
    clusters: Sequence | np.ndarray | None,
    conditions: dict,
) -> Score:
    rank, rows = np.diagonal(table), np.arange(len(table))
    found = {
        "interval": bootstrap(lambda drawn: np.median(rank[drawn]), len(rank), resamples, seed, clusters),
        "chance_interval": permutation_chance(
            lambda order: np.median(table[rows, order]), len(rank), resamples, seed
        ).interval,
        "seed": seed,
    }
    definition = metric(f"{direction}_median_rank@{len(table)}")
    return Score(definition, float(np.median(rank)), len(rank), **(found | conditions))


def _mean_top1(queries: np.ndarray, chosen: Sequence[np.ndarray], order: np.ndarray) -> float:
    """Top-1, mean over draws, if candidate order[i] is the partner of query i; a tie at the top fails."""
    hits = []
    for pick in chosen:
        block = queries[np.ix_(pick, order[pick])]
        truth = np.diagonal(block)
        first = np.flatnonzero(truth >= block.max(1))
        alone = (block[first] >= truth[first, None] - _TIE).sum(1) == 1
        hits.append(alone.sum() / len(pick))
    return float(np.mean(hits))


_TEXT = {
    "image_given_brain": "cosine of each brain with all images of the gallery",
    "brain_given_image": "cosine of each image with all brains of the gallery",
}
for _direction, _text in _TEXT.items():
    register(
        Metric(
            f"{_direction}_top{{k:d}}@{{gallery:d}}",
            "identification",
            "up",
            None,
            None,
            f"{_text}; share whose true one is among the first k; ties take the middle rank",
        ),
        lambda k, gallery: int(k) / int(gallery),
    )
    for _average in ("mean", "median"):
        register(
            Metric(
                f"{_direction}_{_average}_rank@{{gallery:d}}",
                "identification",
                "down",
                None,
                None,
                f"{_text}; {_average} rank of the true one, from 1; ties take the middle rank",
            ),
            lambda gallery: (int(gallery) + 1) / 2,
        )
register(
    Metric(
        "two_way[{features}]",
        "identification",
        "up",
        0.5,
        None,
        "share of wrong real images that correlate strictly less with the decoded one than the right one; all pairs",
    )
)
