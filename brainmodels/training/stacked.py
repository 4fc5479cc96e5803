"""A brain model stacked with a linear baseline: above both where their errors differ, and hardly ever below either.

model = Stacked(NeuroFlow("nano")).fit(cache, dataset.pairs("sim01", split, "train"), subject="sim01")
model.meta_["stack"]["weights"]["sim01"]  # {"encode": {"V1": 0.35, ...}, "decode": 0.4}: 0 is ridge, 1 the model
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from veca.files import read_tensors

from ..baselines import LinearDecoder, PriorRidge, ReducedRankRidge, Ridge
from ..data import Pairs, Subject
from ..data.ids import Ids
from ..errors import BrainDataError, LayoutError, check_choice, need
from .estimator import BrainModel
from .files import STACK, write_model
from .joining import Features, source_of
from .linear import NUMBERS, LinearMap, flat
from .trials import TrialData, Trials

try:
    from sklearn.base import BaseEstimator
except ImportError as error:
    raise need("scikit-learn", "brainmodels.training") from error

__all__ = ["BASES", "Stacked"]

BASES = {"ridge": Ridge, "reduced_rank": ReducedRankRidge, "prior": PriorRidge}
_DRAWS = ("n_trials", "noise", "noise_scale", "seed", "mode", "solver", "steps")
_WEIGHTS = np.round(np.linspace(0, 1, 21), 2)
_JOINED = {"subject": "default", "image_ids": None, "feature_ids": None, "drop_voxels": False}


@dataclass(frozen=True)
class _Stack:
    """The two maps of a subject and how much the model counts beside them; None where the model has no such direction.

    Attributes:
        encoder: From tokens to responses, both in model units.
        shares: (V kept,) Weight of the model by voxel.
        decoder: From responses to tokens.
        share: Weight of the model in decoding.
    """

    encoder: LinearMap | None
    shares: np.ndarray
    decoder: LinearMap | None
    share: float


class Stacked(BaseEstimator):
    """A brain model and a linear baseline on the same tokens, both ways: base + w (model - base).

    w is chosen on the validation images of the fit, which neither was trained on. 0 is the baseline and 1 the model.
    For each region of the subject w has the least squared error. For decoding it is the smallest w with which images
    are found as well as with the best, within a standard error. Then the baseline is fitted again, to all training
    images. (Wolpert, 1992; Breiman, 1996, has the bound on the weights.)

    For responses the baseline sees at most 16,384 numbers of an image, see `flat`. Tokens with more numbers are decoded
    by the model alone.

    All attributes and methods of the model that are not listed here are those of this object too.

    Args:
        model: The model; its `fit` needs a share of validation images, by its recipe or `validation=`.
        base: Baseline of the responses, "ridge", "reduced_rank" or "prior", see `brainmodels.baselines`. That of
            decoding is always `LinearDecoder`, because fewer patterns find fewer images.

    Attributes:
        meta_: Facts of the fit, with `meta_["stack"]`: the base, and by subject the weights and the number of
            validation images.
    """

    def __init__(self, model: BrainModel, base: str = "ridge"):
        check_choice("base", base, tuple(BASES))
        self.model, self.base = model, base

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("model", "stacks_") or "model" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.model, name)

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.model.label} + ridge"

    def fit(self, features: Features, responses: Trials | Mapping[str, Trials], **options: Any) -> Self:
        """Fit the model, then the baseline and the weights.

        Args:
            features, responses, options: As in the model's `fit`.

        Raises:
            BrainDataError: No images are held out for validation.
        """
        self.model.fit(features, responses, **options)
        return self.stack(features, responses, **options)

    def stack(self, features: Features, responses: Trials | Mapping[str, Trials], **options: Any) -> Self:
        """Fit baseline and weights alone, beside a model that was fitted to the same data with the same options."""
        self.stacks_: dict[str, _Stack] = {}
        return self._stack(features, responses, options)

    def adapt(
        self,
        features: Features,
        responses: Trials,
        *,
        subject: str = "new",
        validation: float | None = None,
        **options: Any,
    ) -> "Stacked":
        """A copy that is adapted to a new subject, as the model's `adapt`, with a baseline of that subject.

        A fifth of the images weighs both, unless `validation` says otherwise. There are few of them, so the baseline is
        then fitted again to all.
        """
        options |= {"subject": subject, "validation": 0.2 if validation is None else validation}
        adapted = Stacked(self.model.adapt(features, responses, **options), self.base)
        adapted.stacks_ = {name: stack for name, stack in self.stacks_.items() if name in adapted.model.subjects_}
        return adapted._stack(features, responses, options, again=True)

    def predict(
        self, features: Features, *, image_ids: Ids | None = None, subject: str | None = None, **options: Any
    ) -> np.ndarray:
        """Responses to images; arguments as in the model's `predict`. Draws of trials are moved to the stacked mean."""
        model, name = self.model, self.model._subject(subject)
        stack, scale = self._of(name), model.scales_[name]
        drawn = model.predict(features, image_ids=image_ids, subject=name, **options)
        if stack.encoder is None:
            return drawn
        plain = {key: value for key, value in options.items() if key not in _DRAWS}
        mean = model.predict(features, image_ids=image_ids, subject=name, **plain) if options else drawn
        base = scale.undo(stack.encoder(flat(model.tokens(features, image_ids))))
        shares = np.ones(len(scale.kept), np.float32)
        shares[scale.kept] = stack.shares
        moved = (1 - shares) * (base - mean)
        return drawn + (moved if drawn.ndim == 2 else moved[:, None])

    def encode(self, features: Features, **options: Any) -> np.ndarray:
        """The same as `predict`: images to responses."""
        return self.predict(features, **options)

    def decode(self, responses: Trials, *, subject: str | None = None, **options: Any) -> np.ndarray:
        """Features of the images that responses are of; arguments as in the model's `decode`."""
        model, name = self.model, self.model._subject(subject)
        stack = self._of(name)
        if stack.decoder is None:
            return model.decode(responses, subject=name, **options)
        drawn = model.tokens(model.decode(responses, subject=name, **options))
        plain = {key: value for key, value in options.items() if key not in _DRAWS}
        mean = model.tokens(model.decode(responses, subject=name, **plain)) if options else drawn
        base = stack.decoder(model._measured(responses, name).numpy()).reshape(mean.shape)
        return model._features(drawn + np.float32(1 - stack.share) * (base - mean))

    def score(self, features: Features, responses: Trials, **options: Any) -> np.ndarray:
        """R^2 of each voxel, as the model's `score`."""
        return BrainModel.score(self, features, responses, **options)  # pyright: ignore[reportArgumentType]

    def save(self, folder: str | Path) -> Path:
        """Write the model and the stack into a folder, which appears whole or not at all.

        `brainmodels.load_model` reads both; `load` of the system reads the model alone.
        """
        self.model._check_fitted()
        arrays: dict[str, Tensor] = {}
        for name, stack in self.stacks_.items():
            for way, mapped in (("encoder", stack.encoder), ("decoder", stack.decoder)):
                arrays |= {} if mapped is None else mapped.arrays(f"{name}.{way}")
            arrays[f"{name}.shares"] = torch.from_numpy(stack.shares)
        return write_model(self.model, Path(folder), {STACK: arrays})

    @classmethod
    def of(cls, model: BrainModel, folder: Path) -> "Stacked":
        """A loaded model with the stack that `save` wrote beside it.

        Raises:
            LayoutError: An array is missing or unknown.
        """
        arrays, facts = read_tensors(folder / STACK, LayoutError), model.meta_["stack"]
        stacked = cls(model, facts["base"])
        try:
            stacked.stacks_ = {
                name: _Stack(
                    LinearMap.taken(arrays, f"{name}.encoder") if model.encodes else None,
                    arrays.pop(f"{name}.shares").numpy(),
                    LinearMap.taken(arrays, f"{name}.decoder") if "decode" in weights else None,
                    weights.get("decode", 1.0),
                )
                for name, weights in facts["weights"].items()
            }
        except KeyError as error:
            raise LayoutError(f"expected {error.args[0]} in {STACK} of {folder}, got none") from error
        if arrays:
            raise LayoutError(f"expected no {next(iter(arrays))} in {STACK} of {folder}, got it")
        return stacked

    def _of(self, subject: str) -> _Stack:
        if subject not in self.stacks_:
            raise BrainDataError(f"expected a subject of {', '.join(self.stacks_)}, got {subject!r} without a baseline")
        return self.stacks_[subject]

    def _stack(self, features: Features, responses: Any, options: Mapping[str, Any], again: bool = False) -> Self:
        """Fit baselines to all subjects of a fit that is done, and choose the weights."""
        model = self.model
        joined = {key: options.get(key, default) for key, default in _JOINED.items()}
        share = options.get("validation")
        data = copy(model)._join(features, responses, **joined, validation=share, known=model)
        source = source_of(features, joined["feature_ids"], model.pairing)
        given = responses if isinstance(responses, Mapping) else {joined["subject"]: responses}
        told = {}
        for name in data.recordings:
            ids, measured = data.averaged(name, part="val")
            if not len(ids):
                raise BrainDataError(
                    f"expected validation images of {name} to weigh the model by, got none; pass validation=0.1, or "
                    "train the model alone"
                )
            regions = _regions(given[name], model.scales_[name].kept)
            self.stacks_[name], told[name] = self._weighed(data, name, source, ids, measured, regions, again)
        weights = model.meta_.get("stack", {}).get("weights", {})
        model.meta_["stack"] = {"base": self.base, "weights": weights | told}
        return self

    def _weighed(
        self,
        data: TrialData,
        name: str,
        source: Any,
        ids: np.ndarray,
        measured: np.ndarray,
        regions: Mapping[str, np.ndarray],
        again: bool,
    ) -> tuple[_Stack, dict[str, Any]]:
        """The stack of one subject, and its weights as JSON; with `again`, baselines of the validation images too."""
        model, scale = self.model, self.model.scales_[name]
        train_ids, train = data.averaged(name)
        X, X_val = flat(data.tokens.get(train_ids)), flat(data.tokens.get(ids))
        order = np.argsort([*train_ids, *ids])
        X_all, Y_all = np.concatenate([X, X_val])[order], np.concatenate([train, measured])[order]
        encoder = decoder = None
        shares, share = np.ones(measured.shape[1], np.float32), 1.0
        told: dict[str, Any] = {"images": len(ids)}
        if model.encodes:
            predicted = model.predict(source, image_ids=ids, subject=name)[:, scale.kept]
            encoder = LinearMap.fit(BASES[self.base](), X, train)
            base = encoder(X_val)
            told["encode"] = {}
            for region, mask in regions.items():
                shares[mask] = _weight(
                    measured[:, mask], base[:, mask], (predicted[:, mask] - scale.mean[mask]) / scale.std[mask]
                )
                told["encode"][region] = round(float(shares[mask][0]), 3)
            if again:
                encoder = LinearMap.fit(BASES[self.base](), X_all, Y_all)
        if model.decodes and np.prod(data.tokens.shape) <= NUMBERS:
            read = model.tokens(model.decode(scale.undo(measured), subject=name))
            read = read.reshape(len(read), -1)
            known, truth = (data.tokens.get(x).reshape(len(x), -1) for x in (train_ids, ids))
            decoder = LinearMap.fit(LinearDecoder(), train, known, scaled=False)
            share = told["decode"] = _finding_weight(truth, decoder(measured), read, known)
            if again:
                decoder = LinearMap.fit(LinearDecoder(), Y_all, np.concatenate([known, truth])[order], scaled=False)
        return _Stack(encoder, shares, decoder, share), told


def _weight(truth: np.ndarray, base: np.ndarray, model: np.ndarray) -> float:
    """The w in 0..1 with the least squared error of base + w (model - base)."""
    apart = (model - base).astype(np.float64)
    size = float((apart**2).sum())
    return float(np.clip(((truth - base) * apart).sum() / size, 0, 1)) if size else 0.0


def _finding_weight(truth: np.ndarray, base: np.ndarray, model: np.ndarray, others: np.ndarray) -> float:
    """The w of 0, 0.05, ..., 1 by which images are found among all known ones: the smallest that is not clearly worse.

    The right image has a rank, by cosine to the tokens of all images. The best w has the least mean logarithm of it. A
    w is clearly worse if its mean is above that by more than a standard error of the paired difference. The weight of
    least squared error favours a few strong directions, and images are found by the weak ones too.

    Args:
        truth, base, model: Tokens (n, p) of validation images: true, and decoded by either.
        others: Tokens (N, p) of training images.
    """
    gallery = np.concatenate([truth, others])
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    own = np.arange(len(truth))
    ranks = []
    for weight in _WEIGHTS:
        table = (base + weight * (model - base)) @ gallery.T
        ranks.append(np.log1p((table > table[own, own][:, None]).sum(1)))
    apart = np.array(ranks) - ranks[int(np.argmin(np.mean(ranks, 1)))]
    fine = apart.mean(1) <= apart.std(1) / len(own) ** 0.5
    return float(_WEIGHTS[int(np.argmax(fine))])


def _regions(responses: Trials, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over kept voxels that share none: each region of the subject without those before it, then the others."""
    subject = responses.subject if isinstance(responses, Pairs) else responses
    known = getattr(subject.space, "rois", {}) if isinstance(subject, Subject) else {}
    columns = responses.columns if isinstance(responses, Pairs) else None
    left, found = np.ones(int(kept.sum()), bool), {}
    for region, mask in known.items():
        mask = (mask if columns is None else mask[columns])[kept] & left
        if mask.any():
            found[region], left = mask, left & ~mask
    if left.any():
        found["other voxels" if found else "all"] = left
    return found
