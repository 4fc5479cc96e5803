"""Baselines that every model is compared with: scikit-learn estimators with one score for each voxel.

    encoder = Ridge().fit(X_train, Y_train, groups=train.image_ids)
    scores = encoder.score(X_test, Y_test)          # R^2, (V,)
    to_nifti(scores, masker).to_filename("r2.nii.gz")

| estimator | predicts |
|---|---|
| `Ridge` | responses, with a penalty for each voxel; our solver |
| `ReducedRankRidge` | responses, confined to a few patterns over voxels |
| `PriorRidge` | responses, with weights that vary as those of other voxels do, of this subject or of others |
| `ReleasedRidge` | responses, as in the code of BraInCoRL; for its published tables only |
| `BandedRidge` | responses, with a penalty for each feature space and voxel; himalaya's solver |
| `LinearDecoder` | features from responses, with a penalty for each feature |
| `NearestNeighbor` | the response to the most similar train image |
| `MeanMap` | the mean train response |
| `GaussianInversion` | features from responses, by Bayes' rule from a linear encoder; no fit to responses |
| `SensorRidge` | classes from trials of EEG |

`VoxelModel` keeps the linear encoder of a subject's voxels, and `WeightPrior` the distribution of such encoders.
`PriorRidge` and `GaussianInversion` need the noise of each voxel, which `heldout_variance` estimates.
"""

from .banded import BandedRidge
from .courses import CourseFeatures, SignalFilters
from .inversion import GaussianInversion
from .maps import to_nifti
from .ridge import LinearDecoder, Ridge
from .sensors import SensorFeatures, SensorRidge
from .shrinkage import PriorRidge, ReducedRankRidge, ReleasedRidge
from .simple import MeanMap, NearestNeighbor
from .voxels import VoxelModel, WeightPrior, heldout_residuals, heldout_variance

__all__ = [
    "BandedRidge",
    "CourseFeatures",
    "GaussianInversion",
    "LinearDecoder",
    "MeanMap",
    "NearestNeighbor",
    "PriorRidge",
    "ReducedRankRidge",
    "ReleasedRidge",
    "Ridge",
    "SensorFeatures",
    "SensorRidge",
    "SignalFilters",
    "VoxelModel",
    "WeightPrior",
    "heldout_residuals",
    "heldout_variance",
    "to_nifti",
]
