"""`Bridge` maps values from the scale of one normaliser to that of another.

    bridge = Bridge().fit(source, target)  # train pairs of the same images under two normalisers
    bridge.transform(predictions)          # (n, voxels), from the first scale to the second

The map is fitted on the train images alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import AxisError, IdError, LeakageError, NormalizationError
from .dataset import Pairs

__all__ = ["Bridge"]


class Bridge:
    """A linear map, for each voxel, that brings values from the scale of one normaliser to that of another.

        y = (x - mean_source) / std_source * std_target + mean_target

    The statistics are those of the train images under each normaliser. Predictions of a model that was trained on
    "div2000" can be compared so with those of a model trained on "train_z". Predictions belong to no session, so a
    bridge is also the way back from "session_z_train". Constant voxels become NaN.

    Attributes:
        source: Name of the normaliser of the values that come in.
        target: Name of the normaliser of the values that go out.
        fitted_ids: Ids of the images that the statistics cover.
        arrays: Statistics by name, (V,) each. None before `fit`.
    """

    def __init__(self):
        self.source = self.target = ""
        self.fitted_ids: frozenset[str] = frozenset()
        self.arrays: dict[str, np.ndarray] | None = None

    def fit(self, source: Pairs | None, target: Pairs) -> "Bridge":
        """Take the statistics of the same train images under both normalisers.

        Args:
            source: Train pairs under the first normaliser. None stands for mean 0 and standard deviation 1.
            target: Train pairs under the second normaliser. They must be averaged over repeats if the values to
                transform are, and single trials otherwise.

        Returns:
            This bridge.

        Raises:
            LeakageError: The pairs are not those of the train part.
            IdError: The pairs have different images or subjects.
            NormalizationError: There are fewer than two samples.
            AxisError: The responses are not (n, voxels).
        """
        for pairs in (source, target):
            if pairs is not None and pairs.part != "train":
                raise LeakageError(f"expected train pairs to fit a bridge on, got the part {pairs.part!r}")
        arrays: dict[str, np.ndarray] = dict(zip(("target_mean", "target_std"), _mean_std(target), strict=True))
        if source is None:
            arrays |= {"source_mean": np.zeros_like(arrays["target_mean"])}
            arrays |= {"source_std": np.ones_like(arrays["target_std"])}
        elif not np.array_equal(source.image_ids, target.image_ids) or source.subject.id != target.subject.id:
            raise IdError(f"expected the same images of one subject on both scales, got {source} and {target}")
        else:
            arrays |= dict(zip(("source_mean", "source_std"), _mean_std(source), strict=True))
        self.arrays, self.fitted_ids = arrays, frozenset(target.image_ids.tolist())
        self.source, self.target = "z" if source is None else source.normalizer, target.normalizer
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Bring values (n, voxels) from the source scale to the target scale, fp32."""
        return self._apply(values, "source", "target")

    def inverse_transform(self, values: np.ndarray) -> np.ndarray:
        """Bring values (n, voxels) from the target scale to the source scale, fp32."""
        return self._apply(values, "target", "source")

    def state_dict(self) -> dict[str, Any]:
        """Names and ids as JSON values, and the statistics under "arrays"."""
        if self.arrays is None:
            raise NormalizationError("expected a fitted bridge, got one before fit")
        ids = sorted(self.fitted_ids)
        return {"source": self.source, "target": self.target, "fitted_ids": ids, "arrays": dict(self.arrays)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Bridge":
        """The fitted bridge from its `state_dict`."""
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
    """Mean and standard deviation of each voxel over the samples, fp64 (V,) each. No variance gives NaN."""
    count, total, squares, shift = 0, 0.0, 0.0, None
    for _, batch in pairs.batches(512):
        if batch.ndim != 2:
            raise AxisError(f"expected responses (n, voxels) to bridge, got {batch.shape}")
        shift = batch[0].astype(np.float64) if shift is None else shift
        moved = batch - shift
        count, total, squares = count + len(batch), total + moved.sum(0), squares + np.square(moved).sum(0)
    if shift is None or count < 2:
        raise NormalizationError(f"expected 2 train samples or more to bridge with, got {count}")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return mean + shift, np.where(std > 0, std, np.nan)
