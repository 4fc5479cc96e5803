"""Features from responses by Bayes' rule: the closed form that inverts a linear encoder, without any training.

    inversion = GaussianInversion().fit(bank)  # embeddings of images without responses, (m, E)
    inversion.decode(model, Y_test, image_ids=test.image_ids)  # (n, E)

In a linear world nothing decodes better, so a trained decoder has to beat it on real responses.
"""

import logging
from typing import Self

import numpy as np
from sklearn.covariance import ledoit_wolf

from ..data.ids import Ids
from ..errors import AxisError, BrainDataError
from ._base import Samples, matrix
from .voxels import VoxelModel

__all__ = ["GaussianInversion"]

_log = logging.getLogger(__name__)
_LEAST_OWN = 0.1  # share of a voxel's noise variance that shared components leave to it at least


class GaussianInversion:
    """Posterior mean of an image's embedding x, given its responses y = W x + b + noise and a normal prior over images.

        e = mu + (S^-1 + W' R^-1 W)^-1 W' R^-1 (y - b - W mu),    x ~ N(mu, S),  noise ~ N(0, R)

    | noise | R |
    |---|---|
    | "residual" (default) | diagonal, the model's `residual_var_` |
    | "constant" | the mean of `residual_var_` for all voxels |
    | k, an integer | the diagonal of "residual", with k components that voxels share, from held-out residuals |

    All is computed in fp64. The embeddings have no unit length.

    Args:
        noise: One of the three.

    Attributes:
        mean_: (E,) Mean of the bank.
        covariance_: (E, E) Covariance of the bank, shrunk towards a multiple of the identity (Ledoit & Wolf, 2004).

    Raises:
        BrainDataError: Another kind of noise.
    """

    def __init__(self, noise: str | int = "residual"):
        known = (
            noise >= 1 if isinstance(noise, int) and not isinstance(noise, bool) else noise in ("residual", "constant")
        )
        if not known:
            raise BrainDataError(f"expected noise 'residual', 'constant' or a number of components, got {noise!r}")
        self.noise = noise

    def fit(self, bank: Samples) -> Self:
        """Learn the prior from the embeddings of images; no responses are needed.

        Args:
            bank: (m, E) Embeddings of two or more images, none of them a test image.

        Raises:
            AxisError: Another number of axes.
            BrainDataError: Values that are not finite, or images that do not vary.
        """
        bank = matrix("features", bank).astype(np.float64)
        if not (bank != bank[0]).any():
            raise BrainDataError(f"expected a bank of images whose features vary, got {len(bank)} equal ones")
        self.mean_, self.covariance_ = bank.mean(0), ledoit_wolf(bank)[0]
        return self

    def decode(
        self,
        model: VoxelModel,
        Y: Samples,
        return_covariance: bool = False,
        residuals: np.ndarray | None = None,
        image_ids: Ids | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Embeddings of the images that responses are of.

        A voxel that is not finite for some image is left out for all of them. A warning counts such voxels.

        Args:
            model: Encoder of the voxels, with `residual_var_`.
            Y: (n, V) Responses.
            return_covariance: Whether to return the posterior covariance too. It is the same for all images.
            residuals: (m, V) Residuals of context images, none from a fit that saw the image, for shared noise. See
                `heldout_residuals`.
            image_ids: (n,) Ids of the images. If given, none may be in the model's context.

        Returns:
            fp64 (n, E), and with `return_covariance` also (E, E).

        Raises:
            AxisError: Shapes do not match.
            BrainDataError: Not fitted, no voxel is finite, or the noise is not known.
            LeakageError: An image is in the context of the model.
        """
        if not hasattr(self, "mean_"):
            raise BrainDataError("expected a fitted GaussianInversion, got one that was not; call fit(bank)")
        if image_ids is not None:
            model.check_unseen(image_ids)
        Y, W, kept = self._checked(model, matrix("responses", Y, finite=False))
        variance, shared = self._noise(model, residuals)
        weighted = _precision_times(W, variance[kept], shared[kept])
        values, axes = np.linalg.eigh(self.covariance_)
        root = axes * np.sqrt(np.maximum(values, 0))  # S = root root', so that S need not be inverted
        inner = np.eye(len(root)) + root.T @ (W.T @ weighted) @ root
        surprise = Y - model.intercept_[kept] - W @ self.mean_
        embeddings = self.mean_ + np.linalg.solve(inner, root.T @ (surprise @ weighted).T).T @ root.T
        if not return_covariance:
            return embeddings
        return embeddings, root @ np.linalg.solve(inner, root.T)

    def _checked(self, model: VoxelModel, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Responses (n, V kept) and weights (V kept, E) in fp64, and which voxels (V,) are finite for all images."""
        width, voxels = model.coef_.shape
        if width != len(self.mean_):
            raise AxisError(f"expected an encoder of {len(self.mean_)} features, as the bank has, got one of {width}")
        if Y.shape[1] != voxels:
            raise AxisError(f"expected responses of {voxels} voxels, as the encoder has, got {Y.shape[1]}")
        kept = np.asarray(np.isfinite(Y).all(0))
        if not kept.any():
            raise BrainDataError(f"expected voxels that are finite for all {len(Y)} images, got none of {voxels}")
        if not kept.all():
            _log.warning("%d of %d voxels are not finite for all images and are left out", (~kept).sum(), voxels)
        return Y[:, kept].astype(np.float64), model.coef_.T[kept].astype(np.float64), kept

    def _noise(self, model: VoxelModel, residuals: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Variance (V,) of each voxel's own noise, and loadings (V, k) of the components that voxels share."""
        if model.residual_var_ is None:
            raise BrainDataError(
                "expected an encoder with residual_var_ from held-out images (heldout_variance), got None; the errors "
                "on the context itself are refused, because they vanish where images are fewer than features"
            )
        variance = model.residual_var_.astype(np.float64)
        if not (variance > 0).all():
            voxel = int(np.argmin(variance))
            raise BrainDataError(f"expected residual variances above 0, got {variance[voxel]} in voxel {voxel}")
        if not isinstance(self.noise, int):
            if residuals is not None:
                raise BrainDataError(f"expected residuals only for shared noise, got them with noise={self.noise!r}")
            variance = variance if self.noise == "residual" else np.full_like(variance, variance.mean())
            return variance, np.zeros((len(variance), 0))
        if residuals is None:
            raise BrainDataError(f"expected residuals of held-out images for {self.noise} shared components, got None")
        residuals = matrix("responses", residuals).astype(np.float64)
        if residuals.shape[1] != len(variance):
            raise AxisError(f"expected residuals of {len(variance)} voxels, got {residuals.shape[1]}")
        return _shared_noise(residuals, variance, self.noise)


def _shared_noise(residuals: np.ndarray, variance: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Own variances (V,) and loadings (V, count), whose sum of both has the diagonal `variance`.

    The loadings are principal components of the residuals in units of their standard deviation. Noise that is not
    shared adds to their variance. So the mean variance of the remaining components is subtracted, as in probabilistic
    PCA (Tipping & Bishop, 1999), but over the directions that the residuals span.
    """
    most = min(residuals.shape)
    if count >= most:
        raise BrainDataError(
            f"expected fewer than {most} shared components for residuals {residuals.shape}, got {count}"
        )
    scale = np.sqrt(variance)
    _, sizes, axes = np.linalg.svd(residuals / scale, full_matrices=False)
    powers = np.square(sizes) / len(residuals)
    excess = np.sqrt(np.maximum(powers[:count] - powers[count:].mean(), 0))
    loadings = axes[:count].T * excess
    total = np.square(loadings).sum(1, keepdims=True)
    loadings *= np.sqrt(np.minimum(1, (1 - _LEAST_OWN) / np.maximum(total, 1e-300)))
    return variance * (1 - np.square(loadings).sum(1)), scale[:, None] * loadings


def _precision_times(W: np.ndarray, variance: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """(diag(variance) + shared shared')^-1 W by Woodbury's identity, (V, E)."""
    weighted = W / variance[:, None]
    if not shared.shape[1]:
        return weighted
    scaled = shared / variance[:, None]
    inner = np.eye(shared.shape[1]) + shared.T @ scaled
    return weighted - scaled @ np.linalg.solve(inner, scaled.T @ W)
