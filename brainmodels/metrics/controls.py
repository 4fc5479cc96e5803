"""What a score would be without the brain: controls that every result stands beside.

Each control calls the user's own training or evaluation with something taken away, and records what comes out.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import AxisError, BrainDataError, need
from .record import Score

__all__ = [
    "BOTTLENECK",
    "Runs",
    "all_at_chance",
    "block_shuffle",
    "bottleneck_curve",
    "noise_input",
    "prior_only",
    "shuffled_pairing",
]

_log = logging.getLogger(__name__)
BOTTLENECK = (1, 2, 5, 10, 20, 30, 50, 100, "full")


@dataclass(frozen=True)
class Runs:
    """Values of metrics over the settings of a control.

    Attributes:
        control: its name.
        over: what the settings are, such as "seed" or "components".
        settings: one a run.
        values: by metric, one a run.
    """

    control: str
    over: str
    settings: tuple[int | str, ...]
    values: Mapping[str, tuple[float, ...]]

    def mean(self, name: str) -> float:
        """Mean over runs of a metric."""
        return float(np.mean(self.values[name]))

    def to_json(self) -> dict:
        """All of it as JSON types."""
        values = {name: list(run) for name, run in self.values.items()}
        return {"control": self.control, "over": self.over, "settings": list(self.settings), "values": values}


def shuffled_pairing(
    refit: Callable[[np.ndarray], Mapping[str, float]], n: int, seeds: Sequence[int] = (0, 1, 2)
) -> Runs:
    """Train on wrong pairs, test on right ones: what is left is what the data sets have in common.

    Args:
        refit: called with a permutation of 0 .. n - 1; trains a new model on stimulus i with response permutation[i],
            tests it on correct pairs and returns its metrics.
        n: number of training pairs.
        seeds: of the permutations, one run each.
    """
    orders = {seed: np.random.default_rng(seed).permutation(n) for seed in seeds}
    return _runs("shuffled_pairing", "seed", {seed: refit(order) for seed, order in orders.items()})


def prior_only(evaluate: Callable[[int], Mapping[str, float]], seeds: Sequence[int] = (0, 1, 2)) -> Runs:
    """The generator without brain input.

    Args:
        evaluate: called with a seed; samples from the prior alone and returns the metrics.
        seeds: one run each.
    """
    return _runs("prior_only", "seed", {seed: evaluate(seed) for seed in seeds})


def noise_input(
    evaluate: Callable[[np.ndarray], Mapping[str, float]],
    train: np.ndarray,
    n: int,
    seeds: Sequence[int] = (0, 1, 2),
) -> Runs:
    """The trained model on noise instead of responses, Gaussian with the mean and deviation of each training voxel.

    Args:
        evaluate: called with noise (n, voxels) fp32; decodes it as if it were the test responses, returns the metrics.
        train: (images, voxels) training responses.
        n: number of test images.
        seeds: of the noise, one run each.
    """
    if np.ndim(train) != 2:
        raise AxisError(f"expected training responses (images, voxels), got {np.shape(train)}")
    mean, sd = np.mean(train, 0, dtype=np.float64), np.std(train, 0, dtype=np.float64)
    found = {}
    for seed in seeds:
        noise = np.random.default_rng(seed).normal(mean, sd, (n, len(mean)))
        found[seed] = evaluate(noise.astype(np.float32))
    return _runs("noise_input", "seed", found)


def bottleneck_curve(
    refit: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    train: np.ndarray,
    test: np.ndarray,
    components: Sequence[int | str] = BOTTLENECK,
    seed: int = 0,
) -> Runs:
    """Metrics as the brain input is squeezed through k principal components (BrainBits; Mayo et al., 2024).

    A curve that is flat says that the prior does the work: the model scores as well with one number of the brain as
    with all of it.

    Args:
        refit: called with train and test inputs of the same shapes as given but of rank k; trains a new model on the
            first, tests it on the second and returns the metrics.
        train, test: (images, voxels) brain inputs. Components and mean come from `train` alone.
        components: numbers k, and "full" for the inputs as they are. Those that reach min(images, voxels) of `train`
            are left out.
        seed: of the randomised decomposition that large inputs get.
    """
    if np.ndim(train) != 2 or np.ndim(test) != 2 or train.shape[1] != test.shape[1]:
        raise AxisError(f"expected inputs (images, voxels) of equal voxels, got {np.shape(train)} and {np.shape(test)}")
    numbers = [k for k in components if k != "full"]
    if not all(isinstance(k, int) and k > 0 for k in numbers):
        raise BrainDataError(f"expected numbers of components above 0 or 'full', got {list(components)}")
    numbers, found = [k for k in numbers if k < min(train.shape)], {}
    if numbers:
        try:
            from sklearn.decomposition import PCA
        except ImportError as error:
            raise need("scikit-learn", "a bottleneck curve") from error
        pca = PCA(max(numbers), random_state=seed).fit(train)
        axes, mean = pca.components_, pca.mean_
        for k in numbers:
            squeezed = [(x - mean) @ axes[:k].T @ axes[:k] + mean for x in (train, test)]
            found[k] = refit(*(x.astype(train.dtype, copy=False) for x in squeezed))
    if "full" in components:
        found["full"] = refit(train, test)
    return _runs("bottleneck", "components", found)


def block_shuffle(labels: Sequence, blocks: Sequence[int] | None = None, seed: int = 0) -> np.ndarray:
    """The control of a block design: labels change places among blocks, so that only time is left to tell them apart.

    A decoder whose accuracy survives reads the time of a trial rather than its class. It says nothing where every class
    has a single block, since the classes are then only renamed: no analysis separates time from class there.

    Args:
        labels: of the trials, in the order of time.
        blocks: of the trials; None takes every run of equal labels for one.
        seed: of the permutation.

    Returns:
        (n,) labels; all trials of a block have one.
    """
    labels = np.asarray(labels)
    if blocks is None:
        blocks = np.concatenate(([0], np.cumsum(labels[1:] != labels[:-1]))) if len(labels) else labels
    blocks = np.asarray(blocks)
    if blocks.shape != labels.shape or labels.ndim != 1:
        raise AxisError(f"expected one block for each of {len(labels)} labels, got shape {blocks.shape}")
    _, first, block = np.unique(blocks, return_index=True, return_inverse=True)
    mixed = np.flatnonzero(labels != labels[first][block])
    if len(mixed):
        raise BrainDataError(f"expected one label in a block, got several in block {blocks[mixed[0]]}")
    if len(first) == len(np.unique(labels)):
        _log.warning("each of %d classes has one block: shuffling blocks only renames them", len(first))
    return np.random.default_rng(seed).permutation(labels[first])[block]


def all_at_chance(scores: Sequence[Score]) -> str | None:
    """What a report must say when no score leaves its chance interval; None where one does, or none has an interval."""
    judged = [score for score in scores if score.at_chance is not None]
    if not judged or not all(score.at_chance for score in judged):
        return None
    names = ", ".join(dict.fromkeys(score.metric.name for score in judged))
    return (
        f"All {len(judged)} scores with a chance interval lie inside it ({names}): this run shows no information about "
        "the stimuli. Before changing the model, check that responses and images belong together: run the alignment "
        "test."
    )


def _runs(control: str, over: str, found: Mapping[int | str, Mapping[str, float]]) -> Runs:
    if not found:
        raise BrainDataError(f"expected one run or more of {control}, got none")
    names = list(next(iter(found.values())))
    for setting, values in found.items():
        if list(values) != names:
            raise BrainDataError(f"expected metrics {names} of every run, got {list(values)} at {over} {setting}")
    values = {name: tuple(float(run[name]) for run in found.values()) for name in names}
    return Runs(control, over, tuple(found), values)
