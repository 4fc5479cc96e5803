"""Kernel inception distance: the distance between the distributions of decoded and real pictures.

    score = kid_score(real, decoded, "grid", seed=0, features=extractor.fingerprint())
    print(score)  # kid[grid] ↓ 0.012 [-0.004, 0.031], n 982 decoded against 982 real images, ...

You provide the features, (images, d), and their name becomes part of the metric's name. With the features of
Inception-v3's average pool this is the measure of Binkowski, Sutherland, Arbel and Gretton (2018, "Demystifying MMD
GANs"). Unlike the Fréchet distance it has no bias, at any number of independent images.
"""

import numpy as np

from ..errors import AxisError, BrainDataError
from .record import Metric, Score
from .registry import metric, register
from .statistics import percentile_interval

__all__ = ["kid_score", "mmd2"]


def mmd2(real: np.ndarray, decoded: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy between two samples, in fp64.

        k(x, y) = (<x, y> / d + 1)^3
        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    The estimate is eq. 3 of Gretton et al., 2012; the kernel is that of Binkowski et al., 2018, section 4. If the
    distributions are equal its mean is 0, so single values are often negative.

    Args:
        real: (n, d) Features x, n at least 2.
        decoded: (m, d) Features y, m at least 2.

    Raises:
        AxisError: Fewer than two images, or features of different widths.
        BrainDataError: Features that are not finite.
    """
    x, y = _features("real", real).astype(np.float64), _features("decoded", decoded).astype(np.float64)
    _check_widths(x, y)
    return float(_off_diagonal_mean(_kernel(x, x)) + _off_diagonal_mean(_kernel(y, y)) - 2 * _kernel(x, y).mean())


def kid_score(
    real: np.ndarray,
    decoded: np.ndarray,
    name: str,
    subset_size: int = 100,
    subsets: int = 100,
    seed: int = 0,
    **conditions,
) -> Score:
    """Mean of `mmd2` over random subsets of both sets, with the central 95 % of the subsets as interval.

    Each subset is drawn without replacement, from the real and from the decoded images independently. The order of the
    rows does not matter. The interval shows how one estimate from `subset_size` images scatters. It is wider than an
    interval of the mean, so compare it only with intervals of the same subset size.

    A decoded image depends on the real one that it was decoded from. If the two are equal, the expected value is 2 (U -
    D) / n instead of 0. Here D is the mean of k(x_i, x_i), and U is the mean of k(x_i, x_j) over different images.

    Args:
        real: (n, d) Features of real images.
        decoded: (m, d) Features of decoded images, from the same extractor.
        name: Name of the extractor; the metric is `kid[name]`.
        subset_size: Number of images of each set in a subset, at least 2 and less than n and m.
        subsets: Number of subsets, at least 2.
        seed: Seed of the subsets.
        conditions: Further fields of `Score`, such as `features`, the extractor's fingerprint.

    Raises:
        AxisError: Fewer than two images, or features of different widths.
        BrainDataError: `subset_size` or `subsets` is out of range, or features are not finite.
    """
    real, decoded = _features("real", real), _features("decoded", decoded)
    _check_widths(real, decoded)
    fewest = min(len(real), len(decoded))
    if not 2 <= subset_size < fewest:
        raise BrainDataError(
            f"expected subsets of 2 to {fewest - 1} images, fewer than each set has, got subset_size={subset_size} for "
            f"{len(real)} real and {len(decoded)} decoded images; mmd2 uses all images at once"
        )
    if subsets < 2:
        raise BrainDataError(f"expected two or more subsets, from which the interval is taken, got {subsets}")
    rng = np.random.default_rng(seed)
    values = np.array(
        [
            mmd2(*(x[rng.choice(len(x), subset_size, replace=False, shuffle=False)] for x in (real, decoded)))
            for _ in range(subsets)
        ]
    )
    drawn = f"{subsets} subsets of {subset_size} images"
    found = {
        "n_of": f"decoded against {len(real)} real images",
        "interval": percentile_interval(values, method=drawn),
        "seed": seed,
        "note": "; ".join(filter(None, [f"mean over {drawn}", conditions.pop("note", "")])),
    }
    return Score(metric(f"kid[{name}]"), float(values.mean()), len(decoded), **(found | conditions))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal_mean(kernel: np.ndarray) -> float:
    return (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))


def _features(what: str, features: np.ndarray) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise AxisError(f"expected {what} features (images, d) of two or more images, got {features.shape}")
    undefined = int((~np.isfinite(features)).any(1).sum())
    if undefined:
        raise BrainDataError(
            f"expected finite {what} features of {len(features)} images, got {undefined} images without"
        )
    return features


def _check_widths(real: np.ndarray, decoded: np.ndarray) -> None:
    if real.shape[1] != decoded.shape[1]:
        raise AxisError(
            f"expected features from one extractor, got {real.shape[1]} numbers for a real image and "
            f"{decoded.shape[1]} for a decoded one"
        )


register(
    Metric(
        "kid[{features}]",
        "feature",
        "down",
        None,
        None,
        "unbiased MMD^2 with the kernel (<x, y> / d + 1)^3 of d features; mean over subsets of real and decoded images",
    )
)
