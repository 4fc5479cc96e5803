"""The base of systems with a variational latent in the shape of image tokens: draws with noise, and latents.

A system says what the posterior of responses is, which latent an image has, and what a latent decodes to.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.ids import Ids
from ..errors import AxisError, check_choice
from ..nn.gaussian import Posterior
from ..nn.noise import ResidualNoise, draw_responses, mean_sigma
from .estimator import BATCH, BrainModel
from .joining import Features
from .latents import LatentData
from .loop import StageResult
from .recipe import LatentRecipe
from .run import generator_of
from .trials import TrialData, Trials

__all__ = ["LatentModel"]

_NOISE_BYTES = 2**30  # of training responses that residual noise is fitted to
_NOISE_RANK = 10


class LatentModel(BrainModel):
    """A `BrainModel` that encodes through a latent (m, d) of responses; its recipe is a `LatentRecipe`.

    Attributes:
        sigma_: (m, d) mean posterior standard deviation of training trials.
        residual_: `ResidualNoise` by subject.
        and those of `BrainModel`.
    """

    recipe: LatentRecipe

    @property
    def latent_heads(self) -> tuple[str, ...]:
        return ("posterior",)

    def predict(
        self,
        features: Features,
        *,
        image_ids: Ids | None = None,
        subject: str | None = None,
        n_trials: int = 1,
        noise: str = "none",
        noise_scale: float = 1.0,
        seed: int | None = None,
        **sampling: Any,
    ) -> np.ndarray:
        """Responses to images.

        Args:
            features: An array (n, m, d), or a source of features with `image_ids`.
            image_ids: Images to predict.
            subject: Subject whose voxels are predicted; None where there is one.
            n_trials: Draws of each image. The whole stack is returned; averaging is for the caller.
            noise: "none"; "unit" or "posterior" in the latent; "residual", fitted to trials (see
                `brainmodels.nn.noise`).
            noise_scale: Factor of the noise.
            seed: Seed of the noise; None draws differently every time.
            sampling: Further options of the system. NeuroFlow takes `mode`, "mean" for the expected latent of an image
                or "sample" for the one that the solver of its flow finds, with `solver` and `steps`.

        Returns:
            fp32 (n, V), or (n, n_trials, V) where n_trials > 1, in the units given to `fit`; NaN in dropped voxels.
        """
        subject, tokens = self._subject(subject), self._tokens(features, image_ids)
        device, decode = self._place(), self._decoder(subject)
        scales = {"sigma": self.sigma_, "residual": self.residual_.get(subject), "generator": generator_of(seed)}
        draw = partial(draw_responses, decode, num_trials=n_trials, noise=noise, noise_scale=noise_scale, **scales)
        with torch.no_grad():
            found = [draw(self._latent(part.to(device), **sampling)).cpu().numpy() for part in tokens.split(BATCH)]
        stack = self.scales_[subject].undo(np.concatenate(found))
        return stack if n_trials > 1 else stack[:, 0]

    def latents(self, responses: Trials, *, subject: str | None = None, head: str = "posterior") -> np.ndarray:
        """Latents of responses in the space of image tokens, fp32 (n, m, d) in model units.

        Args:
            responses: Responses (n, V) of one subject.
            subject: The subject; None where there is one.
            head: One of `latent_heads`; "posterior" is the mean of the posterior.
        """
        check_choice("head", head, self.latent_heads)
        return self._latents(responses, self._subject(subject), head).numpy()

    def posterior(self, responses: Trials, *, subject: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the posterior of responses (n, V), each fp32 (n, m, d) in model units."""
        found = self._each(self._posterior, responses, self._subject(subject))
        mean, std = (torch.cat([getattr(x, key).cpu() for x in found]).numpy() for key in ("mean", "std"))
        return mean, std

    # what a system says

    def _posterior(self, responses: Tensor, subject: str) -> Posterior:
        """Posterior of responses (B, V kept) in model units, where the networks are."""
        raise NotImplementedError

    def _latent(self, tokens: Tensor, **sampling: Any) -> Tensor:
        """Latents (B, m, d) of image tokens (B, m, d), both in model units."""
        raise NotImplementedError

    def _decoder(self, subject: str) -> Callable[[Tensor], Tensor]:
        """Function from latents (B, m, d) to responses (B, V kept) of a subject, in model units."""
        raise NotImplementedError

    # what follows from it

    def _latents(self, responses: Trials, subject: str, head: str = "posterior") -> Tensor:
        """Latents (n, m, d) on the CPU."""
        return torch.cat([x.mean.cpu() for x in self._each(self._posterior, responses, subject)])

    @torch.no_grad()
    def _each(self, ask: Callable[[Tensor, str], Any], responses: Trials, subject: str) -> list[Any]:
        """What a function of responses and subject returns for one batch after the other."""
        values, device = self._measured(responses, subject), self._place()
        return [ask(part.to(device), subject) for part in values.split(BATCH)]

    def _with_posteriors(self, data: TrialData, device: torch.device) -> TrialData | LatentData:
        """Trials for a second stage: the posterior of each is computed once where all of them fit."""
        if not LatentData.fits(data, self.recipe.num_tokens, self.recipe.token_width):
            return data
        return LatentData(data, self._posterior, device)

    def _check_tokens(self, shape: tuple[int, int]) -> None:
        wanted = (self.recipe.num_tokens, self.recipe.token_width)
        if tuple(shape) != wanted:
            raise AxisError(
                f"expected tokens {wanted}, as recipe {self.recipe.name!r} has, got {tuple(shape)}; take "
                f"dataclasses.replace(recipe, num_tokens={shape[0]}, token_width={shape[1]}) with sizes to match, or "
                "reduce=(side, width)"
            )

    def _forget(self) -> None:
        super()._forget()
        self.residual_ = {}

    def _finish(self, data: TrialData, stages: Sequence[StageResult], checked: Mapping[str, Any]) -> None:
        """Statistics of the trained networks: posterior sigma, and how trials vary; then the facts of the fit."""
        device = self._place()
        with torch.no_grad():
            batches = data.batches("train", BATCH)
            self.sigma_ = mean_sigma(self._posterior(x.responses.to(device), x.subject) for x in batches)
        noises = {name: self._fit_noise(data, name) for name in data.sizes("train")}
        self.residual_ |= {name: noise for name, noise in noises.items() if noise is not None}
        super()._finish(data, stages, checked)

    def _fit_noise(self, data: TrialData, subject: str) -> ResidualNoise | None:
        """How training trials vary around the mean of their image, or around predictions where none was repeated."""
        rows = np.arange(data.sizes("train")[subject])
        most = max(_NOISE_BYTES // (4 * int(self.scales_[subject].kept.sum())), 2)
        recording, own = data.recordings[subject], data.rows["train"][subject]
        order = np.argsort(recording.image_ids[own], kind="stable")  # whole images
        rows = rows[order][:most]
        batch = [data.batch("train", subject, part) for part in np.array_split(rows, max(len(rows) // 256, 1))]
        responses = torch.cat([item.responses for item in batch]).numpy()
        ids = recording.image_ids[own[rows]]
        _, counts = np.unique(ids, return_counts=True)
        residuals = counts[counts > 1].sum() or len(ids)  # images with one trial count only where there are no others
        rank = min(_NOISE_RANK, responses.shape[1] - 1, int(residuals) // 4)
        if rank < 1:
            return None
        predicted = None
        if counts.max() == 1:
            predicted = np.concatenate([self._predicted(item.tokens, subject) for item in batch])
        return ResidualNoise.fit(responses, ids, predicted, rank)

    def _predicted(self, tokens: Tensor, subject: str) -> np.ndarray:
        """Responses (n, V kept) in model units, without noise, to tokens (n, m, d) in model units."""
        with torch.no_grad():
            return self._decoder(subject)(self._latent(tokens.to(self._place()))).cpu().numpy()

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, texts = super()._statistics()
        arrays["sigma"], around = self.sigma_.contiguous(), {}
        for name, noise in self.residual_.items():
            arrays |= {f"residual.{name}.factors": noise.factors.contiguous(), f"residual.{name}.spread": noise.spread}
            around[name] = noise.around
        return arrays, {"residual": around, **texts}

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        super()._restore(arrays, texts, subjects)
        self.residual_ = {
            name: ResidualNoise(arrays.pop(f"residual.{name}.factors"), arrays.pop(f"residual.{name}.spread"), around)
            for name, around in texts["residual"].items()
        }
        self.sigma_ = arrays.pop("sigma")
