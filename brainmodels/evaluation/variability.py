"""Variance of sampled responses to one image, compared with that of measured ones.

found = trial_variance(model, cache, dataset.pairs("sim01", split, "test"), rois=subject.space.rois)
found.ratio("residual")  # {"all": 1.02, "V1": 0.98, ...}
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.ids import Ids
from ..errors import AxisError, BrainDataError
from ..nn.noise import NOISES
from ..training.estimator import BrainModel, Features
from ..training.trials import Recording, Trials

__all__ = ["TrialVariance", "repeat_variance", "trial_variance"]

_NUMBERS = 2**26  # of drawn responses that are held


@dataclass(frozen=True)
class TrialVariance:
    """Variance between trials of one image, mean over images.

    Attributes:
        model: Name of the system.
        sampled: Variance (V,) of draws of the model, by kind of noise.
        measured: Variance (V,) of repeats.
        planted: Variance (V,) of the noise that a simulation added, in the same units; None where it is unknown.
        rois: Masks (V,) by name.
        images: Number of images with two measured trials or more.
        repeats: Number of their trials.
        n_trials: Number of draws of an image.
        noise_scale: Factor of the noise.
    """

    model: str
    sampled: Mapping[str, np.ndarray]
    measured: np.ndarray
    planted: np.ndarray | None
    rois: Mapping[str, np.ndarray]
    images: int
    repeats: int
    n_trials: int
    noise_scale: float

    def ratio(self, noise: str, against: str = "measured") -> dict[str, float]:
        """Median over voxels of sampled by "measured" or "planted" variance, of all voxels and of each region.

        1 is right. Voxels without variance to compare with, or dropped by the model, do not count; NaN where none is
        left.
        """
        below = self._against(against)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(below > 0, self.sampled[noise] / below, np.nan)
        masks = {"all": np.ones(len(ratios), bool), **self.rois}
        return {name: _median(ratios[mask]) for name, mask in masks.items()}

    def pattern(self, noise: str, against: str = "measured") -> float:
        """Correlation over voxels between sampled and measured, or planted, variance; NaN where one is constant."""
        first, second = self.sampled[noise], self._against(against)
        kept = np.isfinite(first) & np.isfinite(second)
        first, second = first[kept], second[kept]
        if len(first) < 2 or not first.std() or not second.std():
            return float("nan")
        return float(np.corrcoef(first, second)[0, 1])

    def to_json(self) -> dict[str, Any]:
        """Ratios by region and patterns, as JSON types; None where they are undefined."""
        kinds = ["measured"] if self.planted is None else ["measured", "planted"]
        facts = ("model", "images", "repeats", "n_trials", "noise_scale")
        return {key: getattr(self, key) for key in facts} | {
            "voxels": {"all": len(self.measured), **{name: int(mask.sum()) for name, mask in self.rois.items()}},
            "ratio": {
                kind: {
                    noise: {name: _plain(value) for name, value in self.ratio(noise, kind).items()}
                    for noise in self.sampled
                }
                for kind in kinds
            },
            "pattern": {kind: {noise: _plain(self.pattern(noise, kind)) for noise in self.sampled} for kind in kinds},
        }

    def _against(self, kind: str) -> np.ndarray:
        if kind not in ("measured", "planted") or (kind == "planted" and self.planted is None):
            known = "'measured'" if self.planted is None else "'measured' or 'planted'"
            raise BrainDataError(f"expected variance to compare with, {known}, got {kind!r}")
        return self.planted if kind == "planted" and self.planted is not None else self.measured


def trial_variance(
    model: BrainModel,
    features: Features,
    trials: Trials,
    image_ids: Ids | None = None,
    *,
    subject: str | None = None,
    rois: Mapping[str, np.ndarray] | None = None,
    noises: Sequence[str] = NOISES,
    n_trials: int = 20,
    noise_scale: float = 1.0,
    planted: np.ndarray | None = None,
    seed: int = 0,
) -> TrialVariance:
    """Compare the variance of draws with that of repeats, for images that were shown more than once.

    The variance of k trials is taken around their own mean with the factor k / (k - 1). Few repeats and many draws then
    estimate the same number.

    Args:
        model: A fitted model that draws responses with noise (a `LatentModel`).
        features: A source of the features of these images.
        trials: Single trials of the subject, in the units of the fit, of test images.
        image_ids: Images of the trials, where these are an array.
        subject: The subject; None where the model has one.
        rois: Masks (V,) by name.
        noises: Kinds of noise; "none" has no variance, which shows that the model is deterministic without.
        n_trials: Draws of an image, two or more.
        noise_scale: Factor of the noise.
        planted: Variance (V,) of the noise of a simulation, in the units of the trials.
        seed: Seed of the draws.

    Raises:
        BrainDataError: no image was repeated, or fewer than two draws.
        AxisError: masks or planted variances of another number of voxels.
    """
    if n_trials < 2:
        raise BrainDataError(f"expected two draws or more to have a variance, got n_trials={n_trials}")
    recording = Recording.of(trials, image_ids)
    values = recording.read(np.arange(len(recording)))
    rois = {} if rois is None else dict(rois)
    for name, array in {"planted": planted, **rois}.items():
        if array is not None and np.shape(array) != values.shape[1:]:
            raise AxisError(f"expected {name} of {values.shape[1]} voxels, got {np.shape(array)}")
    measured, shown = repeat_variance(values, recording.image_ids)
    options = {"subject": subject, "noise_scale": noise_scale}
    sampled = {noise: _sampled(model, features, shown, noise, n_trials, seed, options) for noise in noises}
    repeats = int(np.isin(recording.image_ids, shown).sum())
    return TrialVariance(model.label, sampled, measured, planted, rois, len(shown), repeats, n_trials, noise_scale)


def repeat_variance(values: np.ndarray, image_ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased variance over the trials of an image, mean over images, fp64 (V,); and the images that were repeated.

    Args:
        values: (n, V) trials.
        image_ids: (n,); images with one trial do not count.

    Raises:
        BrainDataError: no image was repeated.
    """
    names, image, counts = np.unique(np.asarray(image_ids, str), return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    if not len(repeated):
        raise BrainDataError(f"expected images with two trials or more, got {len(names)} images with one")
    order = np.split(np.argsort(image, kind="stable"), np.cumsum(counts)[:-1])
    total: Any = sum(values[order[which]].var(0, ddof=1, dtype=np.float64) for which in repeated)
    return total / len(repeated), names[repeated]


def _sampled(
    model: BrainModel, features: Features, ids: np.ndarray, noise: str, n_trials: int, seed: int, options: Mapping
) -> np.ndarray:
    """(V,) variance over draws, mean over images. Without noise the same prediction is asked for twice."""
    total: Any = 0.0
    for number, part in enumerate(_parts(model, ids, n_trials)):
        draws = {"noise": noise, "n_trials": n_trials, "seed": _seed(seed, number), **options}
        if noise == "none":
            single = draws | {"n_trials": 1}
            stack = np.stack([model.predict(features, image_ids=part, **single) for _ in range(2)], 1)
        else:
            stack = model.predict(features, image_ids=part, **draws)
        total = total + stack.var(1, ddof=1, dtype=np.float64).sum(0)
    return total / len(ids)


def _parts(model: BrainModel, ids: np.ndarray, n_trials: int) -> Iterator[np.ndarray]:
    """Images whose draws fit into memory together."""
    voxels = max(len(scale.kept) for scale in model.scales_.values())
    step = max(_NUMBERS // (voxels * n_trials), 1)
    return (ids[start : start + step] for start in range(0, len(ids), step))


def _seed(seed: int, part: int) -> int:
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])


def _median(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(np.median(kept)) if len(kept) else float("nan")


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
