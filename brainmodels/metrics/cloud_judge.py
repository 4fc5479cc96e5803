"""Identification of decoded point clouds among N classes, by a judge that needs no training.

    judge = NearestCloudJudge(train_clouds, train_labels)
    for score in identification_scores(judge.scores(decoded), judge.scores(true), labels, judge.name):
        print(score)
    # 2way_top1[chamfer_nn,rms] ↑ ..., chance 0.500, ceiling ...; 10way_top3[chamfer_nn,rms] ↑ ...

The scores of any other judge, such as the logits of a trained network, go into the same function. A judge that errs on
true clouds cannot tell good decoded ones. The ceiling of each score is therefore that of the true clouds.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import AxisError, BrainDataError
from .cloud_sets import _towards, draw_points
from .nway import nway_topk
from .record import Score
from .registry import metric
from .shape3d import _tree, normalize_cloud
from .statistics import RESAMPLES, score_images

__all__ = ["NearestCloudJudge", "identification_scores"]


class NearestCloudJudge:
    """Scores of classes for a cloud: minus its `chamfer_l2` to the nearest known cloud of each class.

    It compares shapes alone, not colours. Nothing is learned, so two people get the same judge from the same clouds.

    Args:
        clouds: Known clouds (N, 3 or more), of train objects only.
        labels: (clouds,) Their classes, integers from 0. Each class up to the largest has a cloud.
        num_points: Number of points that are drawn from every cloud after it was normalised.
        scale: Scale of the clouds, see `normalize_cloud`.
        seed: Seed of the drawn points.

    Attributes:
        name: Name of the judge in the names of metrics, such as "chamfer_nn,rms".

    Raises:
        AxisError: Clouds and labels differ in number, labels are not integers, or a cloud has a wrong shape.
        BrainDataError: A class has no cloud, points are not finite or all in one place, or `scale` is unknown.
    """

    def __init__(
        self,
        clouds: Sequence[np.ndarray],
        labels: Sequence[int] | np.ndarray,
        num_points: int = 512,
        scale: str = "rms",
        seed: int = 0,
    ):
        self.labels = np.asarray(labels)
        if self.labels.shape != (len(clouds),) or self.labels.dtype.kind not in "iu" or not len(clouds):
            raise AxisError(
                f"expected an integer class for each of {len(clouds)} clouds, got {self.labels.dtype} "
                f"{self.labels.shape}"
            )
        if self.labels.min() < 0:
            raise BrainDataError(f"expected classes from 0, got {self.labels.min()}")
        counts = np.bincount(self.labels)
        if not counts.all():
            raise BrainDataError(
                f"expected a cloud of every class from 0 to {len(counts) - 1}, got none of {int(counts.argmin())}"
            )
        self.num_points, self.scale, self.seed = num_points, scale, seed
        self.name = "chamfer_nn" if scale == "radius" else f"chamfer_nn,{scale}"
        self._members = [np.flatnonzero(self.labels == label) for label in range(len(counts))]
        self._clouds = self._ready(clouds)
        self._trees = [_tree(cloud) for cloud in self._clouds]

    def scores(self, clouds: Sequence[np.ndarray]) -> np.ndarray:
        """Scores (n, classes) of n clouds (M, 3 or more). A higher one is likelier.

        Raises:
            AxisError: A cloud has a wrong shape.
            BrainDataError: Points that are not finite, or all in one place.
        """
        clouds = self._ready(clouds)
        if not len(clouds):
            raise AxisError("expected one or more clouds, got none")
        there = _towards(clouds, self._clouds)  # (n, known): one half of each distance, and so a lower bound
        found = np.empty((len(clouds), len(self._members)))
        for row, cloud in enumerate(clouds):
            tree = _tree(cloud)
            for label, members in enumerate(self._members):
                found[row, label] = -self._nearest(tree, there[row], members)
        return found

    def nearest(self, clouds: Sequence[np.ndarray]) -> np.ndarray:
        """Most likely class (n,) of each cloud."""
        return self.scores(clouds).argmax(1)

    def _ready(self, clouds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Coordinates of the drawn points, normalised, fp64 (points, 3)."""
        rng = np.random.default_rng(self.seed)
        return [draw_points(normalize_cloud(cloud, self.scale)[:, :3], self.num_points, rng) for cloud in clouds]

    def _nearest(self, tree, there: np.ndarray, members: np.ndarray) -> float:
        """Smallest distance to a known cloud of one class. Those whose lower bound is larger are left out."""
        best = np.inf
        for member in members[there[members].argsort()]:
            if there[member] >= best:
                break
            best = min(best, there[member] + np.square(tree.query(self._clouds[member])[0]).mean())
        return best


def identification_scores(
    decoded: np.ndarray,
    real: np.ndarray,
    labels: np.ndarray,
    judge: str,
    protocols: Sequence[tuple[int, int]] = ((2, 1), (10, 3)),
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Sequence | np.ndarray | None = None,
    **conditions,
) -> list[Score]:
    """N-way top-K scores of decoded clouds, with those of the true clouds as ceilings.

    With several samples of an object a score is the mean over them, and intervals are over objects. The pair (classes,
    1) gives the share of clouds that the judge names correctly.

    Args:
        decoded: (n, classes) or (n, samples, classes) Scores of the judge for the decoded clouds of n objects.
        real: (n, classes) Scores of the same judge for the true clouds.
        labels: (n,) True classes, integers from 0.
        judge: Name of the judge. It becomes part of the metric's name.
        protocols: Pairs (N, K). Those with N above the number of classes are left out.
        resamples: Number of bootstrap samples over objects, and of permutations.
        seed: Seed of the bootstrap and of the permutations.
        clusters: (n,) Labels of objects that are drawn together. None draws single objects.
        conditions: Further fields of `Score`.

    Raises:
        AxisError: Shapes do not match, or classes are not integers.
        BrainDataError: A score is not finite, or a class or protocol is out of range.
    """
    decoded, real, labels = np.asarray(decoded), np.asarray(real), np.asarray(labels)
    if decoded.ndim == 2:
        decoded = decoded[:, None]
    if decoded.ndim != 3 or real.shape != (len(decoded), decoded.shape[2]) or labels.shape != (len(decoded),):
        raise AxisError(
            f"expected scores (n, samples, classes), (n, classes) of true clouds and classes (n,), got {decoded.shape},"
            f" {real.shape} and {labels.shape}"
        )
    n, samples, classes = decoded.shape
    flat = decoded.reshape(n * samples, classes)
    note = f"accuracy of the judge on true clouds {np.mean(real.argmax(1) == labels):.3f}"
    base = {"n_of": "objects", "note": note + ("" if samples == 1 else f"; mean over {samples} samples of an object")}
    scores = []
    for ways, k in (pair for pair in protocols if pair[0] <= classes):
        ceiling = float(nway_topk(real, labels, ways, k).mean())
        of_class = {  # (n,): score of each decoded object, if that were its class
            label: nway_topk(flat, np.full(n * samples, label), ways, k).reshape(n, samples).mean(1)
            for label in np.unique(labels)
        }
        table = np.stack([of_class[label] for label in labels])  # [class of object i, decoded j]
        definition, found = metric(f"{ways}way_top{k}[{judge}]"), {"ceiling": ceiling} | base | conditions
        scores.append(score_images(definition, np.diagonal(table), table, resamples, seed, clusters, **found))
    return scores
