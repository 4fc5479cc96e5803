"""A linear world with normal weights and noise, in which the best possible estimates are known in closed form."""

import numpy as np

BIAS_VARIANCE = 0.09


class Gauss:
    """Images are uniform on the unit sphere, w ~ N(0, I), b ~ N(0, 0.09), and noise has a size for each voxel.

    Args:
        width: Number E of features.
        seed: Seed of all draws, which depend on their order.
    """

    def __init__(self, width: int, seed: int = 0):
        self.width, self.rng = width, np.random.default_rng(seed)

    def images(self, count: int) -> np.ndarray:
        """Features fp64 (count, E) of length 1."""
        x = self.rng.standard_normal((count, self.width))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def voxels(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (E, count), intercepts (count,) and standard deviations (count,) of the noise, U(0.3, 1.5)."""
        w = self.rng.standard_normal((self.width, count))
        b = BIAS_VARIANCE**0.5 * self.rng.standard_normal(count)
        return w, b, self.rng.uniform(0.3, 1.5, count)

    def respond(self, x: np.ndarray, w: np.ndarray, b: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Noisy responses (n, V) to images x (n, E)."""
        return x @ w + b + sigma * self.rng.standard_normal((len(x), len(b)))


def bayes(x: np.ndarray, y: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean of weights (E, V) and intercepts (V,) under the true prior and the true noise of each voxel."""
    z = np.column_stack([x, np.ones(len(x))])
    root = np.append(np.ones(x.shape[1]), BIAS_VARIANCE**0.5)  # (w, b) = root u with u ~ N(0, I)
    values, axes = np.linalg.eigh((z * root).T @ (z * root))
    along = axes.T @ ((z * root).T @ y) / (values[:, None] + sigma**2)
    found = root[:, None] * (axes @ along)
    return found[:-1], found[-1]
