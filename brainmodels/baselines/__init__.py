"""What every model is printed beside: scikit-learn estimators with one score a voxel.

encoder = Ridge().fit(X_train, Y_train, groups=train.image_ids)
scores = encoder.score(X_test, Y_test)          # R^2, (V,)
to_nifti(scores, masker).to_filename("r2.nii.gz")
"""

from .banded import BandedRidge
from .maps import to_nifti
from .ridge import LinearDecoder, Ridge
from .simple import MeanMap, NearestNeighbor

__all__ = ["BandedRidge", "LinearDecoder", "MeanMap", "NearestNeighbor", "Ridge", "to_nifti"]
