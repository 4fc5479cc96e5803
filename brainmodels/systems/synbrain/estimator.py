"""SynBrain as an estimator: responses to images in any number of draws; adapted to a new subject with few images.

model = SynBrain("tiny").fit(cache, dataset.pairs("sim01", split, "train"), subject="sim01")
mean = model.predict(cache, image_ids=test.image_ids)                                        # (n, V)
trials = model.predict(cache, image_ids=test.image_ids, n_trials=3, noise="residual")        # (n, 3, V)
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veca.train.parallel import join_world

from ...baselines import Ridge
from ...data.ids import Ids
from ...nn.gaussian import Posterior
from ...training.estimator import BATCH
from ...training.joining import Features
from ...training.latent_model import LatentModel
from ...training.latents import posterior_of
from ...training.linear import LinearMap, flat
from ...training.loop import Batch, StageResult
from ...training.run import Run, lasting
from ...training.trials import TrialData, Trials
from . import recipes
from .losses import mapper_loss, stage_one_loss
from .model import BrainVAE, adapt_parameters, build_mapper
from .recipes import SynBrainRecipe

__all__ = ["SynBrain"]


class SynBrain(LatentModel):
    """Image tokens to responses, through a VAE of responses whose latent is aligned with the tokens (arXiv 2508.10298).

    A mapper turns image tokens into the latent in one step, and the decoder of the BrainVAE turns it into voxels. No
    weight depends on their number, but their order is part of what is learned.

    Args:
        config: `recipes.paper()`, `veca()`, `veca_cores()`, `tiny()`, any `SynBrainRecipe`, or one of these names.
        pairing, device: As in `BrainModel`.

    Attributes:
        vae_, mapper_: The networks, the mapper with its averaged weights.
        readouts_: `LinearMap` from latents to voxels by subject, for those that do not use the decoder of the BrainVAE.
        and those of `LatentModel`.
    """

    direction = "encode"
    about = "images to responses, whose latents are aligned with image tokens"
    stages, adapts = ("stage1", "stage2"), True
    networks = ("vae_", "mapper_")
    recipe_type, named = SynBrainRecipe, staticmethod(recipes.named)
    recipe: SynBrainRecipe

    def adapt(
        self,
        features: Features,
        responses: Trials,
        *,
        subject: str = "new",
        train_mapper: str | None = None,
        steps: tuple[int, int] | None = None,
        image_ids: Ids | None = None,
        feature_ids: Ids | None = None,
        validation: float | None = None,
        drop_voxels: bool = False,
        alignment: str = "auto",
        progress: bool = False,
    ) -> "SynBrain":
        """A model of another subject that begins at the weights of this one, which stays as it is.

        First all of the BrainVAE is trained on the new responses, then part of the mapper. Of the statistics of the
        first subject only those of the tokens are kept.

        Args:
            features, responses, image_ids, feature_ids, validation, drop_voxels, alignment, progress: As in `fit`.
            subject: Name of the new subject.
            train_mapper: "mlp", "attn", "all" or "none", the sub-layers that move; None is the recipe's ("mlp").
            steps: Steps of the two stages; None is those of the recipe (`adapt1`, `adapt2`).

        Returns:
            A new `SynBrain` of the new subject alone.
        """
        self._check_fitted()
        recipe, (vae_steps, mapper_steps) = self.recipe, steps or (None, None)
        model = SynBrain(recipe, self.pairing, self.device)
        data = model._join(features, responses, subject, image_ids, feature_ids, validation, drop_voxels, self)
        checked = model._aligned(data, alignment)
        model.vae_, model.mapper_, model.residual_ = deepcopy(self.vae_), deepcopy(self.mapper_), {}
        chosen = adapt_parameters(model.vae_, model.mapper_, train_mapper or recipe.train_mapper)["mapper"]
        with join_world(self.device) as world:
            run = model._open_run(world, data, None, 1, progress)
            stages = [model._train_vae(run, data, lasting(recipe.adapt1, vae_steps))]
            if chosen:
                names = {f"mapper.{name}" for name in chosen}
                stages.append(model._train_mapper(run, data, lasting(recipe.adapt2, mapper_steps), names))
            model._finish(data, stages, checked)
        model.meta_["adapted_from"] = {"subjects": list(self.subjects_), "train_images": self.meta_["train_images"]}
        return model

    def _build(self, voxels: Mapping[str, int]) -> None:
        recipe = self.recipe
        self.vae_ = BrainVAE(recipe.num_tokens, recipe.token_width, recipe.vae)
        self.mapper_ = build_mapper(recipe.num_tokens, recipe.token_width, recipe.mapper)

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        recipe = self.recipe
        torch.manual_seed(recipe.stage1.seed)
        self._build({})
        first = self._train_vae(run, data, recipe.stage1)
        torch.manual_seed(recipe.stage2.seed)
        self.mapper_ = build_mapper(recipe.num_tokens, recipe.token_width, recipe.mapper)
        return [first, self._train_mapper(run, data, recipe.stage2)]

    def _train_vae(self, run: Run, data: TrialData, stage: Any) -> StageResult:
        self.vae_.checkpointing = self.recipe.grad_checkpointing
        weight = self.recipe.contrast_weight_for(data.total_variance)
        return run.stage("vae", _VAETask(self.vae_, self.recipe, weight), data, stage, None, data.total_variance)

    def _train_mapper(self, run: Run, data: TrialData, stage: Any, names: set[str] | None = None) -> StageResult:
        recipe = self.recipe
        self.mapper_.checkpointing = recipe.grad_checkpointing
        self.vae_.to(run.device).eval()
        source = self._with_posteriors(data, run.device)
        return run.stage("mapper", _MapperTask(self.mapper_, self._posterior), source, stage, names)

    def _forget(self) -> None:
        super()._forget()
        self.readouts_: dict[str, LinearMap] = {}

    def _finish(self, data: TrialData, stages: Sequence[StageResult], checked: Mapping[str, Any]) -> None:
        self._place()
        chosen = {name: self._readout(data, name) for name in data.recordings}
        self.readouts_ = {name: readout for name, readout in chosen.items() if readout is not None}
        super()._finish(data, stages, checked)

    def _readout(self, data: TrialData, subject: str) -> LinearMap | None:
        """Ridge from latents of training images to their mean responses; None where the decoder is used.

        Which of the two has less error on validation images is decided by mean responses, as they are scored.
        """
        if self.recipe.readout == "decoder":
            return None
        ids, measured = data.averaged(subject)
        readout = LinearMap.fit(Ridge(), flat(self._latents_of(data, ids)), measured)
        ids, measured = data.averaged(subject, part="val")
        if self.recipe.readout == "linear" or not len(ids):
            return readout
        latents = self._latents_of(data, ids)
        decode = partial(self.vae_.decode, num_voxels=measured.shape[1])
        with torch.no_grad():
            published = np.concatenate([decode(x.to(self._place())).cpu() for x in torch.tensor(latents).split(BATCH)])
        errors = [float(((guess - measured) ** 2).mean()) for guess in (published, readout(flat(latents)))]
        return readout if errors[1] < errors[0] else None

    @torch.no_grad()
    def _latents_of(self, data: TrialData, ids: np.ndarray) -> np.ndarray:
        """Latents (n, m, d) that the mapper gives images."""
        tokens, device = torch.tensor(data.tokens.get(ids)), self._place()
        return torch.cat([self.mapper_(part.to(device)).cpu() for part in tokens.split(BATCH)]).numpy()

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, texts = super()._statistics()
        for name, readout in self.readouts_.items():
            arrays |= readout.arrays(f"readout.{name}")
        return arrays, {"readouts": sorted(self.readouts_), **texts}

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        super()._restore(arrays, texts, subjects)
        self.readouts_ = {name: LinearMap.taken(arrays, f"readout.{name}") for name in texts.get("readouts", ())}

    def _posterior(self, responses: Tensor, subject: str) -> Posterior:
        return self.vae_.encode(responses)

    def _latent(self, tokens: Tensor) -> Tensor:
        return self.mapper_(tokens)

    def _decoder(self, subject: str) -> Callable[[Tensor], Tensor]:
        if subject in self.readouts_:
            return self.readouts_[subject].of_tokens
        return partial(self.vae_.decode, num_voxels=int(self.scales_[subject].kept.sum()))


class _VAETask(nn.Module):
    def __init__(self, vae: BrainVAE, recipe: SynBrainRecipe, contrast_weight: float):
        super().__init__()
        self.vae, self.recipe, self.contrast_weight = vae, recipe, contrast_weight

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        recipe = self.recipe
        parts = stage_one_loss(
            self.vae(batch.responses, generator),
            batch.responses,
            batch.tokens,
            recipe.kl_weight,
            self.contrast_weight,
            recipe.temperature,
            recipe.contrast_group,
        )
        above = parts.soft_clip - parts.soft_clip_floor
        return {"loss": parts.total, "mse": parts.mse, "kl": parts.kl, "contrast": above, "sigma": parts.sigma}


class _MapperTask(nn.Module):
    def __init__(self, mapper: nn.Module, encode: Callable[[Tensor, str], Posterior]):
        super().__init__()
        self.mapper = mapper
        self._encode = encode  # a function, so that the frozen BrainVAE is no part of this module

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": mapper_loss(self.mapper(batch.tokens), posterior_of(batch, self._encode).mean)}
