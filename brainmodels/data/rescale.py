"""The explicit way from the scale of one normaliser to that of another."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import AxisError, IdError, LeakageError, NormalizationError
from .dataset import Pairs

__all__ = ["Bridge"]


class Bridge:
    """Responses of one normaliser in the space of another, by statistics of the train images per voxel.

    y = (x - mean_source) / std_source * std_target + mean_target

    A model in the space of "div2000" reaches one in that of "train_z" so, and predictions without sessions leave
    "session_z_train". Constant voxels become NaN.

    Attributes:
        source, target: names of the normalisers.
        fitted_ids: images of the statistics.
    """

    def __init__(self):
        self.source = self.target = ""
        self.fitted_ids: frozenset[str] = frozenset()
        self.arrays: dict[str, np.ndarray] | None = None

    def fit(self, source: Pairs | None, target: Pairs) -> "Bridge":
        """Take the statistics of the same train images in both spaces.

        Args:
            source: train pairs under the first normaliser; None for values with mean 0 and standard deviation 1.
            target: train pairs under the second; averaged over repeats or not as the values to come are.

        Raises:
            LeakageError: pairs are not those of training.
            IdError: they are of different images.
        """
        for pairs in (source, target):
            if pairs is not None and pairs.part != "train":
                raise LeakageError(f"expected train pairs to fit a bridge on, got the part {pairs.part!r}")
        arrays = dict(zip(("target_mean", "target_std"), _mean_std(target), strict=True))
        if source is None:
            arrays |= {"source_mean": np.zeros_like(arrays["target_mean"])}
            arrays |= {"source_std": np.ones_like(arrays["target_std"])}
        elif not np.array_equal(source.image_ids, target.image_ids) or source.subject.id != target.subject.id:
            raise IdError(f"expected the same images of one subject in both spaces, got {source} and {target}")
        else:
            arrays |= dict(zip(("source_mean", "source_std"), _mean_std(source), strict=True))
        self.arrays, self.fitted_ids = arrays, frozenset(target.image_ids.tolist())
        self.source, self.target = "z" if source is None else source.normalizer, target.normalizer
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Values (n, voxels) of the source space in the target space, fp32."""
        return self._apply(values, "source", "target")

    def inverse_transform(self, values: np.ndarray) -> np.ndarray:
        """Values (n, voxels) of the target space in the source space, fp32."""
        return self._apply(values, "target", "source")

    def state_dict(self) -> dict[str, Any]:
        """Names and ids (JSON) and the statistics under "arrays"."""
        if self.arrays is None:
            raise NormalizationError("expected a fitted bridge, got one before fit")
        ids = sorted(self.fitted_ids)
        return {"source": self.source, "target": self.target, "fitted_ids": ids, "arrays": dict(self.arrays)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Bridge":
        """The bridge that `state_dict` described."""
        bridge = cls()
        bridge.source, bridge.target = state["source"], state["target"]
        bridge.fitted_ids = frozenset(state["fitted_ids"])
        bridge.arrays = {name: np.asarray(array) for name, array in state["arrays"].items()}
        return bridge

    def _apply(self, values: np.ndarray, start: str, end: str) -> np.ndarray:
        arrays = self.state_dict()["arrays"]
        if values.ndim != 2 or values.shape[1] != len(arrays["source_mean"]):
            raise AxisError(f"expected values (n, {len(arrays['source_mean'])} voxels), got {values.shape}")
        z = (values - arrays[f"{start}_mean"]) / arrays[f"{start}_std"]
        return (z * arrays[f"{end}_std"] + arrays[f"{end}_mean"]).astype(np.float32)


def _mean_std(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Per voxel over the samples, fp64; NaN where there is no variance."""
    count, total, squares, shift = 0, 0.0, 0.0, None
    for _, batch in pairs.batches(512):
        if batch.ndim != 2:
            raise AxisError(f"expected responses (n, voxels) to bridge, got {batch.shape}")
        shift = batch[0].astype(np.float64) if shift is None else shift
        moved = batch - shift
        count, total, squares = count + len(batch), total + moved.sum(0), squares + np.square(moved).sum(0)
    if count < 2:
        raise NormalizationError(f"expected 2 train samples or more to bridge with, got {count}")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return mean + shift, np.where(std > 0, std, np.nan)
