"""Control experiments: the score that remains when information about the brain is taken away.

    runs = noise_input(evaluate, train_responses, n=100, seeds=(0, 1, 2))
    runs.mean("two_way[grid]")  # mean over the three seeds; near chance if the model needs its input

Each control calls your training or evaluation function with something removed and records the metrics it returns.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Values of several metrics in all runs of a control.

    Attributes:
        control: Name of the control.
        over: What differs between the runs, such as "seed" or "components".
        settings: The setting of each run.
        values: The values of each metric by its name, one for each run.
    """

    control: str
    over: str
    settings: tuple[int | str, ...]
    values: Mapping[str, tuple[float, ...]]

    def mean(self, name: str) -> float:
        """Mean of one metric over the runs."""
        return float(np.mean(self.values[name]))

    def to_json(self) -> dict:
        """All fields as JSON types."""
        values = {name: list(run) for name, run in self.values.items()}
        return {"control": self.control, "over": self.over, "settings": list(self.settings), "values": values}


def shuffled_pairing(
    refit: Callable[[np.ndarray], Mapping[str, float]], n: int, seeds: Sequence[int] = (0, 1, 2)
) -> Runs:
    """Train on wrong pairs, test on right ones. What is left comes from what all stimuli have in common.

    Args:
        refit: Function that is called with a permutation of 0 .. n - 1. It trains a new model on stimulus i with
            response permutation[i], tests it on correct pairs and returns the metrics by name.
        n: Number of training pairs.
        seeds: Seeds of the permutations, one run for each.

    Raises:
        BrainDataError: The runs return different metrics, or there are no runs.
    """
    orders = {seed: np.random.default_rng(seed).permutation(n) for seed in seeds}
    return _runs("shuffled_pairing", "seed", {seed: refit(order) for seed, order in orders.items()})


def prior_only(evaluate: Callable[[int], Mapping[str, float]], seeds: Sequence[int] = (0, 1, 2)) -> Runs:
    """Metrics of samples that the generator draws without brain input.

    Args:
        evaluate: Function that is called with a seed. It samples from the prior alone and returns the metrics by name.
        seeds: Seeds of the samples, one run for each.

    Raises:
        BrainDataError: The runs return different metrics, or there are no runs.
    """
    return _runs("prior_only", "seed", {seed: evaluate(seed) for seed in seeds})


def noise_input(
    evaluate: Callable[[np.ndarray], Mapping[str, float]],
    train: np.ndarray,
    n: int,
    seeds: Sequence[int] = (0, 1, 2),
) -> Runs:
    """Give a trained model noise instead of responses: Gaussian, with the mean and deviation of each training voxel.

    Args:
        evaluate: Function that is called with noise (n, voxels) fp32. It decodes the noise as if it were the test
            responses and returns the metrics by name.
        train: (images, voxels) Training responses.
        n: Number of test images.
        seeds: Seeds of the noise, one run for each.

    Raises:
        AxisError: `train` does not have two axes.
        BrainDataError: The runs return different metrics, or there are no runs.
    """
    if np.ndim(train) != 2:
        raise AxisError(f"expected training responses (images, voxels), got {np.shape(train)}")
    mean, sd = np.mean(train, 0, dtype=np.float64), np.std(train, 0, dtype=np.float64)
    found = {}
    for seed in seeds:
        noise = np.random.default_rng(seed).normal(mean, sd, (n, np.shape(train)[1]))
        found[seed] = evaluate(noise.astype(np.float32))
    return _runs("noise_input", "seed", found)


def bottleneck_curve(
    refit: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    train: np.ndarray,
    test: np.ndarray,
    components: Sequence[int | str] = BOTTLENECK,
    seed: int = 0,
) -> Runs:
    """Metrics with the brain input squeezed through k principal components (BrainBits; Mayo et al., 2024).

    A flat curve says that the prior does the work: the model scores as well with one number from the brain as with all.

    Args:
        refit: Function that is called with train and test inputs of the given shapes, but of rank k. It trains a new
            model on the first, tests it on the second and returns the metrics by name.
        train, test: (images, voxels) Brain inputs. Components and mean come from `train` alone.
        components: Numbers k of components; "full" passes the inputs unchanged. A number that reaches min(images,
            voxels) of `train` is left out.
        seed: Seed of the randomised decomposition, which large inputs get.

    Raises:
        AxisError: The inputs do not have two axes or differ in their voxels.
        BrainDataError: A number of components is not positive, or the runs return different metrics.
        ImportError: scikit-learn is not installed.
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
        pca: Any = PCA(max(numbers), random_state=seed).fit(train)
        axes, mean = pca.components_, pca.mean_
        for k in numbers:
            squeezed = [(x - mean) @ axes[:k].T @ axes[:k] + mean for x in (train, test)]
            found[k] = refit(*(x.astype(train.dtype, copy=False) for x in squeezed))
    if "full" in components:
        found["full"] = refit(train, test)
    return _runs("bottleneck", "components", found)


def block_shuffle(
    labels: Sequence | np.ndarray, blocks: Sequence[int] | np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Labels of a block design, moved between whole blocks, so that only time is left to tell the trials apart.

    A decoder whose accuracy survives this control reads the time of a trial, not its class. The control says nothing if
    every class has a single block, because classes are then only renamed. No analysis can separate time from class
    there, and a warning is logged.

    Args:
        labels: (n,) Labels of the trials, in the order of time.
        blocks: (n,) Blocks of the trials. None makes a block of each run of equal labels.
        seed: Seed of the permutation.

    Returns:
        (n,) labels; all trials of a block have the same one.

    Raises:
        AxisError: `blocks` and `labels` differ in shape.
        BrainDataError: A block has more than one label.
    """
    names = np.asarray(labels)
    if blocks is None:
        blocks = np.concatenate(([0], np.cumsum(names[1:] != names[:-1]))) if len(names) else names
    numbers = np.asarray(blocks)
    if numbers.shape != names.shape or names.ndim != 1:
        raise AxisError(f"expected one block for each of {len(names)} labels, got shape {numbers.shape}")
    _, first, block = np.unique(numbers, return_index=True, return_inverse=True)
    mixed = np.flatnonzero(names != names[first][block])
    if len(mixed):
        raise BrainDataError(f"expected one label in a block, got several in block {numbers[mixed[0]]}")
    if len(first) == len(np.unique(names)):
        _log.warning("each of %d classes has one block: shuffling blocks only renames them", len(first))
    return np.random.default_rng(seed).permutation(names[first])[block]


def all_at_chance(scores: Sequence[Score]) -> str | None:
    """Text that a report must print if every score lies within its chance interval.

    Returns:
        The text, or None if a score leaves its interval or no score has one.
    """
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
