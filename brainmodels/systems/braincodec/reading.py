"""Encoders of voxels that a transformer reads from a context, and what every model has that holds them.

    model.voxels_["sim01"]["in_context"].coef_   # (E, V)
    model.voxel_model("sim01", "ridge")          # ridge on the same context

`BraInCoRL` predicts responses with them, `BrainCoDec` inverts them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ...baselines import PriorRidge, Ridge, VoxelModel, WeightPrior, heldout_variance
from ...data.ids import Ids
from ...errors import AxisError, BrainDataError, LeakageError, check_choice
from ...training.estimator import BrainModel
from ...training.joining import Features
from ...training.trials import TrialData, Trials
from .model import ContextEncoder
from .recipes import InContextRecipe

__all__ = ["METHODS", "EncoderModel", "maps_at_once", "prior_encoders", "read_encoders", "ridge_encoders"]

_log = logging.getLogger(__name__)
_LEAST_CONTEXT, _FEW = 4, 5  # images: fewer are refused; fewer earn a warning
_VOXELS = 128  # voxels whose encoders are read together
METHODS = ("in_context", "ridge", "prior_ridge")


class EncoderModel(BrainModel):
    """Base of the models that hold linear encoders of voxels, and read those of a new subject without training.

    Attributes:
        encoder_: The network that reads encoders.
        prior_: Mean and covariance of the training subjects' ridge weights, the prior of `PriorRidge`.
        voxels_: `VoxelModel` by subject and method: "in_context", and "ridge" and "prior_ridge" on the same context.
            Training subjects have a context of as many of their train images as the network has seen at most.
        selected_: Method that is used, by subject.
        and those of `BrainModel`.
    """

    adapts, maps = True, True
    encoder_: ContextEncoder

    @property
    def encoder_recipe(self) -> InContextRecipe:
        """Recipe of the network that reads encoders."""
        raise NotImplementedError

    def _check_tokens(self, shape: tuple[int, int]) -> None:
        """Refuse embeddings that are too wide for the network, before anything is trained."""
        super()._check_tokens(shape)
        recipe = self.encoder_recipe
        if shape[1] >= recipe.width:
            raise AxisError(
                f"expected embeddings of less than {recipe.width} numbers, the width of recipe {recipe.name!r}, got "
                f"{shape[1]}; take recipe 'veca' for features of 768 numbers, or a recipe with embed_width"
            )

    def adapt(
        self,
        features: Features,
        responses: Trials,
        *,
        subject: str = "new",
        select: str = "network",
        image_ids: Ids | None = None,
        feature_ids: Ids | None = None,
        drop_voxels: bool = False,
        alignment: str = "off",
        progress: bool = False,
    ) -> Self:
        """A model of another subject, whose encoders are read from a context. No parameter changes.

        Args:
            features, responses, image_ids, feature_ids, drop_voxels: As in `fit`. The responses are the context;
                repeats are averaged.
            subject: Name of the new subject.
            select: "network" uses the encoders that the network reads. "cv" compares them with ridge by 5-fold
                cross-validation on the context, and takes for all voxels the one with less error. `selected_` says
                which.
            alignment: As in `fit`. "off", because a context has too few images for the test.
            progress: Not used; reading takes seconds.

        Returns:
            A new model of the new subject alone, with the same networks.

        Raises:
            BrainDataError: The context has fewer than 4 images, or responses that are not finite.
            NormalizationError: Features of another extractor.
        """
        check_choice("select", select, ("network", "cv"))
        self._check_fitted()
        model = type(self)(self.config, self.pairing, self.device)
        data = model._join(features, responses, subject, image_ids, feature_ids, 0.0, drop_voxels, known=self)
        checked = model._aligned(data, alignment)
        _check_context(subject, len(data.images(subject, "train")), self.encoder_recipe.context)
        model._take(self)
        model._place()
        model._read(data)
        model._note(data, [], checked)
        if select == "cv":
            names = ("in_context", "ridge")
            model.selected_ = {subject: min(names, key=lambda name: _error(model.voxels_[subject][name]))}
        model.meta_ |= {key: self.meta_[key] for key in ("cross_fit", "mode") if key in self.meta_}
        model.meta_["adapted_from"] = {"subjects": list(self.subjects_), "train_images": self.meta_["train_images"]}
        return model

    def _take(self, known: Self) -> None:
        """Take over the networks and statistics of another model of this kind."""
        self.prior_ = known.prior_
        for name in self.networks:
            setattr(self, name, getattr(known, name))

    def voxel_model(self, subject: str | None = None, method: str | None = None) -> VoxelModel:
        """The encoders of a subject in model units: embeddings (n, E) to responses (n, V kept).

        Args:
            subject: The subject; None where there is one.
            method: "in_context", "ridge" or "prior_ridge"; None is the one that is used.
        """
        subject = self._subject(subject)
        name = method or self.selected_[subject]
        check_choice("method", name, METHODS)
        return self.voxels_[subject][name]

    @torch.no_grad()
    def context_attention(
        self,
        features: Features,
        responses: Trials,
        *,
        subject: str | None = None,
        image_ids: Ids | None = None,
        feature_ids: Ids | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """How much each context image counts for the encoder of each voxel, by attention rollout.

        Args:
            features, responses, image_ids, feature_ids: A context of a subject that the model knows.
            subject: The subject; None where there is one.

        Returns:
            Ids of the images (n,), and shares fp32 (V kept, n) of the attention of the register that is read.
        """
        subject = self._subject(subject)
        self._measured(responses, subject)  # refuses other voxels and another normaliser
        probe = type(self)(self.config, self.pairing, self.device)
        data = probe._join(features, responses, subject, image_ids, feature_ids, 0.0, True, known=self)
        data = TrialData(data.tokens, data.recordings, {subject: self.scales_[subject]}, data.rows)
        ids, device = data.images(subject, "train"), self._place()
        x = torch.tensor(data.tokens.get(ids)[:, 0])[None].to(device)
        y = torch.tensor(np.ascontiguousarray(data.means(subject, ids).T))
        shares = [
            self.encoder_(x, part.to(device), attention=True)[1].cpu() for part in y.split(maps_at_once(len(ids)))
        ]
        return ids, torch.cat(shares).numpy()

    def check_unseen(self, image_ids: Ids) -> bool:
        """Refuse images of the training or of a context with a `LeakageError`."""
        super().check_unseen(image_ids)
        for subject, found in self.voxels_.items():
            common = set(found["in_context"].image_ids) & {str(name) for name in image_ids}
            if common:
                raise LeakageError(
                    f"expected a context of {subject} without test images, got {len(common)} of them, such as "
                    f"{min(common)}"
                )
        return True

    def _seed(self) -> int:
        """Seed of the first stage that is trained."""
        stages = (getattr(self.recipe, name) for name in self.stages)
        return next((stage.seed for stage in stages if stage is not None), 0)

    def _read(self, data: TrialData, most: int | None = None) -> None:
        """Read the encoders of all subjects from their train images, or from `most` of these."""
        self.voxels_: dict[str, dict[str, VoxelModel]] = {}
        self.selected_ = dict.fromkeys(data.recordings, "in_context")
        for name in data.recordings:
            ids = data.images(name, "train")
            if most is not None:
                ids = ids[np.linspace(0, len(ids) - 1, min(len(ids), most)).astype(int)]
            x, y = data.tokens.get(ids)[:, 0], data.means(name, ids)
            found = [read_encoders(self.encoder_, x, y, ids), ridge_encoders(x, y, ids)]
            found.append(prior_encoders(self.prior_, x, y, ids))
            self.voxels_[name] = {model.method: model for model in found}

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, texts = super()._statistics()
        for name, models in self.voxels_.items():
            for method, model in models.items():
                arrays |= model.arrays(f"voxels.{name}.{method}")
        arrays |= {f"prior.{key}": torch.from_numpy(getattr(self.prior_, key)) for key in ("mean", "covariance")}
        return arrays, {"selected": self.selected_, **texts}

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        super()._restore(arrays, texts, subjects)
        self.selected_ = dict(texts["selected"])
        self.prior_ = WeightPrior(*(arrays.pop(f"prior.{key}").numpy() for key in ("mean", "covariance")))
        self.voxels_ = {
            name: {method: VoxelModel.taken(arrays, f"voxels.{name}.{method}") for method in METHODS}
            for name in self.selected_
        }


def _error(model: VoxelModel) -> float:
    """Mean squared error on held-out images over all voxels."""
    assert model.residual_var_ is not None  # encoders that are read have it
    return float(model.residual_var_.mean())


def _check_context(subject: str, count: int, trained: tuple[int, int]) -> None:
    """Refuse a context of fewer images than an encoder can be read from, and warn of one beyond the training."""
    if count < _LEAST_CONTEXT:
        raise BrainDataError(f"expected a context of at least {_LEAST_CONTEXT} images of {subject}, got {count}")
    if count < _FEW:
        _log.warning("%d images of %s are a small context: below %d, encoders say little", count, subject, _FEW)
    if count > trained[1]:
        _log.warning(
            "%d context images of %s are more than the %d of the training; ridge may be better, see select='cv'",
            count,
            subject,
            trained[1],
        )


def maps_at_once(entries: int) -> int:
    """Number of sets of so many entries whose attention maps are kept together, 2^24 numbers a layer at most."""
    return max(1, 2**24 // entries**2)


def read_encoders(encoder: ContextEncoder, x: np.ndarray, y: np.ndarray, ids: np.ndarray) -> VoxelModel:
    """The encoders that the network reads, with their error in 5-fold cross-validation.

    Args:
        encoder: The network.
        x: Embeddings of the context images, fp32 (n, E).
        y: Averaged responses, fp32 (n, V).
        ids: Ids of the images (n,).
    """

    def fit(x: np.ndarray, y: np.ndarray) -> VoxelModel:
        found = _weights(encoder, x, y)
        return VoxelModel(found[:, :-1].T, found[:, -1], "in_context")

    return _known(fit, x, y, ids)


def ridge_encoders(x: np.ndarray, y: np.ndarray, ids: np.ndarray) -> VoxelModel:
    """Ridge on a context; arguments are those of `read_encoders`."""
    ridge = Ridge()
    return _known(lambda x, y: VoxelModel.of(_folded(ridge, x).fit(x, y), "ridge"), x, y, ids)


def prior_encoders(prior: WeightPrior, x: np.ndarray, y: np.ndarray, ids: np.ndarray) -> VoxelModel:
    """`PriorRidge` on a context, with the prior of other subjects; other arguments are those of `read_encoders`."""
    ridge = PriorRidge(prior=prior)
    return _known(lambda x, y: VoxelModel.of(_folded(ridge, x).fit(x, y), "prior_ridge"), x, y, ids)


def _folded(ridge: Ridge, x: np.ndarray) -> Ridge:
    """The baseline with as many folds as there can be."""
    return ridge.set_params(cv=min(5, len(x)))


def _known(
    fit: Callable[[np.ndarray, np.ndarray], VoxelModel], x: np.ndarray, y: np.ndarray, ids: np.ndarray
) -> VoxelModel:
    """A model with its images and its error on held-out ones."""
    error = heldout_variance(fit, x, y, cv=min(5, len(x)))
    return replace(fit(x, y), image_ids=tuple(ids), residual_var_=error)


@torch.no_grad()
def _weights(encoder: ContextEncoder, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights and intercepts (V, E + 1) from a context of embeddings (n, E) and responses (n, V)."""
    device = next(encoder.parameters()).device
    context, columns = torch.tensor(x)[None].to(device), torch.tensor(np.ascontiguousarray(y.T))
    return torch.cat([encoder(context, part.to(device)).float().cpu() for part in columns.split(_VOXELS)]).numpy()
