"""BraInCoRL as an estimator: a transformer reads a few trials of each voxel and writes the encoder of the voxel.

encoder = InContextEncoder("tiny").fit(cache, {"sim02": pairs2, "sim03": pairs3})
new = encoder.adapt(cache, context, subject="sim01")            # no gradient step
responses = new.predict(cache, image_ids=test.image_ids)        # (n, V)
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...baselines import VoxelModel, WeightPrior
from ...data.ids import Ids
from ...errors import BrainDataError
from ...training.batches import Batch, RowNumbers
from ...training.joining import Features
from ...training.loop import StageResult
from ...training.recipe import TrainingStage
from ...training.run import Run
from ...training.trials import TrialData
from ...training.voxels import SubjectVoxels, VoxelRows, voxels_of
from . import recipes
from .model import ContextEncoder
from .reading import EncoderModel, ridge_encoders
from .recipes import InContextRecipe
from .synthetic import SyntheticVoxels, between, choose

__all__ = ["Cohort", "InContextEncoder"]

_log = logging.getLogger(__name__)
_EPOCH = 100  # batches of synthetic voxels that are logged together


@dataclass(frozen=True)
class Cohort:
    """What the training subjects of a fit say together.

    Attributes:
        subjects: Averaged responses by voxel and subject.
        bank: Embeddings of all train images, fp32 (N, E).
        repeats: Mean number of trials of a train image.
        ridges: Ridge from embeddings to the responses of each subject, with its held-out error.
    """

    subjects: Mapping[str, SubjectVoxels]
    bank: Tensor
    repeats: float
    ridges: Mapping[str, VoxelModel]

    @classmethod
    def of(cls, data: TrialData) -> "Cohort":
        """The cohort of all subjects of a fit."""
        subjects = voxels_of(data)
        bank = torch.from_numpy(data.tokens.get(data.train_ids())[:, 0])
        repeats = np.mean([len(rows) / subjects[name].num_train for name, rows in data.rows["train"].items()])
        ridges = {name: ridge_encoders(*item.train, item.ids[: item.num_train]) for name, item in subjects.items()}
        return cls(subjects, bank, float(repeats), ridges)

    @cached_property
    def prior(self) -> WeightPrior:
        """Prior of weights and intercepts, from the ridge weights of all subjects together."""
        return WeightPrior.of(list(self.ridges.values()))

    def without(self, subject: str) -> "Cohort":
        """The cohort of the other subjects. The bank of images stays, because it holds no response."""
        left, ridges = dict(self.subjects), dict(self.ridges)
        del left[subject], ridges[subject]
        return replace(self, subjects=left, ridges=ridges)

    def synthetic(self, prior: str) -> SyntheticVoxels:
        """Synthetic voxels like those of the cohort ("ridge"), or "isotropic" ones."""
        if prior == "isotropic":
            return SyntheticVoxels(self.bank, None, None, self.repeats)
        errors = [item.residual_var_ for item in self.ridges.values() if item.residual_var_ is not None]
        return SyntheticVoxels(self.bank, self.prior, torch.from_numpy(np.concatenate(errors)).float())


class InContextEncoder(EncoderModel):
    """A voxel's linear encoder of image embeddings, read from a context of images and responses (arXiv 2505.15813).

    The network is trained on voxels of some subjects. `adapt` then reads the encoders of a new subject without a
    gradient step. Neither the order of the context nor that of the voxels matters, and both may have any length.

    Args:
        config: A recipe of `recipes.in_context`, or its name.
        pairing, device: As in `BrainModel`.

    Attributes:
        those of `EncoderModel`.
    """

    direction = "encode"
    about = "images to responses, by encoders that a transformer reads from few trials of each voxel"
    stages = ("pretrain", "extend", "finetune")
    networks = ("encoder_",)
    recipe_type, named = InContextRecipe, staticmethod(recipes.in_context)
    recipe: InContextRecipe

    @property
    def encoder_recipe(self) -> InContextRecipe:
        return self.recipe

    def predict(
        self, features: Features, *, image_ids: Ids | None = None, subject: str | None = None, method: str | None = None
    ) -> np.ndarray:
        """Responses to images.

        Args:
            features: An array (n, p), or a source of features with `image_ids`.
            image_ids: Images to predict.
            subject: Subject whose voxels are predicted; None where there is one.
            method: "in_context", "ridge" or "prior_ridge"; None is the one that `adapt` selected.

        Returns:
            fp32 (n, V) in the units given to `fit`; NaN in dropped voxels.
        """
        subject = self._subject(subject)
        tokens = self._tokens(features, image_ids)[:, 0].numpy()
        return self.scales_[subject].undo(self.voxel_model(subject, method).predict(tokens))

    def reference_predictions(self, features: Features, **options: Any) -> dict[str, np.ndarray]:
        return {
            "ridge, same context": self.predict(features, method="ridge", **options),
            "prior ridge of other subjects": self.predict(features, method="prior_ridge", **options),
        }

    # fitting

    def _build(self, voxels: Mapping[str, int]) -> None:
        self.encoder_ = ContextEncoder.of(self.recipe, self.token_shape_[1])

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        cohort = Cohort.of(data)
        self.prior_ = cohort.prior
        return self.train_on(run, cohort)

    def train_on(
        self, run: Run, cohort: Cohort, prefix: str = "", stages: tuple[str, ...] | None = None
    ) -> list[StageResult]:
        """Train on a cohort: all stages from new weights, or some of them, which go on with the network that is there.

        Args:
            run: What the stages of the fit share.
            cohort: Responses of the training subjects.
            prefix: Beginning of the names of the stages, for a run that trains several networks.
            stages: Names of the stages that go on; None trains all. One that the recipe leaves out is passed over.
        """
        if stages is None:
            self.begin()
        self.encoder_.checkpointing = self.recipe.grad_checkpointing
        results = []
        for name in self.stages if stages is None else stages:
            stage = getattr(self.recipe, name)
            if stage is not None:
                results.append(run.stage(f"{prefix}{name}", *self._task(name, stage, cohort), stage))
        return results

    def begin(self) -> None:
        """Make the network with new weights, which follow from the seed."""
        torch.manual_seed(self._seed())
        self._build({})

    def _task(self, name: str, stage: TrainingStage, cohort: Cohort) -> tuple[nn.Module, Any]:
        """The task of a stage, and the source of its rows."""
        recipe = self.recipe
        if name == "finetune":
            task = _VoxelTask(self.encoder_, cohort.subjects, recipe.context, recipe.queries)
            return task, VoxelRows(cohort.subjects)
        context = (recipe.pretrain_context, recipe.pretrain_context) if name == "pretrain" else recipe.context
        task = _SyntheticTask(self.encoder_, cohort.synthetic(recipe.prior), context, recipe.queries)
        return task, RowNumbers("synthetic voxels", _EPOCH * stage.batch_size)

    def _finish(self, data: TrialData, stages: Any, checked: Mapping[str, Any]) -> None:
        self._place()
        self._read(data, self.recipe.context[1])
        super()._finish(data, stages, checked)


class _SyntheticTask(nn.Module):
    """Squared error of the responses of synthetic voxels to query images."""

    def __init__(self, encoder: ContextEncoder, voxels: SyntheticVoxels, context: tuple[int, int], queries: int):
        super().__init__()
        self.encoder, self.voxels = encoder, voxels
        self.context, self.queries = _fitting(context, queries, len(voxels.bank), "the training subjects")

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        count = between(self.context, generator)
        x, y = self.voxels.draw(len(batch.rows), count + self.queries, generator)
        return _query_error(self.encoder, x, y, count)


class _VoxelTask(nn.Module):
    """Squared error of measured responses of voxels to query images; in validation, to the validation images."""

    def __init__(
        self, encoder: ContextEncoder, subjects: Mapping[str, SubjectVoxels], context: tuple[int, int], queries: int
    ):
        super().__init__()
        self.encoder, self.names, self.num_train = encoder, {}, {}
        fewest = min(subjects, key=lambda name: subjects[name].num_train)
        self.context, self.queries = _fitting(context, queries, subjects[fewest].num_train, fewest)
        for number, (name, item) in enumerate(subjects.items()):
            self.names[name], self.num_train[name] = f"embeddings_{number}", item.num_train
            self.register_buffer(self.names[name], torch.from_numpy(item.embeddings), persistent=False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        table, images = getattr(self, self.names[batch.subject]), self.num_train[batch.subject]
        count = between(self.context, generator)
        order = choose(images, count + (self.queries if self.training else 0), generator)
        if not self.training:
            order = torch.cat([order, torch.arange(images, len(table), device=order.device)])
        return _query_error(self.encoder, table[order], batch.responses[:, order], count)


def _query_error(encoder: ContextEncoder, x: Tensor, y: Tensor, count: int) -> dict[str, Tensor]:
    """Error of the images after the first `count`, which are the context; x (images, E), y (B, images)."""
    weights = encoder(x[None, :count], y[:, :count])
    predicted = weights[:, :-1] @ x[count:].T + weights[:, -1:]
    loss = (predicted - y[:, count:]).square().mean()
    return {"loss": loss, "variance": y[:, count:].square().mean()}


def _fitting(context: tuple[int, int], queries: int, images: int, whose: str) -> tuple[tuple[int, int], int]:
    """Context and number of queries as far as the images go."""
    if images < context[0] + 2:
        raise BrainDataError(
            f"expected at least {context[0] + 2} train images of {whose} for a context of {context[0]} and queries, "
            f"got {images}; take a recipe with a smaller context"
        )
    fewer = min(queries, images - context[0] - 1)
    longest = min(context[1], images - fewer)
    if (longest, fewer) != (context[1], queries):
        _log.warning(
            "%d train images of %s allow %d context images and %d queries at most, not %d and %d",
            images,
            whose,
            longest,
            fewer,
            context[1],
            queries,
        )
    return (context[0], longest), fewer
