"""Linear regressors from the responses of one subject to the blocks of a generator.

    regressors = Regressors.fit(X, latents, Penalties())
    latents = regressors.predict(X_test)

One fit of all blocks side by side equals a fit for each block, and shares what is decomposed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...baselines import LinearDecoder
from ...errors import AxisError, BrainDataError
from .generator import BLOCKS, Latents

__all__ = ["ALPHAS", "Penalties", "Regressors"]

ALPHAS = tuple(10.0**power for power in range(-2, 8))
_FITTED = ("alphas_", "cv_scores_", "X_mean_", "Y_mean_", "Y_std_", "heldout_mean_", "heldout_std_")
_WEIGHTS = ("_coef", "dual_coef_", "X_fit_")


@dataclass(frozen=True)
class Penalties:
    """Penalties of the four blocks. None chooses one of `ALPHAS` for each column by cross-validation.

    Attributes:
        z_image, z_text, c_image, c_text: Penalty of the block, above 0.
    """

    z_image: float | None = None
    z_text: float | None = None
    c_image: float | None = None
    c_text: float | None = None

    def __post_init__(self):
        for name in BLOCKS:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BrainDataError(f"expected a penalty of {name} above 0, or None, got {value}")


class Regressors:
    """Ridge from standardised responses (n, V) to blocks.

    Attributes:
        mean, std: (V,) Of the responses that were fitted, averaged over repeats; std with n - 1.
        shapes: Shape of each block.
        fits: (names of blocks, decoder of their columns side by side).
        calibration: As in `LinearDecoder`.
        moves: Median distance of the fitted images from their mean, by block.
    """

    def __init__(
        self,
        mean: np.ndarray,
        std: np.ndarray,
        shapes: Mapping[str, tuple[int, ...]],
        fits: list[tuple[list[str], LinearDecoder]],
        calibration: str,
        moves: Mapping[str, float],
    ):
        self.mean, self.std, self.shapes, self.fits = mean, std, dict(shapes), fits
        self.calibration, self.moves = calibration, dict(moves)

    @classmethod
    def fit(
        cls, X: np.ndarray, latents: Latents, penalties: Penalties, calibration: str = "train_cv", cv: int = 5
    ) -> "Regressors":
        """Fit all blocks that are there.

        Args:
            X: (n, V) Responses, one row for each image.
            latents: Blocks of the same images.
            penalties: Penalty of each block.
            calibration: As in `LinearDecoder`.
            cv: Number of folds.

        Raises:
            AxisError: The numbers of rows differ, or there are too few.
        """
        if len(X) != len(latents) or len(X) < cv:
            raise AxisError(
                f"expected {cv} or more rows of responses and as many of blocks, got {len(X)}, {len(latents)}"
            )
        mean = X.mean(0, dtype=np.float64)
        std = X.std(0, dtype=np.float64, ddof=1)
        std = np.where(std > 1e-12, std, 1.0)
        blocks = latents.blocks()
        shapes = {name: block.shape[1:] for name, block in blocks.items()}
        moves = {name: _median_move(block) for name, block in blocks.items()}
        model = cls(mean.astype(np.float32), std.astype(np.float32), shapes, [], calibration, moves)
        chosen = [name for name in blocks if getattr(penalties, name) is None]
        groups = [chosen] if chosen else []
        groups += [[name] for name in blocks if name not in chosen]
        for names in groups:
            penalty = getattr(penalties, names[0])
            alphas = ALPHAS if penalty is None else (penalty,)
            Y = np.concatenate([blocks[name].reshape(len(X), -1) for name in names], 1)
            model.fits.append((names, LinearDecoder(alphas, cv, calibration=calibration).fit(model._scaled(X), Y)))
        return model

    def predict(self, X: np.ndarray, calibrated: bool = True) -> Latents:
        """Blocks of responses (n, V).

        Args:
            X: Responses in the units of the fit.
            calibrated: Give predictions the spread of the blocks in training, by `calibration`. Without it they have
                the least squared error.

        Raises:
            BrainDataError: One row with calibration "test_batch", which needs the spread of several.
        """
        found: dict[str, Any] = {}
        for names, decoder in self.fits:
            how = decoder.calibration
            decoder.calibration = how if calibrated else "none"
            try:
                values = decoder.predict(self._scaled(X))
            finally:
                decoder.calibration = how
            for name in names:
                shape = self.shapes[name]
                part, values = np.split(values, [int(np.prod(shape))], 1)
                found[name] = np.ascontiguousarray(part.reshape(len(X), *shape))
        return Latents(**found)

    def affine(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weights (V, columns) and bias (columns,) of a block for responses in the units of the fit, calibrated."""
        for names, decoder in self.fits:
            if name in names:
                start = sum(int(np.prod(self.shapes[x])) for x in names[: names.index(name)])
                columns = slice(start, start + int(np.prod(self.shapes[name])))
                weights, bias = decoder.affine()
                weights, bias = weights[:, columns] / self.std[:, None], bias[columns]
                return weights, bias - self.mean @ weights
        raise BrainDataError(f"expected a block of {', '.join(self.shapes)}, got {name!r}")

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean) / self.std

    # files

    def arrays(self, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The regressors as tensors, whose names begin with `prefix`, and as JSON."""
        out = {f"{prefix}mean": torch.from_numpy(self.mean), f"{prefix}std": torch.from_numpy(self.std)}
        for number, (_, decoder) in enumerate(self.fits):
            for key in (*_FITTED, *_WEIGHTS):
                value = getattr(decoder, key)
                if value is not None:
                    out[f"{prefix}{number}.{key}"] = torch.from_numpy(np.ascontiguousarray(value))
        fits = [{"blocks": names, "alphas": list(decoder.alphas), "cv": decoder.cv} for names, decoder in self.fits]
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return out, {"fits": fits, "shapes": shapes, "calibration": self.calibration, "moves": self.moves}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Tensor], prefix: str, text: Mapping[str, Any]) -> "Regressors":
        """What `arrays` described, taken out of `arrays`; a missing one is a KeyError."""
        shapes = {name: tuple(shape) for name, shape in text["shapes"].items()}
        mean, std = (arrays.pop(f"{prefix}{key}").numpy() for key in ("mean", "std"))
        model = cls(mean, std, shapes, [], text["calibration"], text["moves"])
        for number, told in enumerate(text["fits"]):
            decoder = LinearDecoder(tuple(told["alphas"]), told["cv"], calibration=text["calibration"])
            for key in _FITTED:
                setattr(decoder, key, arrays.pop(f"{prefix}{number}.{key}").numpy())
            for key in _WEIGHTS:
                value = arrays.pop(f"{prefix}{number}.{key}", None)
                setattr(decoder, key, None if value is None else value.numpy())
            decoder.n_features_in_ = len(model.mean)
            decoder.transductive_ = text["calibration"] == "test_batch"
            model.fits.append((list(told["blocks"]), decoder))
        return model


def _median_move(block: np.ndarray) -> float:
    """Median distance of the rows of a block from their mean."""
    flat = block.reshape(len(block), -1)
    return float(np.median(np.linalg.norm(flat - flat.mean(0), axis=1)))
