"""Test objects whose shape is also in the training: clouds that differ no more than two samplings of one surface.

for pair in near_duplicates(study, "objects"):
    print(pair)  # eeg3d:bed_09 (test) and eeg3d:bed_02 (train): chamfer 0.0021, samplings of one 0.0023
"""

from dataclasses import dataclass

import numpy as np

from ..data import Split
from ..data.object_study import ObjectStudy
from .shape3d import chamfer_l2, normalize_cloud

__all__ = ["NearDuplicate", "near_duplicates"]

_POINTS = 1024  # largest number of points of a half
_DRAWS = 4  # pairs of halves, over which distances are averaged
_CANDIDATES = 4  # objects of the training with the most similar moments, whose distances are computed
_SLACK = 1.15  # mean distances of two samplings of one surface vary by 7 percent at 1024 points


@dataclass(frozen=True)
class NearDuplicate:
    """A test object and an object of the training with nearly the same shape.

    Attributes:
        test: Id of the test object.
        train: Id of the object in the train or validation part.
        distance: Squared chamfer distance between a half of each cloud, at root mean square radius 1.
        own: The same distance between two halves of the test object's cloud.
    """

    test: str
    train: str
    distance: float
    own: float

    def __str__(self) -> str:
        return (
            f"{self.test} (test) and {self.train} (train): chamfer {self.distance:.3g}, samplings of one {self.own:.3g}"
        )


def near_duplicates(study: ObjectStudy, split: str | Split | None = None, seed: int = 0) -> list[NearDuplicate]:
    """Test objects that are as near to an object of the training as two samplings of one surface are to each other.

    A cloud is divided into two random halves, and each is centred and scaled to a root mean square radius of 1. A pair
    is listed if the distance of their halves is at most 1.15 times that of the test object's own halves. All distances
    are means over 4 divisions. Rotated copies are not found, and colours do not matter. Only the 4 objects of the
    training with the most similar moments are compared.

    A list does not mean that an object is shown twice: the shapes of one class may differ less than a cloud can tell.

    Args:
        study: Study with the clouds.
        split: Split, or name of one. None takes the first one.
        seed: Seed of the halves.

    Returns:
        The pairs, nearest first. An object may be in several.

    Raises:
        ImportError: scipy is missing.
    """
    split = study.split(split)
    train, test = sorted(split.train | split.val), sorted(split.test)
    clouds = {name: study.cloud(name)[:, :3].astype(np.float64) for name in (*train, *test)}
    moments = {name: _moments(cloud) for name, cloud in clouds.items()}
    table, found = np.array([moments[name] for name in train]), []
    for name in test if train else ():
        own = _distance(clouds[name], clouds[name], seed)
        nearest = np.argsort(np.square(table - moments[name]).sum(1), kind="stable")[:_CANDIDATES]
        for other in (train[row] for row in nearest.tolist()):
            distance = _distance(clouds[name], clouds[other], seed)
            if distance <= _SLACK * own:
                found.append(NearDuplicate(name, other, distance, own))
    return sorted(found, key=lambda pair: pair.distance / pair.own)


def _distance(first: np.ndarray, second: np.ndarray, seed: int) -> float:
    """Mean distance between the first halves of one cloud and the second halves of another."""
    size, distances = min(_POINTS, len(first) // 2, len(second) // 2), []
    for draw in range(_DRAWS):
        orders = [np.random.default_rng((seed, draw)).permutation(len(cloud)) for cloud in (first, second)]
        halves = first[orders[0][:size]], second[orders[1][size : 2 * size]]
        distances.append(chamfer_l2(*(normalize_cloud(half, "rms") for half in halves)))
    return float(np.mean(distances))


def _moments(points: np.ndarray) -> np.ndarray:
    """Second moments and deciles of the radius, (15,). Two samplings of one surface have nearly equal ones."""
    points = normalize_cloud(points, "rms")
    second = (points.T @ points / len(points))[np.triu_indices(3)]
    return np.concatenate([second, np.quantile(np.linalg.norm(points, axis=1), np.linspace(0.1, 0.9, 9))])
