"""What models and studies need from features of images or objects."""

from typing import Protocol

import numpy as np

from .ids import Ids

__all__ = ["FeatureSource"]


class FeatureSource(Protocol):
    """What models need from features. `FeatureCache` and `ArrayFeatures` both have it.

    Attributes:
        fingerprint: Text that identifies what made the features.
    """

    fingerprint: str

    def get(self, ids: Ids, what: str = "pooled") -> np.ndarray:
        """fp32 (len(ids), m, d) of "tokens" or (len(ids), p) of "pooled", in the order of `ids`; ids may repeat."""
        ...

    def __contains__(self, image_id: str) -> bool: ...

    def __len__(self) -> int: ...
