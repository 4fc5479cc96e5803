"""BrainCoDec as an estimator: the embedding of an image from the encoders of any voxels and their responses to it.

model = BrainCoDec("tiny").fit(cache, {"sim02": pairs2, "sim03": pairs3})
new = model.adapt(cache, context, subject="sim01")     # no gradient step
embeddings = new.tokens(new.decode(test))              # (n, 1, E), of length 1
"""

import logging
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...baselines import GaussianInversion
from ...data import Pairs
from ...errors import AxisError, BrainDataError, check_choice
from ...training.batches import RowNumbers
from ...training.estimator import BATCH
from ...training.joining import Features
from ...training.loop import StageResult
from ...training.run import Run
from ...training.trials import Recording, TrialData, Trials
from ...training.voxels import ImageRows
from . import recipes
from .in_context import Cohort, InContextEncoder
from .model import ContextDecoder, ContextEncoder
from .reading import EncoderModel, maps_at_once
from .recipes import BrainCoDecRecipe, InContextRecipe
from .runs import encoder_rows, stored_runs
from .tasks import RunDecoding, SyntheticDecoding, voxel_tokens

__all__ = ["BrainCoDec"]

_log = logging.getLogger(__name__)
_VOXELS = 4000  # voxels at most that are read together


class BrainCoDec(EncoderModel):
    """Image embeddings from responses, by a transformer that reads the encoders of voxels (arXiv 2604.08537).

    Stage 1 reads the encoder of each voxel from a context, see `InContextEncoder`. Stage 2 reads one token for each
    voxel, its encoder and its response to an image, and writes the embedding of the image. So any voxels of any subject
    can be decoded, without anatomy and without images that subjects have in common.

    Args:
        config: A recipe of `recipes`, or its name.
        pairing, device: As in `BrainModel`.

    Attributes:
        decoder_: The network of stage 2.
        mode_: How it decodes: the "network" of stage 2, or "inversion" of the encoders. `recipe.mode` says how this is
            chosen.
        inversion_: `GaussianInversion` with the prior of the train images, the closed form beside `decoder_`.
        and those of `EncoderModel`.
    """

    direction = "decode"
    about = "responses to image embeddings, read from the encoders of any voxels"
    stages = ("synthetic", "extend", "finetune")
    networks = ("encoder_", "decoder_")
    masks = True
    recipe_type, named = BrainCoDecRecipe, staticmethod(recipes.named)
    recipe: BrainCoDecRecipe
    _stage1: InContextEncoder | None = None  # as it was given to `fit`

    @property
    def encoder_recipe(self) -> InContextRecipe:
        return self.recipe.stage1

    def decode(
        self,
        responses: Trials,
        *,
        subject: str | None = None,
        mode: str | None = None,
        method: str | None = None,
        voxels: np.ndarray | None = None,
        max_voxels: int = _VOXELS,
        voxel_choice: str = "uniform",
        draws: int = 1,
        seed: int = 0,
    ) -> np.ndarray:
        """Pooled features of the images that responses are of.

        Args:
            responses: Responses (n, V) of one subject, averaged over repeats.
            subject: The subject; None where there is one.
            mode: "network" is stage 2. "inversion" inverts the same encoders by Bayes' rule, see `GaussianInversion`.
                None is `mode_`.
            method: Encoders that are read: "in_context", "ridge" or "prior_ridge"; None is what `adapt` selected.
            voxels: Mask (V,) of the voxels that are used, such as a region; None uses all.
            max_voxels: Number of voxels that the network reads at most.
            voxel_choice: How they are chosen: "uniform" at random, or "snr" by explained over residual variance in the
                context.
            draws: Number of random choices whose embeddings are averaged.
            seed: Seed of the choices.

        Returns:
            fp32 (n, p), of mean length. `tokens` makes the embeddings of length 1 of them.

        Raises:
            LeakageError: Responses of test images that are in the context.
            AxisError: Other voxels than those of the fit, or an empty mask.
        """
        subject = self._subject(subject)
        mode = check_choice("mode", mode or self.mode_, ("network", "inversion"))
        check_choice("voxel_choice", voxel_choice, ("uniform", "snr"))
        if min(max_voxels, draws) < 1:
            raise BrainDataError(f"expected max_voxels and draws of at least 1, got {max_voxels} and {draws}")
        values, model = self._measured(responses, subject), self.voxel_model(subject, method)
        self._check_trials(responses, model)
        if voxels is not None:
            voxels = self._kept(voxels, subject)
            values, model = values[:, torch.from_numpy(voxels)], model.select(voxels)
        if mode == "inversion":
            found: Any = self.inversion_.decode(model, values.numpy())
            return self._features(_unit(found)[:, None])
        tokens = torch.tensor(encoder_rows(model))
        self._check_count(min(len(tokens), max_voxels), subject)
        total: Any = 0.0
        for draw in range(draws):
            rows = self._chosen(model, max_voxels, voxel_choice, (seed, draw))
            total = total + self._decoded(tokens[rows], values[:, rows])
            if voxel_choice == "snr" or len(rows) == len(tokens):
                break
        return self._features(_unit(total)[:, None])

    def reference_decodings(self, responses: Trials, **options: Any) -> dict[str, np.ndarray]:
        ways = {"network": ("network of stage 2", None), "inversion": ("inversion of its encoders", None)}
        others = [(mode, *way) for mode, way in ways.items() if mode != self.mode_]
        others += [
            ("inversion", "inversion of ridge", "ridge"),
            ("inversion", "inversion of prior ridge", "prior_ridge"),
        ]
        return {name: self.decode(responses, mode=mode, method=method, **options) for mode, name, method in others}

    @torch.no_grad()
    def voxel_attention(self, responses: Trials, *, subject: str | None = None) -> np.ndarray:
        """How much each voxel counts for the decoded embedding of each image, by attention rollout, fp32 (n, V).

        Voxels that were dropped have 0.
        """
        subject = self._subject(subject)
        values, model = self._measured(responses, subject), self.voxel_model(subject)
        tokens = torch.tensor(encoder_rows(model))
        device = self._place()
        shares = []
        for part in values.split(maps_at_once(len(tokens))):
            read = voxel_tokens(tokens.to(device), part.to(device), self.recipe)
            shares.append(self.decoder_(read, attention=True)[1].cpu())
        kept = self.scales_[subject].kept
        found = np.zeros((len(values), len(kept)), np.float32)
        found[:, kept] = torch.cat(shares).numpy()
        return found

    # parts of decoding

    def _check_trials(self, responses: Trials, model: Any) -> None:
        """Refuse test images of the context, and warn of single trials."""
        if isinstance(responses, Pairs) and responses.part == "test":
            model.check_unseen(responses.image_ids)
        ids = Recording.of(responses).image_ids
        if len(ids) and ids.all() and len(np.unique(ids)) < len(ids):
            _log.warning("expected responses averaged over repeats, as in the training, got single trials")

    def _check_count(self, count: int, subject: str) -> None:
        """Warn of more voxels than a batch of the training had."""
        trained = [getattr(self.recipe, f"{name}_voxels")[1] for name in self.stages if getattr(self.recipe, name)]
        if trained and count > max(trained):
            _log.warning(
                "%d voxels of %s are more than the %d of the training, see max_voxels", count, subject, max(trained)
            )

    def _kept(self, voxels: np.ndarray, subject: str) -> np.ndarray:
        """A mask over all voxels as one over those of the model."""
        mask, kept = np.asarray(voxels), self.scales_[subject].kept
        if mask.dtype != bool or mask.shape != kept.shape or not (mask & kept).any():
            raise AxisError(
                f"expected booleans of {len(kept)} voxels, some of them True, got {mask.dtype} {mask.shape}"
            )
        return mask[kept]

    def _chosen(self, model: Any, most: int, choice: str, seed: tuple[int, int]) -> np.ndarray:
        """Voxels that the network reads, in their order."""
        count = len(model.intercept_)
        if count <= most:
            return np.arange(count)
        if choice == "uniform":
            return np.sort(np.random.default_rng(seed).permutation(count)[:most])
        explained = np.square(model.coef_).sum(0) / np.maximum(model.residual_var_, 1e-12)
        return np.sort(np.argsort(-explained, kind="stable")[:most])

    @torch.no_grad()
    def _decoded(self, tokens: Tensor, values: Tensor) -> np.ndarray:
        """Unit embeddings (n, E) from encoders (V, E + 2) and responses (n, V)."""
        device = self._place()
        found = [
            self.decoder_(voxel_tokens(tokens.to(device), part.to(device), self.recipe)).float().cpu()
            for part in values.split(_images_at_once(len(tokens)))
        ]
        return _unit(torch.cat(found).numpy())

    # fitting

    def fit(
        self,
        features: Features,
        responses: Trials | Mapping[str, Trials],
        *,
        stage1: InContextEncoder | None = None,
        **options: Any,
    ) -> "BrainCoDec":
        """Train both stages.

        Args:
            features, responses, options: As in `BrainModel.fit`.
            stage1: A fitted model that reads the encoders of new subjects, which is not trained further; None trains
                one. Networks that read the training subjects are trained in any case, but for `cross_fit` "single".

        Raises:
            BrainDataError: Another recipe of stage 1, or one training subject where `cross_fit` needs others.
            and those of `BrainModel.fit`.
        """
        if stage1 is not None:
            stage1._check_fitted()
            expected, got = self.recipe.stage1.to_json(), stage1.recipe.to_json()
            changed = ", ".join(f"{key}={got[key]}" for key in got if got[key] != expected[key])
            if changed:
                raise BrainDataError(f"expected a stage1 of the recipe's stage1, got one with {changed}")
        self._stage1 = stage1
        return super().fit(features, responses, **options)

    def _join(self, *arguments: Any, known: EncoderModel | None = None) -> TrialData:
        if known is not None or self._stage1 is None:
            return super()._join(*arguments, known=known)
        data = super()._join(*arguments, known=self._stage1)
        scaler = copy(self.scaler_)
        assert scaler is not None  # recipes of embeddings have one
        scaler.fitted_ids |= frozenset(data.train_ids())  # stage 2 may see images that stage 1 has not seen
        self.scaler_ = scaler
        return data

    def _build(self, voxels: Mapping[str, int]) -> None:
        width = self.token_shape_[1]
        self.encoder_ = ContextEncoder.of(self.recipe.stage1, width)
        self.decoder_ = ContextDecoder.of(self.recipe, width)

    def _take(self, known: Self) -> None:
        super()._take(known)
        self.inversion_, self.mode_ = known.inversion_, known.mode_

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        recipe, cohort = self.recipe, Cohort.of(data)
        if recipe.cross_fit != "single" and len(cohort.subjects) < 2:
            raise BrainDataError(
                f"expected two training subjects or more with cross_fit={recipe.cross_fit!r}, which reads the encoders "
                f"of each by a network that has not seen it, got {', '.join(cohort.subjects)}"
            )
        results, encoders = self._train_encoders(run, cohort)
        self.inversion_ = GaussianInversion().fit(cohort.bank.numpy())
        seed = self._seed()
        torch.manual_seed(seed)
        self.decoder_ = ContextDecoder.of(recipe, self.token_shape_[1])
        self.decoder_.checkpointing = recipe.grad_checkpointing
        for encoder in encoders.values():
            encoder.to(run.device).eval()
        runs = stored_runs(encoders, cohort.subjects, recipe.runs, recipe.run_draws, seed)
        for name in self.stages:
            stage = getattr(recipe, name)
            if stage is None:
                continue
            limits = getattr(recipe, f"{name}_voxels")
            if name == "finetune":
                task: nn.Module = RunDecoding(self.decoder_, recipe, runs, limits)
                source: Any = ImageRows(cohort.subjects)
            else:
                task = SyntheticDecoding(self.decoder_, recipe, runs, cohort.bank, limits)
                source = RowNumbers("bank", len(cohort.bank))
            results.append(run.stage(name, task, source, stage))
        return results

    def _train_encoders(self, run: Run, cohort: Cohort) -> tuple[list[StageResult], dict[str, ContextEncoder]]:
        """Train the network of stage 1, and those that read the training subjects, see `recipe.cross_fit`."""
        recipe, names = self.recipe, list(cohort.subjects)
        first = InContextEncoder(recipe.stage1, self.pairing, self.device)
        first.token_shape_ = self.token_shape_
        results: list[StageResult] = []
        others: dict[str, ContextEncoder] = {}
        if recipe.cross_fit == "nested":
            for name in names:
                first.train_on(run, cohort.without(name), f"stage1_without_{name}_")
                others[name] = first.encoder_
        elif recipe.cross_fit == "finetune":
            first.begin()
            results += first.train_on(run, cohort, "stage1_", ("pretrain", "extend"))
            start = deepcopy(first.encoder_)
            for name in names:
                first.encoder_ = deepcopy(start)
                first.train_on(run, cohort.without(name), f"stage1_without_{name}_", ("finetune",))
                others[name] = first.encoder_
            first.encoder_ = start
        if self._stage1 is not None:
            self.encoder_, self.prior_ = self._stage1.encoder_, self._stage1.prior_
            return [], others or dict.fromkeys(names, self.encoder_)
        last = ("finetune",) if recipe.cross_fit == "finetune" else None
        results += first.train_on(run, cohort, "stage1_", last)
        self.encoder_, self.prior_ = first.encoder_, cohort.prior
        return results, others or dict.fromkeys(names, self.encoder_)

    def _finish(self, data: TrialData, stages: Sequence[StageResult], checked: Mapping[str, Any]) -> None:
        self._place()
        self._read(data, self.encoder_recipe.context[1])
        self.mode_, cosines = self._chosen_mode(data)
        super()._finish(data, stages, checked)
        self.meta_ |= {"cross_fit": self.recipe.cross_fit, "mode": self.mode_, "validation_cosines": cosines}
        if self.recipe.cross_fit == "single":
            _log.warning("cross_fit='single': encoders of training subjects were read by a network that saw them")

    def _chosen_mode(self, data: TrialData) -> tuple[str, dict[str, float]]:
        """How to decode, and the mean cosine of each way on validation images of the training subjects."""
        found: dict[str, list[np.ndarray]] = {"network": [], "inversion": []}
        for name in data.recordings:
            ids, model = data.images(name, "val"), self.voxels_[name]["in_context"]
            if len(ids):
                truth, values = data.tokens.get(ids)[:, 0], data.means(name, ids)
                read = self._decoded(torch.tensor(encoder_rows(model)), torch.tensor(values))
                found["network"].append((read * truth).sum(1))
                inverted: Any = self.inversion_.decode(model, values)
                found["inversion"].append((_unit(inverted) * truth).sum(1))
        cosines = {mode: float(np.concatenate(parts).mean()) for mode, parts in found.items() if parts}
        if self.recipe.mode != "chosen":
            return self.recipe.mode, cosines
        return max(cosines, key=cosines.__getitem__, default="network"), cosines

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, texts = super()._statistics()
        found = {"mean": self.inversion_.mean_, "covariance": self.inversion_.covariance_}
        arrays |= {f"bank.{key}": torch.from_numpy(np.array(value)) for key, value in found.items()}
        return arrays, {"mode": self.mode_, **texts}

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        super()._restore(arrays, texts, subjects)
        self.mode_, self.inversion_ = texts["mode"], GaussianInversion()
        self.inversion_.mean_, self.inversion_.covariance_ = (
            arrays.pop(f"bank.{key}").numpy() for key in ("mean", "covariance")
        )


def _images_at_once(voxels: int) -> int:
    """Images that are decoded together, so that their tokens stay below 2^18."""
    return max(1, min(BATCH, 2**18 // voxels))


def _unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
