"""Earth mover's distance of point clouds, and scores of a whole set of decoded clouds.

    for score in [*emd_scores(true, decoded), *set_scores(list(true.values()), made)]:
        print(score)
    # emd@512[rms,mean_of_5] ↓ ..., mmd_cd[rms] ↓ ..., cov_cd[rms] ↑ ..., 1nna_cd[rms] · ...

The scores of sets do not need to know which decoded cloud belongs to which object. A decoder that always makes the same
cloud has a low coverage, however good that cloud is.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError, need
from .record import Metric, Score
from .registry import metric, register
from .shape3d import _COLUMNS, _SCALES, _check, _joined, _samples, _tree, _variant, normalize_cloud, sphere_floor
from .statistics import RESAMPLES, score_images

__all__ = ["chamfer_table", "draw_points", "emd", "emd_floor", "emd_scores", "selection_chance", "set_scores"]


def emd(first: np.ndarray, second: np.ndarray) -> float:
    """Earth mover's distance min_phi mean_i |a_i - b_phi(i)| over all one-to-one assignments phi, which is exact.

    It needs as many points in both clouds, and its value depends on their number. The time grows with the cube of the
    number: about 0.1 s for 512 points. Published code often sums in place of the mean, squares the distances, or
    approximates the assignment (daerduoCarey/PyTorchEMD#4).

    Args:
        first, second: (n, 3 or more) Points, used as they are; columns after the third are ignored.

    Raises:
        AxisError: The clouds have unequal numbers of points, or wrong shapes.
        BrainDataError: Points that are not finite.
        ImportError: scipy is not installed.
    """
    first, second = _check(first), _check(second)
    if len(first) != len(second):
        raise AxisError(f"expected clouds of equally many points, got {len(first)} and {len(second)}")
    try:
        from scipy.optimize import linear_sum_assignment
        from scipy.spatial.distance import cdist
    except ImportError as error:
        raise need("scipy", "the earth mover's distance") from error
    lengths = cdist(first[:, :3], second[:, :3])  # (n, n)
    return float(lengths[linear_sum_assignment(lengths)].mean())


def draw_points(cloud: np.ndarray, num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Some points of a cloud, drawn without replacement. A cloud with no more than that stays as it is.

    Args:
        cloud: (N, columns) Points.
        num_points: Largest number of points to keep.
        rng: Generator of the draw.
    """
    if len(cloud) <= num_points:
        return cloud
    return cloud[rng.choice(len(cloud), num_points, replace=False)]


@lru_cache(maxsize=32)
def emd_floor(points: int, draws: int = 4, seed: int = 0, scale: str = "rms") -> float:
    """Earth mover's distance of two independent uniform samplings of one sphere, after both were normalised.

    Args:
        points: Number of points of each sampling.
        draws: Number of pairs of samplings that are averaged.
        seed: Seed of all samplings.
        scale: Scale of the clouds, see `normalize_cloud`.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        clouds = [rng.normal(size=(points, 3)) for _ in range(2)]
        found.append(emd(*(normalize_cloud(x / np.linalg.norm(x, axis=1, keepdims=True), scale) for x in clouds)))
    return float(np.mean(found))


def emd_scores(
    true: Mapping[str, np.ndarray],
    decoded: Mapping[str, Sequence[np.ndarray]],
    points: int = 512,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    scale: str = "rms",
    **conditions,
) -> list[Score]:
    """Exact earth mover's distance between decoded and true clouds, which are matched by object id.

    The ceiling is what two samplings of a sphere reach with as many points.

    Args:
        true: True cloud (N, 3 or more) of each object, by id.
        decoded: List of k decoded clouds (M, 3 or more) of each object, by id; k is the same for all. If k is above 1
            there are two columns, as in `cloud_scores`.
        points: Number of points that are drawn from every cloud after it was normalised. It is part of the name.
        resamples: Number of bootstrap samples over objects.
        seed: Seed of the bootstrap and of the drawn points.
        clusters: (n,) Labels of objects that are drawn together. None draws single objects.
        scale: Scale of the clouds, see `normalize_cloud`.
        conditions: Further fields of `Score`.

    Raises:
        IdError: An object was not decoded.
        AxisError: A cloud has fewer than `points` points or a wrong shape, or objects have unequal numbers of clouds.
        BrainDataError: Points are not finite or all in one place, or `scale` is unknown.
    """
    ids, k = _joined(true, decoded)
    rng, rows = np.random.default_rng(seed), []
    for name in ids:
        clouds = [_exactly(cloud, points, scale, rng, name) for cloud in (true[name], *decoded[name])]
        rows.append([emd(clouds[0], cloud) for cloud in clouds[1:]])
    note = f"ceiling: two samplings of a sphere, {points} points"
    base = {"n_of": "objects", "note": note, "ceiling": emd_floor(points, scale=scale)} | conditions
    scores = []
    for kind, pick in _samples(k, "down"):
        definition = metric(f"emd@{points}{_variant('' if scale == 'radius' else scale, kind)}")
        values = np.array([pick(row) for row in rows])
        scores.append(score_images(definition, values, None, resamples, seed, clusters, **base))
    return scores


def chamfer_table(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """`chamfer_l2` of every cloud of one set with every cloud of another.

    Args:
        first, second: n and m clouds (N, 3 or more), used as they are.

    Returns:
        fp64 (n, m).
    """
    first, second = [_check(cloud) for cloud in first], [_check(cloud) for cloud in second]
    return _towards(first, second) + _towards(second, first).T


def set_scores(
    real: Sequence[np.ndarray],
    made: Sequence[np.ndarray],
    others: Sequence[np.ndarray] | None = None,
    num_points: int = 512,
    resamples: int = RESAMPLES,
    seed: int = 0,
    scale: str = "rms",
    **conditions,
) -> list[Score]:
    """Minimum matching distance, coverage and 1-NN accuracy of a set of clouds, by `chamfer_l2`.

    The definitions are those of Achlioptas et al. (2018) and of Yang et al. (PointFlow, 2019). Real clouds are the
    reference: published code has it in both orders (stevenygd/PointFlow#30).

    | name | value |
    |---|---|
    | `mmd_cd` | mean over real clouds of the distance to the nearest made cloud |
    | `cov_cd` | share of real clouds that are the nearest real one of some made cloud |
    | `1nna_cd` | share of all clouds whose nearest other cloud is of their own set |

    The best value of `1nna_cd` is 0.5. It is 1 if the sets are apart, and 0 if made clouds are copies of real ones.

    Args:
        real: n real clouds (N, 3 or more), such as those of the test objects.
        made: n made clouds (M, 3 or more), in any order. With several samples of an object, pass one of each.
        others: Real clouds of other objects, such as the train objects, at least n. Their scores are the ceilings. None
            takes 0.5 for `1nna_cd`, two samplings of a sphere for `mmd_cd`, and nothing for `cov_cd`.
        num_points: Largest number of points that are drawn from every cloud after it was normalised. `mmd_cd` depends
            on it.
        resamples: Number of bootstrap samples over clouds.
        seed: Seed of the bootstrap, of the drawn points and of the drawn `others`.
        scale: Scale of the clouds, see `normalize_cloud`. It is part of the names, unless it is "radius".
        conditions: Further fields of `Score`.

    Raises:
        AxisError: The sets have unequal numbers of clouds or fewer than two, or a cloud has a wrong shape.
        BrainDataError: Points are not finite or all in one place, or `scale` is unknown.
    """
    if len(real) != len(made) or len(real) < 2:
        raise AxisError(f"expected as many made clouds as real ones, two or more, got {len(made)} and {len(real)}")
    if others is not None and len(others) < len(real):
        raise AxisError(f"expected at least {len(real)} other clouds, as many as real ones, got {len(others)}")
    rng = np.random.default_rng(seed)
    real = [draw_points(normalize_cloud(cloud, scale), num_points, rng) for cloud in real]
    made = [draw_points(normalize_cloud(cloud, scale), num_points, rng) for cloud in made]
    within = chamfer_table(real, real)
    found = _set_values(within, chamfer_table(real, made), chamfer_table(made, made))
    points = max(map(len, (*real, *made)))
    best = {"1nna_cd": 0.5, "mmd_cd": sphere_floor(points, scale=scale)["chamfer_l2"]}
    words = f"{points} points of each cloud"
    if others is not None:
        rows = rng.choice(len(others), len(real), replace=False)
        kept = [draw_points(normalize_cloud(others[row], scale), num_points, rng) for row in rows]
        values = _set_values(within, chamfer_table(real, kept), chamfer_table(kept, kept))
        best = {name: float(value.mean()) for name, value in values.items()}
        words += f"; ceiling: {len(kept)} other real clouds"
    base: dict[str, Any] = {"n_of": "clouds", "note": words} | conditions
    variant = _variant("" if scale == "radius" else scale)
    scores = []
    for name, values in found.items():
        given: dict[str, Any] = {"ceiling": best.get(name)} | base
        scores.append(score_images(metric(name + variant), values, None, resamples, seed, **given))
    return scores


def selection_chance(n: int, p: float, epochs: int) -> float:
    """Expected accuracy of a guesser whose best one of several epochs is chosen on the test set itself.

        E[max of `epochs` values X / n, X ~ Binomial(n, p)] = sum_{x = 1..n} (1 - P(X < x)^epochs) / n

    It is the chance level of a score with `selection="test"`. Epochs count as independent; those of one training run
    are not, so their number is that of clearly different checkpoints.

    Args:
        n: Number of test objects.
        p: Accuracy of one guess, such as 1 / 72.
        epochs: Number of epochs that were compared.

    Raises:
        BrainDataError: `n` or `epochs` is below 1, or p is no probability.
        ImportError: scipy is not installed.
    """
    if n < 1 or epochs < 1 or not 0 <= p <= 1:
        raise BrainDataError(f"expected n and epochs of 1 or more and p in [0, 1], got n {n}, epochs {epochs}, p {p}")
    try:
        from scipy.stats import binom
    except ImportError as error:
        raise need("scipy", "the chance level of a selection") from error
    below = binom.cdf(np.arange(n), n, p)  # P(X < x) for x = 1 .. n
    return float((1 - below**epochs).sum() / n)


def _exactly(cloud: np.ndarray, points: int, scale: str, rng: np.random.Generator, name: str) -> np.ndarray:
    """`points` points of a normalised cloud, (points, columns)."""
    cloud = normalize_cloud(cloud, scale)
    if len(cloud) < points:
        raise AxisError(f"expected clouds of {points} points or more, got {len(cloud)} of {name!r}; pass points=")
    return draw_points(cloud, points, rng)


def _towards(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """(n, m): mean over the points of cloud i of the first set of the squared distance to cloud j of the second."""
    points, sizes = np.concatenate([cloud[:, :3] for cloud in first]), np.array([len(cloud) for cloud in first])
    starts = np.cumsum(sizes) - sizes
    columns = [np.add.reduceat(np.square(_tree(cloud).query(points)[0]), starts) / sizes for cloud in second]
    return np.stack(columns, axis=1)


def _set_values(real_real: np.ndarray, real_made: np.ndarray, made_made: np.ndarray) -> dict[str, np.ndarray]:
    """Values whose means are the scores: (n,), (n,) and (2n,), from distances (n, n)."""
    n = len(real_made)
    everything = np.block([[real_real, real_made], [real_made.T, made_made]])  # (2n, 2n)
    np.fill_diagonal(everything, np.inf)
    own = np.arange(2 * n) < n
    return {
        "mmd_cd": real_made.min(1),
        "cov_cd": np.isin(np.arange(n), real_made.argmin(0)).astype(np.float64),
        "1nna_cd": (own[everything.argmin(1)] == own).astype(np.float64),
    }


_SETS = [
    Metric("mmd_cd", "shape", "down", None, None, "mean over real clouds of chamfer_l2 to the nearest made one"),
    Metric("cov_cd", "shape", "up", None, None, "share of real clouds that are the nearest real one of a made cloud"),
    Metric("1nna_cd", "shape", "none", None, None, "leave-one-out 1-NN accuracy, real against made; 0.5 is best"),
]
for _scale, _radius in _SCALES.items():
    _word, _norm = "" if _scale == "radius" else _scale, f"clouds centred and divided by their {_radius}"
    for _set in _SETS:
        _protocol = f"{_norm}; {_set.protocol}"
        register(Metric(_set.name + _variant(_word), "shape", _set.direction, None, None, _protocol))
    for _kind, _text in _COLUMNS.items():
        _name = "emd@{points:d}" + _variant(_word, _kind)
        _protocol = f"{_norm}; mean distance over points under the best one-to-one assignment, which is exact{_text}"
        register(Metric(_name, "shape", "down", None, None, _protocol))
