"""`ExpressionSpace`: the coordinates in which networks see expressions, and the part of them that moves the lips.

    space = ExpressionSpace.fit(exp, jaw, head)  # of training clips
    x = space.whiten(clip.exp, clip.jaw)  # (T, E + J)
    hidden = space.hide(x, fps=25)  # the same emotion, without the syllables
    exp, jaw = space.unwhiten(hidden)

A renderer that sees lip shapes in the expression copies them from there, and then ignores new audio. `hide` smooths the
part of the expression that moves the lips and leaves the rest alone. A smile stays, because it is slow.

Coordinates are `w = C^-1/2 (exp - mean)` with C the covariance of the training frames, followed by the standardized jaw
numbers. The lip part of w is its projection on the leading eigenvectors of `C^1/2 G C^1/2`, where G is the Gram matrix
of the expression basis over the lips. On training frames, this part and the rest are uncorrelated. Jaw numbers always
count as lip part.
"""

from collections.abc import Mapping

import numpy as np

from ..errors import AxisError, BrainDataError
from .model import HeadModel

__all__ = ["ExpressionSpace"]

LIP_SHARE = 0.99
"""Share of the variance of the lips that the lip part holds."""
FLOOR = 1e-4
"""Smallest eigenvalue of the covariance, as a share of the mean eigenvalue."""
SHORT = 2.0
"""Clips shorter than this many seconds are smoothed to their mean."""

_KEYS = ("mean", "covariance", "jaw_mean", "jaw_scale")


class ExpressionSpace:
    """Whitened coordinates of expression and jaw. Use `fit` or `from_state` to make one.

    Attributes:
        mean: (E,) Mean expression.
        covariance: (E, E) Covariance of expressions, with its eigenvalues floored.
        jaw_mean, jaw_scale: (J,) Mean and standard deviation of the jaw numbers.
        basis: (E, k) Orthonormal directions of the lip part. Empty without a head.
        width: E + J.
    """

    def __init__(
        self,
        mean: np.ndarray,
        covariance: np.ndarray,
        jaw_mean: np.ndarray,
        jaw_scale: np.ndarray,
        head: HeadModel | None,
    ) -> None:
        self.mean, self.covariance, self.jaw_mean, self.jaw_scale = (
            np.asarray(array, np.float64) for array in (mean, covariance, jaw_mean, jaw_scale)
        )
        self.n_exp, self.n_jaw = len(self.mean), len(self.jaw_mean)
        self.width = self.n_exp + self.n_jaw
        if self.covariance.shape != (self.n_exp, self.n_exp) or self.jaw_scale.shape != (self.n_jaw,):
            raise AxisError(
                f"expected a covariance ({self.n_exp}, {self.n_exp}) and jaw scales ({self.n_jaw},), got "
                f"{self.covariance.shape} and {self.jaw_scale.shape}"
            )
        values, vectors = np.linalg.eigh(self.covariance)
        if not values[0] > 0:
            raise BrainDataError(f"expected a positive definite covariance, got the eigenvalue {values[0]:.3g}")
        self._root = (vectors * np.sqrt(values)) @ vectors.T
        self._inverse_root = (vectors / np.sqrt(values)) @ vectors.T
        self.has_head = head is not None
        self.basis = np.zeros((self.n_exp, 0)) if head is None else self._lips(head)

    @classmethod
    def fit(cls, exp: np.ndarray, jaw: np.ndarray, head: HeadModel | None) -> "ExpressionSpace":
        """Coordinates of training frames.

        Args:
            exp: (n, E) Expressions of all training frames, two frames at least.
            jaw: (n, J) Their jaw numbers. J may be 0.
            head: Head that the coefficients belong to. Without one, only the jaw numbers count as lip part.

        Raises:
            AxisError: The arrays differ in length, or the head has other widths.
            BrainDataError: Values are not finite, or the expressions do not vary.
        """
        exp, jaw = np.asarray(exp, np.float64), np.asarray(jaw, np.float64)
        if exp.ndim != 2 or jaw.ndim != 2 or len(exp) != len(jaw) or len(exp) < 2:
            raise AxisError(f"expected exp (n, E) and jaw (n, J) of 2 frames or more, got {exp.shape} and {jaw.shape}")
        if not (np.isfinite(exp).all() and np.isfinite(jaw).all()):
            raise BrainDataError("expected finite expressions and jaw numbers, got NaN or infinity")
        mean = exp.mean(0)
        values, vectors = np.linalg.eigh((exp - mean).T @ (exp - mean) / len(exp))
        if not values.mean() > 0:
            raise BrainDataError(f"expected expressions that vary, got {len(exp)} equal frames")
        values = np.maximum(values, FLOOR * values.mean())
        variance = jaw.var(0)
        usual = variance.mean() if variance.any() else 1.0
        scale = np.sqrt(np.maximum(variance, FLOOR * usual))
        return cls(mean, (vectors * values) @ vectors.T, jaw.mean(0), scale, head)

    def whiten(self, exp: np.ndarray, jaw: np.ndarray) -> np.ndarray:
        """Coordinates (T, E + J) fp32 of expressions (T, E) and jaw numbers (T, J).

        Raises:
            AxisError: An array has another width, or the lengths differ.
        """
        exp, jaw = np.asarray(exp, np.float64), np.asarray(jaw, np.float64)
        if exp.shape[1:] != (self.n_exp,) or jaw.shape != (len(exp), self.n_jaw):
            raise AxisError(
                f"expected exp (T, {self.n_exp}) and jaw (T, {self.n_jaw}), got {exp.shape} and {jaw.shape}"
            )
        white = (exp - self.mean) @ self._inverse_root
        return np.concatenate([white, (jaw - self.jaw_mean) / self.jaw_scale], 1).astype(np.float32)

    def unwhiten(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expressions (T, E) and jaw numbers (T, J), fp32, of coordinates (T, E + J)."""
        x = self._checked(x)
        exp = x[:, : self.n_exp] @ self._root + self.mean
        return exp.astype(np.float32), (x[:, self.n_exp :] * self.jaw_scale + self.jaw_mean).astype(np.float32)

    def mouth(self, x: np.ndarray) -> np.ndarray:
        """The part of coordinates (T, E + J) that moves the lips, with the jaw, fp32. The rest is `x - mouth(x)`."""
        return self._mouth(self._checked(x)).astype(np.float32)

    def hide(self, x: np.ndarray, fps: float) -> np.ndarray:
        """Coordinates whose lip part is smoothed, so that it holds the emotion and no syllables.

        Call it on a whole clip. The lip part becomes its mean if the clip is shorter than two seconds. Otherwise a Hann
        window of one second smooths it. At the ends, the window is cut and its weights are scaled to sum to one.

        Args:
            x: (T, E + J) Coordinates.
            fps: Frames per second.

        Returns:
            (T, E + J) fp32.

        Raises:
            AxisError: The coordinates have another width.
            BrainDataError: The space has no head, so it does not know which part moves the lips.
        """
        if not self.has_head:
            raise BrainDataError(
                "expected a head that says which coefficients move the lips, got none; give its head when the space is "
                "made, or hide the whole expression"
            )
        if not fps > 0:
            raise BrainDataError(f"expected a positive frame rate, got {fps}")
        x = self._checked(x)
        mouth = self._mouth(x)
        return (x - mouth + _smooth(mouth, fps)).astype(np.float32)

    def hide_jaw(self, x: np.ndarray) -> np.ndarray:
        """Coordinates whose jaw numbers are zero, which is the mean jaw. Lip shapes stay. This is a control."""
        x = self._checked(x)
        x[:, self.n_exp :] = 0
        return x.astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `from_state` needs. They hold statistics of the training frames and nothing of the head."""
        return {key: getattr(self, key).copy() for key in _KEYS}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], head: HeadModel | None) -> "ExpressionSpace":
        """The space that gave this state. The lip part is computed again from the head.

        Raises:
            BrainDataError: An array is missing.
        """
        missing = [key for key in _KEYS if key not in state]
        if missing:
            raise BrainDataError(f"expected the arrays {', '.join(_KEYS)}, got none named {', '.join(missing)}")
        return cls(state["mean"], state["covariance"], state["jaw_mean"], state["jaw_scale"], head)

    def _lips(self, head: HeadModel) -> np.ndarray:
        if (head.n_exp, head.n_jaw) != (self.n_exp, self.n_jaw):
            raise AxisError(
                f"expected a head with {self.n_exp} expression and {self.n_jaw} jaw numbers, got {head.name} with "
                f"{head.n_exp} and {head.n_jaw}"
            )
        lips = head.exp_basis()[head.mouth_vertices].detach().cpu().numpy().astype(np.float64)
        lips = lips.reshape(-1, self.n_exp) @ self._root
        values, vectors = np.linalg.eigh(lips.T @ lips)
        values, vectors = values[::-1].clip(0), vectors[:, ::-1]
        if not values.sum() > 0:
            raise BrainDataError(f"expected expressions that move the lips, got none in the head {head.name}")
        held = np.cumsum(values) / values.sum()
        return vectors[:, : int(np.searchsorted(held, LIP_SHARE)) + 1]

    def _mouth(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[:, : self.n_exp] @ self.basis @ self.basis.T, x[:, self.n_exp :]], 1)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        """A copy in fp64."""
        x = np.array(x, np.float64)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise AxisError(f"expected coordinates (T, {self.width}), got {x.shape}")
        return x


def _smooth(series: np.ndarray, fps: float) -> np.ndarray:
    """Each column at the time scale of emotions, (T, n)."""
    frames = len(series)
    if frames / fps < SHORT:
        return np.broadcast_to(series.mean(0), series.shape)
    reach = int(np.ceil((fps + 1) / 2)) - 1
    window = np.cos(np.pi * np.arange(-reach, reach + 1) / (fps + 1)) ** 2
    sums = np.stack([np.convolve(column, window, "full")[reach : reach + frames] for column in series.T], 1)
    weight = np.convolve(np.ones(frames), window, "full")[reach : reach + frames]
    return sums / weight[:, None]
