"""What single regions of the brain contribute, and what the regressors make of a region that is switched on alone.

    found = region_ablation(X, latents, X_test, mask, Penalties())     # "alone", "without", "silenced"
    latents = activation(model.regressors_["subj01"], mask)            # of a response that does not exist

The second is the analysis of the paper. It explores the weights of a decoder, not the code of the brain: filter weights
are no activation patterns (Haufe et al., 2014). Always show it beside random sets of as many voxels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import AxisError, BrainDataError, check_choice, near_names
from ...metrics.labels import levels_in
from .generator import Latents
from .regressors import Penalties, Regressors

__all__ = ["ABLATIONS", "AMPLITUDES", "activation", "random_masks", "region_ablation", "region_mask", "word_share"]

ABLATIONS = {
    "alone": "regressors fitted again on the region alone",
    "without": "regressors fitted again on all other voxels",
    "silenced": "the region set to its train mean when tested",
}
AMPLITUDES = ("matched", "brain_diffuser")
# factors of Brain-Diffuser's analysis: of weights times the mask, divided by their norm
_FACTORS = {"c_image": 15.0, "c_text": 9.0, "z_image": 50.0, "z_text": 50.0}


def region_mask(regions: Mapping[str, np.ndarray], name: str, kept: np.ndarray | None = None) -> np.ndarray:
    """The voxels (V,) of a region, as they are numbered in the model.

    Args:
        regions: Masks by name, such as `subject.space.rois`.
        name: Name of the region.
        kept: Mask of the voxels that the model has, `model.scales_[subject].kept`; None is all.

    Raises:
        BrainDataError: The region is unknown or has no voxels.
    """
    if name not in regions:
        raise BrainDataError(
            f"expected a region of {', '.join(regions) or 'none'}, got {name!r}{near_names(name, [*regions])}"
        )
    mask = np.asarray(regions[name]) > 0
    mask = mask if kept is None else mask[kept]
    if not mask.any():
        raise BrainDataError(f"expected voxels in the region {name!r}, got none")
    return mask


def random_masks(mask: np.ndarray, count: int = 20, seed: int = 0) -> list[np.ndarray]:
    """Random sets of as many voxels as a region has, drawn among all voxels: the control of every analysis here."""
    rng = np.random.default_rng(seed)
    size, found = int(mask.sum()), []
    for _ in range(count):
        other = np.zeros(len(mask), bool)
        other[rng.choice(len(mask), size, replace=False)] = True
        found.append(other)
    return found


def region_ablation(
    X: np.ndarray,
    latents: Latents,
    X_test: np.ndarray,
    mask: np.ndarray,
    penalties: Penalties,
    calibration: str = "train_cv",
    forms: Sequence[str] = tuple(ABLATIONS),
) -> dict[str, Latents]:
    """Latents of test responses with a region alone, without it, and with it silenced. The three are not one number.

    Args:
        X: (n, V) Train responses, one row for each image.
        latents: Blocks of these images. Leave out blocks that are not needed.
        X_test: (m, V) Test responses.
        mask: (V,) The region.
        penalties, calibration: As in `Regressors.fit`.
        forms: Names of `ABLATIONS` that are wanted.

    Raises:
        AxisError: The mask has another number of voxels.
        BrainDataError: The region is empty or is everything.
    """
    mask = _checked(mask, X.shape[1])
    if mask.all():
        raise BrainDataError(f"expected a region that leaves voxels out, got all {len(mask)}")
    found = {}
    for form in forms:
        check_choice("form", form, tuple(ABLATIONS))
        if form == "silenced":
            silent = np.where(mask, X.mean(0), X_test)
            found[form] = Regressors.fit(X, latents, penalties, calibration).predict(silent)
        else:
            used = mask if form == "alone" else ~mask
            found[form] = Regressors.fit(X[:, used], latents, penalties, calibration).predict(X_test[:, used])
    return found


def activation(regressors: Regressors, mask: np.ndarray, amplitude: str = "matched") -> Latents:
    """Blocks (1, ...) of a response that is the mean but one standard deviation above it in a region.

    Args:
        regressors: Regressors of a subject.
        mask: (V,) The region.
        amplitude: Length of the move from the mean. "matched" takes the median length of the moves of train images,
            block by block. "brain_diffuser" takes the factors of that system's code: 15, 9 and 50.

    Raises:
        AxisError: The mask has another number of voxels.
        BrainDataError: The region is empty, or the amplitude is unknown.
    """
    check_choice("amplitude", amplitude, AMPLITUDES)
    mask = _checked(mask, len(regressors.mean))
    rows = np.stack([regressors.mean, regressors.mean + regressors.std * mask])
    found: dict[str, Any] = {}
    for name, pair in regressors.predict(rows, calibrated=False).blocks().items():
        mean, move = pair[0], pair[1] - pair[0]
        length = regressors.moves[name] if amplitude == "matched" else _FACTORS[name]
        found[name] = (mean + length * move / max(float(np.linalg.norm(move)), 1e-12))[None].astype(np.float32)
    return Latents(**found)


def word_share(captions: Sequence[str], word: str) -> float:
    """Share of captions that hold a word, or words that follow each other."""
    return float(np.mean([bool(levels_in(text, [word])) for text in captions]))


def _checked(mask: np.ndarray, count: int) -> np.ndarray:
    mask = np.asarray(mask) > 0
    if mask.shape != (count,):
        raise AxisError(f"expected a region of {count} voxels, got {mask.shape}")
    if not mask.any():
        raise BrainDataError("expected a region with voxels, got an empty one")
    return mask
