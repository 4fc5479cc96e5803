"""Distances between decoded and true point clouds, at one scale, and errors of their colours.

    for score in cloud_scores(true, decoded, seed=0):  # {id: (N, 3 or 6)}, {id: [cloud, ...]}
        print(score)
    # chamfer_l2[mean_of_5] ↓ ..., chamfer_l2[best_of_5] ↓ ..., fscore@0.01[mean_of_5] ↑ ...

Each cloud is centred on the mean of its points and divided by its largest radius. Even two samplings of one surface
differ. Every score therefore has a ceiling: what two samplings of a sphere with as many points reach.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError, IdError, check_choice, near_names, need
from .record import Metric, Score
from .registry import metric, register
from .statistics import RESAMPLES, permutation_chance, score_images

__all__ = [
    "chamfer_l1",
    "chamfer_l2",
    "cloud_scores",
    "color_error",
    "color_scores",
    "fscore",
    "majority_color",
    "normalize_cloud",
    "sphere_floor",
]

TAUS = (0.01, 0.05)


_SCALES = {"radius": "largest radius", "rms": "root mean square radius"}


def normalize_cloud(cloud: np.ndarray, scale: str = "radius") -> np.ndarray:
    """Points minus their mean, divided by their radius, which is a distance from it.

    The largest radius grows with the number of points, and one outlier shrinks the whole cloud. The root mean square
    radius hardly depends on either. Scores at different scales do not compare.

    Args:
        cloud: (N, 3 or more) Points; columns after the third stay as they are.
        scale: "radius" divides by the largest radius, as published scores do. "rms" divides by the root mean square
            radius.

    Returns:
        fp64, the shape of `cloud`.

    Raises:
        AxisError: `cloud` is not (N, 3 or more).
        BrainDataError: Points are not finite or all in one place, or `scale` is unknown.
    """
    check_choice("scale", scale, list(_SCALES))
    cloud = _check(cloud).copy()
    cloud[:, :3] -= cloud[:, :3].mean(0)
    distances = np.linalg.norm(cloud[:, :3], axis=1)
    radius = distances.max() if scale == "radius" else np.sqrt(np.square(distances).mean())
    if not radius > 0:
        raise BrainDataError("expected a cloud of distinct points, got all in one place")
    cloud[:, :3] /= radius
    return cloud


def chamfer_l2(first: np.ndarray, second: np.ndarray) -> float:
    """Squared chamfer distance: mean_a min_b |a - b|^2 + mean_b min_a |a - b|^2.

    Args:
        first, second: (N, 3) and (M, 3) Points, used as they are.
    """
    return _measures(*_distances(first, second))["chamfer_l2"]


def chamfer_l1(first: np.ndarray, second: np.ndarray) -> float:
    """Plain chamfer distance, which is half of mean_a min_b |a - b| + mean_b min_a |a - b|.

    Args:
        first, second: (N, 3) and (M, 3) Points, used as they are.
    """
    return _measures(*_distances(first, second))["chamfer_l1"]


def fscore(first: np.ndarray, second: np.ndarray, tau: float) -> float:
    """F-score 2 P R / (P + R) of the shares of points that are closer than tau to the other cloud (Tatarchenko et al.,
    2019).

    Args:
        first, second: (N, 3) and (M, 3) Points, used as they are.
        tau: Distance in the units of the points.
    """
    return _fscore(*_distances(first, second), tau)


def color_error(true: np.ndarray, decoded: np.ndarray) -> float:
    """Mean |difference| of red, green and blue between each decoded point and the true point nearest to it.

    The mean of signed differences, which is also in use, is zero for errors that cancel. It is not offered.

    Args:
        true, decoded: (N, 6) and (M, 6) Points: coordinates, then colours in [0, 1].
    """
    true, decoded = _check(true, colours=True), _check(decoded, colours=True)
    nearest = _tree(true).query(decoded[:, :3])[1]
    return float(np.abs(decoded[:, 3:6] - true[nearest, 3:6]).mean())


def majority_color(cloud: np.ndarray, palette: np.ndarray) -> int:
    """Colour of the palette that is nearest for most points of a cloud.

    Args:
        cloud: (N, 6) Points: coordinates, then colours in [0, 1].
        palette: (colours, 3) Colours in [0, 1].

    Returns:
        Row of the palette; of equally frequent colours, the first.
    """
    palette = np.asarray(palette, dtype=np.float64)
    if palette.ndim != 2 or palette.shape[1] != 3 or len(palette) < 2:
        raise AxisError(f"expected a palette (colours, 3) of two or more, got {palette.shape}")
    points = _check(cloud, colours=True)[:, 3:6]
    nearest = np.square(points[:, None] - palette).sum(2).argmin(1)
    return int(np.bincount(nearest, minlength=len(palette)).argmax())


@lru_cache(maxsize=32)
def sphere_floor(
    points: int,
    other: int | None = None,
    normalized: bool = True,
    draws: int = 8,
    seed: int = 0,
    scale: str = "radius",
) -> Mapping[str, float]:
    """Scores of two independent uniform samplings of one sphere, by name of the metric.

    Args:
        points: Number of points of the first sampling.
        other: Number of points of the second. None takes as many.
        normalized: Whether to centre and scale both, as is done with scored clouds. The means of 8192 points of a
            sphere differ by about 0.015 of its radius, more than the smallest tau. This alone lowers `fscore@0.01` from
            .18 to about .1.
        draws: Number of pairs of samplings that are averaged.
        seed: Seed of all samplings.
        scale: Scale of normalised clouds, see `normalize_cloud`.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        clouds = [rng.normal(size=(count, 3)) for count in (points, other or points)]
        clouds = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in clouds]
        clouds = [normalize_cloud(x, scale) for x in clouds] if normalized else clouds
        found.append(_measures(*_distances(*clouds)))
    return {name: float(np.mean([values[name] for values in found])) for name in found[0]}


def cloud_scores(
    true: Mapping[str, np.ndarray],
    decoded: Mapping[str, Sequence[np.ndarray]],
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    permutations: int = 0,
    scale: str = "radius",
    **conditions,
) -> list[Score]:
    """Distances between decoded and true clouds, which are matched by object id.

    Args:
        true: True cloud (N, 3 or more) of each object, by id.
        decoded: List of k decoded clouds (M, 3 or more) of each object, by id; k is the same for all. If k is above 1
            there are two columns, "[mean_of_k]" and "[best_of_k]". The second needs the truth to choose a sample, so it
            is no result of a decoder.
        resamples: Number of bootstrap samples over objects.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of objects that are drawn together. None draws single objects.
        permutations: Number of permutations of the objects, for the chance interval. Each takes as long as the scores
            themselves. 0 leaves the interval out.
        scale: Scale of the clouds, see `normalize_cloud`. Scores at another scale than the published "radius" have it
            in their names, such as `chamfer_l2[rms]`.
        conditions: Further fields of `Score`.

    Raises:
        IdError: An object was not decoded.
        AxisError: The objects have unequal numbers of clouds, or clouds have a wrong shape.
        BrainDataError: Points are not finite or all in one place, or `scale` is unknown.
    """
    ids, k = _joined(true, decoded)
    real = [normalize_cloud(true[name], scale) for name in ids]
    made = [[normalize_cloud(cloud, scale) for cloud in decoded[name]] for name in ids]

    @cache
    def one(row: int, column: int) -> dict[str, list[float]]:
        found = [_measures(*_distances(real[row], cloud)) for cloud in made[column]]
        return {name: [values[name] for values in found] for name in found[0]}

    sizes = {(len(cloud), len(sample)) for cloud, samples in zip(real, made, strict=True) for sample in samples}
    floor = sphere_floor(*max(sizes), scale=scale)
    note = "ceiling: two samplings of a sphere, {} and {} points".format(*max(sizes))
    base = {"n_of": "objects", "note": note} | conditions
    scores = []
    for name in floor:
        for kind, pick in _samples(k, metric(name).direction):
            kind = _variant("" if scale == "radius" else scale, kind)

            def mean(order: np.ndarray, name: str = name, pick: Callable = pick) -> float:
                return float(np.mean([pick(one(row, int(column))[name]) for row, column in enumerate(order)]))

            values = [pick(one(row, row)[name]) for row in range(len(ids))]
            found = {"ceiling": floor[name]} | base
            if permutations:
                chance = permutation_chance(mean, len(ids), permutations, seed)  # the same ones for every column
                found = {"chance": chance.mean, "chance_interval": chance.interval} | found
            definition = metric(f"{name}{kind}")
            scores.append(score_images(definition, np.array(values), None, resamples, seed, clusters, **found))
    return scores


def color_scores(
    true: Mapping[str, np.ndarray],
    decoded: Mapping[str, Sequence[np.ndarray]],
    palette: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> list[Score]:
    """Colours of decoded clouds, after all clouds were normalised; means over the samples of an object.

    Args:
        true: True cloud (N, 6) of each object, by id: coordinates, then colours in [0, 1].
        decoded: List of decoded clouds (M, 6) of each object, by id; equally many for all.
        palette: (colours, 3) Colours in [0, 1]. The majority colour of a cloud is that of most of its points.
        resamples: Number of bootstrap samples over objects, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of objects that are drawn together. None draws single objects.
        conditions: Further fields of `Score`.

    Raises:
        IdError: An object was not decoded.
        AxisError: The objects have unequal numbers of clouds, or clouds have a wrong shape.
        BrainDataError: Points that are not finite, or colours outside [0, 1].
    """
    ids, _ = _joined(true, decoded)
    real = [normalize_cloud(true[name]) for name in ids]
    made = [[normalize_cloud(cloud) for cloud in decoded[name]] for name in ids]
    errors = [np.mean([color_error(a, cloud) for cloud in clouds]) for a, clouds in zip(real, made, strict=True)]
    truth = np.array([majority_color(cloud, palette) for cloud in real])
    said = [np.array([majority_color(cloud, palette) for cloud in clouds]) for clouds in made]
    table = np.stack([[np.mean(answers == label) for answers in said] for label in truth])
    most = np.bincount(truth).max() / len(truth)
    base = {"n_of": "objects"} | conditions
    words = "; ".join(filter(None, [base.get("note"), f"majority class {most:.3f}"]))
    definition = metric(f"majority_color@{len(palette)}")
    options = resamples, seed, clusters
    return [
        score_images(metric("color_error"), np.array(errors), None, *options, **base),
        score_images(definition, np.diagonal(table), table, *options, **(base | {"note": words})),
    ]


def _samples(k: int, direction: str) -> list[tuple[str, Callable[[Sequence[float]], float]]]:
    """Names of the columns of k samples, and the function that takes one value of the samples."""
    if k == 1:
        return [("", np.mean)]
    return [(f"mean_of_{k}", np.mean), (f"best_of_{k}", max if direction == "up" else min)]


def _variant(*words: str) -> str:
    """Words in brackets, as they follow the name of a metric, without empty ones."""
    inside = ",".join(filter(None, words))
    return f"[{inside}]" if inside else ""


def _joined(true: Mapping[str, np.ndarray], decoded: Mapping[str, Sequence[np.ndarray]]) -> tuple[list[str], int]:
    ids = list(true)
    for name in ids:
        if name not in decoded:
            raise IdError(f"expected decoded clouds of {name!r}, got none{near_names(name, list(decoded))}")
    counts = {len(decoded[name]) for name in ids}
    if len(counts) != 1 or 0 in counts or any(np.ndim(decoded[name][0]) != 2 for name in ids):
        raise AxisError(
            f"expected a list of equally many clouds (M, 3) for each object, got {sorted(counts)}; one cloud of an "
            "object is a list of one"
        )
    return ids, counts.pop()


def _tree(cloud: np.ndarray) -> Any:
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise need("scipy", "distances of point clouds") from error
    return KDTree(cloud[:, :3])


def _distances(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances of every point to the nearest one of the other cloud: (N,) of the first, (M,) of the second."""
    first, second = _check(first), _check(second)
    return _tree(second).query(first[:, :3])[0], _tree(first).query(second[:, :3])[0]


def _measures(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    found = {
        "chamfer_l2": float(np.square(a).mean() + np.square(b).mean()),
        "chamfer_l1": float((a.mean() + b.mean()) / 2),
    }
    return found | {f"fscore@{tau:g}": _fscore(a, b, tau) for tau in TAUS}


def _fscore(a: np.ndarray, b: np.ndarray, tau: float) -> float:
    recall, precision = float((a < tau).mean()), float((b < tau).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _check(cloud: np.ndarray, colours: bool = False) -> np.ndarray:
    cloud = np.asarray(cloud, dtype=np.float64)
    if cloud.ndim != 2 or cloud.shape[1] < (6 if colours else 3) or not len(cloud):
        raise AxisError(f"expected points (N, {'6' if colours else '3 or more'}), got {cloud.shape}")
    if not np.isfinite(cloud).all():
        raise BrainDataError(f"expected finite points, got {int((~np.isfinite(cloud)).any(1).sum())} that are not")
    if colours and not (cloud[:, 3:6].min() >= 0 and cloud[:, 3:6].max() <= 1):
        low, high = cloud[:, 3:6].min(), cloud[:, 3:6].max()
        raise BrainDataError(f"expected colours in [0, 1], got {low:.3g} to {high:.3g}")
    return cloud


_KNOWN = [
    Metric("chamfer_l2", "shape", "down", None, None, "sum of both mean squared nearest distances"),
    Metric("chamfer_l1", "shape", "down", None, None, "half the sum of both mean nearest distances"),
]
_KNOWN += [
    Metric(f"fscore@{tau:g}", "shape", "up", None, None, f"2PR/(P+R) of shares nearer than {tau:g}") for tau in TAUS
]
_COLUMNS = {
    "": "",
    "mean_of_{k:d}": "; mean over k samples",
    "best_of_{k:d}": "; best of k samples, chosen by the truth",
}
for _metric in _KNOWN:
    for _scale, _radius in _SCALES.items():
        for _kind, _text in _COLUMNS.items():
            _name = _metric.name + _variant("" if _scale == "radius" else _scale, _kind)
            _protocol = f"clouds centred and divided by their {_radius}; {_metric.protocol}{_text}"
            register(replace(_metric, name=_name, protocol=_protocol))
register(Metric("color_error", "shape", "down", None, None, "mean |rgb difference| of decoded and nearest true points"))
register(
    Metric(
        "majority_color@{colors:d}",
        "shape",
        "up",
        None,
        None,
        "share of objects whose decoded points have the true majority colour; chance 1 / colours; the note has the "
        "majority class",
    ),
    lambda colors: 1 / int(colors),
)
