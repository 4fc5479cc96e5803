"""NeuroFlow as an estimator: one fit, then images to responses, and responses to image tokens.

model = NeuroFlow(tiny()).fit(cache, dataset.pairs("sim01", split, "train"))
responses = model.encode(cache, image_ids=test.image_ids)      # (n, V)
tokens = model.decode(test.array())                            # (n, m, d)
"""

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veca.train.parallel import join_world

from ...data.ids import Ids
from ...errors import BrainDataError, check_choice
from ...nn.gaussian import Posterior
from ...nn.losses import softclip
from ...training.estimator import BATCH
from ...training.joining import Features
from ...training.latent_model import LatentModel
from ...training.latents import posterior_of
from ...training.loop import Batch, StageResult
from ...training.recipe import TrainingStage
from ...training.run import Run, lasting
from ...training.trials import TrialData, Trials, VoxelScale
from . import recipes
from .losses import LossWeights, stage_one_loss, stage_two_loss
from .model import XFM, NeuroVAE, RoundTrip, round_trip
from .recipes import NeuroFlowRecipe

__all__ = ["FrozenDecoder", "NeuroFlow"]

TRAIN = ("projections", "vae", "vae+flow_mlp")


class NeuroFlow(LatentModel):
    """Image tokens to responses, and responses to image tokens, through one reversible flow (arXiv 2604.09817).

    A NeuroVAE turns responses into latents shaped as image tokens; a flow joins image tokens, at time 0, with latents,
    at time 1. Encoding runs it forward and decodes the latent to voxels; decoding encodes the responses and runs it
    back. Only two linears of the NeuroVAE belong to a subject; all else is shared.

    Args:
        config: `recipes.paper()`, `veca()`, `veca_cores()`, `tiny()`, any `NeuroFlowRecipe`, or one of these names.
        pairing, device: As in `BrainModel`.

    Attributes:
        vae_, flow_: The networks, the flow with its averaged weights.
        and those of `LatentModel`.
    """

    direction = "both"
    about = "images to responses and back through one reversible flow"
    stages, reversible, adapts, freezes = ("stage1", "stage2"), True, True, True
    networks = ("vae_", "flow_")
    recipe_type, named = NeuroFlowRecipe, staticmethod(recipes.named)
    recipe: NeuroFlowRecipe

    def add_subject(
        self,
        features: Features,
        responses: Trials,
        *,
        subject: str,
        train: str = "projections",
        steps: tuple[int, int] | None = None,
        image_ids: Ids | None = None,
        feature_ids: Ids | None = None,
        validation: float | None = None,
        drop_voxels: bool = False,
        alignment: str = "auto",
        progress: bool = False,
    ) -> "NeuroFlow":
        """Teach this model another subject, of any number of voxels. Experimental: the paper has one model a subject.

        Args:
            features, responses, image_ids, feature_ids, validation, drop_voxels, alignment, progress: As in `fit`;
                statistics of tokens stay those of the fit.
            subject: Name of the new subject.
            train: "projections" trains the two linears of the subject and nothing else; "vae" the whole NeuroVAE, which
                changes what it says of the others; "vae+flow_mlp" then also the MLPs of the flow.
            steps: Steps of the two stages; None is those of the recipe.

        Returns:
            This model, changed.
        """
        self._check_fitted()
        check_choice("train", train, TRAIN)
        if subject in self.subjects_:
            raise BrainDataError(f"expected a new subject beside {', '.join(self.subjects_)}, got {subject!r} again")
        grown, recipe = copy(self), self.recipe  # what fails changes nothing here
        grown.vae_, grown.flow_, grown.residual_ = deepcopy(self.vae_), deepcopy(self.flow_), dict(self.residual_)
        data = grown._join(features, responses, subject, image_ids, feature_ids, validation, drop_voxels, self)
        checked, (vae_steps, flow_steps) = grown._aligned(data, alignment), steps or (None, None)
        with join_world(self.device) as world:
            torch.manual_seed(recipe.stage1.seed)
            grown.vae_.to(world.device).add_subject(subject, int(grown.scales_[subject].kept.sum()))
            run = grown._open_run(world, data, None, 1, progress)
            own = {f"voxels_{end}.{subject}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}
            names = {f"vae.{name}" for name in own} if train == "projections" else None
            stages = [grown._train_vae(run, data, lasting(recipe.stage1, vae_steps), names)]
            if train == "vae+flow_mlp":
                names = {f"flow.{name}" for name, _ in self.flow_.named_parameters() if ".mlp." in name}
                stages.append(grown._train_flow(run, data, lasting(recipe.stage2, flow_steps), names))
            grown._finish(data, stages, checked)
        added = {"subject": subject, "train": train, "stages": grown.meta_["stages"]}
        grown.meta_ = self.meta_ | {
            "subjects": self.meta_["subjects"] | grown.meta_["subjects"],
            "added": [*self.meta_.get("added", []), added],
        }
        grown.subjects_, grown.scales_ = (*self.subjects_, subject), self.scales_ | grown.scales_
        grown.sigma_ = self.sigma_ if train == "projections" else grown.sigma_
        vars(self).update(vars(grown))
        return self

    def adapt(self, features: Features, responses: Trials, *, subject: str = "new", **options: Any) -> "NeuroFlow":
        """A copy of this model that knows one more subject; arguments are those of `add_subject`."""
        return copy(self).add_subject(features, responses, subject=subject, **options)

    @torch.no_grad()
    def decode(
        self,
        responses: Trials,
        *,
        subject: str | None = None,
        mode: str | None = None,
        solver: str | None = None,
        steps: int | None = None,
    ) -> np.ndarray:
        """Features of the images that responses (n, V) are of: fp32 (n, m, d), in the units of the extractor.

        Where tokens were reduced the way back is approximate; see `TokenScaler`.

        Args:
            responses: Responses (n, V) of one subject.
            subject: The subject; None where there is one.
            mode: "mean" for the expected tokens, which score best; "sample" for those that the solver of the flow
                finds, which vary as tokens of images do. None is the recipe's, or "sample" with a solver or steps.
            solver, steps: Solver of the flow and its steps in mode "sample"; None is the recipe's.
        """
        latents = self._latents(responses, self._subject(subject))
        device, there = self._place(), self._way(self.flow_.mean_tokens, self.flow_.decode, mode, solver, steps)
        return self._features(torch.cat([there(z.to(device)).cpu() for z in latents.split(BATCH)]).numpy())

    def frozen(self, subject: str | None = None) -> "FrozenDecoder":
        """A decoder of a subject that gradients pass through and whose parameters stay as they are.

        Args:
            subject: The subject; None where there is one.
        """
        subject = self._subject(subject)
        scale = self.scales_[subject]
        return FrozenDecoder(deepcopy(self.vae_), subject, scale, self.recipe.temperature)

    @property
    def latent_heads(self) -> tuple[str, ...]:
        return ("posterior", "retrieval") if self.recipe.vae.retrieval_head else ("posterior",)

    def round_trip(
        self,
        features: Features | None = None,
        responses: Trials | None = None,
        *,
        image_ids: Ids | None = None,
        subject: str | None = None,
        through: str = "latent",
        solver: str | None = None,
        steps: int | None = None,
    ) -> RoundTrip:
        """From image tokens, or from responses, to the other side and back; tensors in model units, on the CPU.

        Args:
            features, image_ids: Features of images to start from, or
            responses: responses to start from; exactly one of the two.
            subject: The subject; None where there is one.
            through: "latent" or "response", see `neuroflow.model.round_trip`.
            solver, steps: Solver of the flow and its steps; None is the recipe's.
        """
        subject, device = self._subject(subject), self._place()
        name, count = self._solver(solver, steps)
        start = {
            "tokens": None if features is None else self._tokens(features, image_ids).to(device),
            "responses": None if responses is None else self._measured(responses, subject).to(device),
        }
        settings = {"subject": subject, "through": through, "solver": name, "steps": count}
        trip = round_trip(self.vae_, self.flow_, **start, **settings)
        return replace(trip, start=trip.start.cpu(), forward=trip.forward.cpu(), back=trip.back.cpu())

    def _build(self, voxels: Mapping[str, int]) -> None:
        recipe = self.recipe
        self.vae_ = NeuroVAE(recipe.num_tokens, recipe.token_width, recipe.vae, voxels)
        self.flow_ = XFM(recipe.num_tokens, recipe.token_width, recipe.flow)

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        recipe = self.recipe
        torch.manual_seed(recipe.stage1.seed)
        self._build({name: int(scale.kept.sum()) for name, scale in self.scales_.items()})
        first = self._train_vae(run, data, recipe.stage1)
        torch.manual_seed(recipe.stage2.seed)
        self.flow_ = XFM(recipe.num_tokens, recipe.token_width, recipe.flow)
        return [first, self._train_flow(run, data, recipe.stage2)]

    def _train_vae(self, run: Run, data: TrialData, stage: TrainingStage, names: set[str] | None = None) -> StageResult:
        self.vae_.checkpointing = self.recipe.grad_checkpointing
        task = _VAETask(self.vae_, LossWeights.of(self.recipe, data.total_variance))
        return run.stage("vae", task, data, stage, names, data.total_variance)

    def _train_flow(
        self, run: Run, data: TrialData, stage: TrainingStage, names: set[str] | None = None
    ) -> StageResult:
        recipe = self.recipe
        self.flow_.net.checkpointing = recipe.grad_checkpointing
        self.vae_.to(run.device).eval()
        source = self._with_posteriors(data, run.device)
        return run.stage("flow", _FlowTask(self.flow_, self._posterior, recipe.flow_target), source, stage, names)

    def _posterior(self, responses: Tensor, subject: str) -> Posterior:
        return self.vae_.encode(responses, subject).posterior

    def _latent(
        self, tokens: Tensor, mode: str | None = None, solver: str | None = None, steps: int | None = None
    ) -> Tensor:
        return self._way(self.flow_.mean_latents, self.flow_.encode, mode, solver, steps)(tokens)

    def _decoder(self, subject: str) -> Callable[[Tensor], Tensor]:
        return partial(self.vae_.decode, subject=subject)

    def _latents(self, responses: Trials, subject: str, head: str = "posterior") -> Tensor:
        if head == "posterior":
            return super()._latents(responses, subject)
        return torch.cat([x.retrieval.cpu() for x in self._each(self.vae_.encode, responses, subject)])

    def _way(
        self, mean: Callable, solve: Callable, mode: str | None, solver: str | None, steps: int | None
    ) -> Callable[[Tensor], Tensor]:
        """How the flow is used in one direction."""
        asked = solver is not None or steps is not None
        mode = mode or ("sample" if asked else self.recipe.mode)
        check_choice("mode", mode, recipes.MODES)
        if mode == "mean" and asked:
            raise BrainDataError(f"expected no solver in mode 'mean', got solver={solver!r}, steps={steps}")
        name, count = self._solver(solver, steps)
        return mean if mode == "mean" else partial(solve, solver=name, steps=count)

    def _solver(self, solver: str | None, steps: int | None) -> tuple[str, int]:
        return solver or self.recipe.solver, self.recipe.steps if steps is None else steps


class FrozenDecoder(nn.Module):
    """Latents of responses in the space of image tokens, for other models that are trained through them.

    Args:
        vae: The NeuroVAE, which is frozen.
        subject: Subject whose responses it reads.
        scale: Scale of these responses.
        temperature: Temperature of SoftCLIP.
    """

    kept: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, vae: NeuroVAE, subject: str, scale: VoxelScale, temperature: float):
        super().__init__()
        self.vae, self.subject, self.temperature = vae.requires_grad_(False).eval(), subject, temperature
        for name in ("kept", "mean", "std"):
            self.register_buffer(name, torch.from_numpy(getattr(scale, name)), persistent=False)

    def forward(self, responses: Tensor) -> Tensor:
        """Means of the posteriors (B, m, d) of responses (B, V) in the units of the caller."""
        return self.vae.encode((responses[:, self.kept] - self.mean) / self.std, self.subject).posterior.mean

    def loss(self, responses: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        """SoftCLIP of the latents with image tokens (B, m, d) in model units; a scalar. `ids` are not needed."""
        return softclip(self(responses).flatten(1), target.flatten(1), self.temperature)


class _VAETask(nn.Module):
    def __init__(self, vae: NeuroVAE, weights: LossWeights):
        super().__init__()
        self.vae, self.weights = vae, weights

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        parts = stage_one_loss(self.vae, batch.responses, batch.tokens, self.weights, batch.subject, generator)
        above = {"contrast": parts.contrast - parts.floor, "cycle": parts.cycle - parts.floor}
        return {"loss": parts.total, "mse": parts.mse, "kl": parts.kl, **above, "sigma": parts.sigma}


class _FlowTask(nn.Module):
    def __init__(self, flow: XFM, encode: Callable, target: str):
        super().__init__()
        self.flow, self.target = flow, target
        self._encode = encode  # a function, so that the frozen NeuroVAE is no part of this module

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        posterior = posterior_of(batch, self._encode)
        return {"loss": stage_two_loss(self.flow, batch.tokens, posterior, self.target, generator)}
