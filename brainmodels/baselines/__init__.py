"""Baselines that every model is compared with: scikit-learn estimators with one score for each voxel.

    encoder = Ridge().fit(X_train, Y_train, groups=train.image_ids)
    scores = encoder.score(X_test, Y_test)          # R^2, (V,)
    to_nifti(scores, masker).to_filename("r2.nii.gz")

| estimator | predicts |
|---|---|
| `Ridge` | responses, with a penalty for each voxel; our solver |
| `ReducedRankRidge` | responses, confined to a few patterns over voxels |
| `PriorRidge` | responses, with weights that vary as those of all voxels do |
| `BandedRidge` | responses, with a penalty for each feature space and voxel; himalaya's solver |
| `LinearDecoder` | features from responses, with a penalty for each feature |
| `NearestNeighbor` | the response to the most similar train image |
| `MeanMap` | the mean train response |
"""

from .banded import BandedRidge
from .maps import to_nifti
from .ridge import LinearDecoder, Ridge
from .shrinkage import PriorRidge, ReducedRankRidge
from .simple import MeanMap, NearestNeighbor

__all__ = [
    "BandedRidge",
    "LinearDecoder",
    "MeanMap",
    "NearestNeighbor",
    "PriorRidge",
    "ReducedRankRidge",
    "Ridge",
    "to_nifti",
]
