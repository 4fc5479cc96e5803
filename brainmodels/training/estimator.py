"""What the estimators of all systems share: joining what they are given, units, folders.

A system's estimator adds its networks, `fit` and what it predicts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from veca.train.parallel import World, join_world

from ..errors import AxisError, BrainDataError, IdError, NormalizationError, check_choice, near_names
from ..features import ArrayFeatures, FeatureSource, TokenScaler
from ..nn.gaussian import Posterior
from ..nn.noise import ResidualNoise, mean_sigma
from ..versions import library_versions
from .files import FORMAT, read_model, write_model
from .loop import StageResult
from .recipe import ModelRecipe
from .run import Run, check_run
from .trials import (
    Recording,
    TokenTable,
    TrialData,
    Trials,
    VoxelScale,
    check_training,
    held_out,
    part_rows,
    scaled_tokens,
)

__all__ = ["BATCH", "BrainModel", "Features"]

_NOISE_BYTES = 2**30  # of training responses that residual noise is fitted to
_NOISE_RANK = 10
BATCH = 256  # samples that are predicted together

Features = FeatureSource | np.ndarray | Tensor


class BrainModel:
    """An estimator of tokens of images and responses to them.

    Args:
        config: a recipe of the system, or its name.
        pairing: "ids" joins features and responses by image id; "rows" takes row i of the features for trial i, as
            scikit-learn does, which hides repeats from the model and is recorded.
        device: where it computes; None is a GPU where there is one.

    Attributes:
        recipe: how it is built, trained and used.
        subjects_: of the fit.
        scales_: `VoxelScale` by subject.
        scaler_: `TokenScaler` of the tokens; None where the recipe takes them as they are.
        sigma_: (m, d) mean posterior standard deviation of training trials.
        residual_: `ResidualNoise` by subject.
        meta_: facts of the fit, as JSON: versions, fingerprint of the features, normaliser and voxels by subject, hash
            of training images, stages with steps and losses.
    """

    networks: ClassVar[tuple[str, ...]]  # names of attributes that hold the modules
    recipe_type: ClassVar[type[ModelRecipe]]
    named: ClassVar[Callable[[str], ModelRecipe]]  # a recipe by its name

    def __init__(self, config: ModelRecipe | str, pairing: str = "ids", device: str | torch.device | None = None):
        check_choice("pairing", pairing, ("ids", "rows"))
        self.config, self.pairing, self.device = config, pairing, device
        self.recipe = self.named(config) if isinstance(config, str) else config

    def _build(self, voxels: Mapping[str, int]) -> None:
        """Make the networks, for subjects with so many voxels."""
        raise NotImplementedError

    # fitting

    def fit(
        self,
        features: Features,
        responses: Trials | Mapping[str, Trials],
        *,
        subject: str = "default",
        image_ids: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        feature_ids: Sequence[str] | None = None,
        validation: float | None = None,
        drop_voxels: bool = False,
        alignment: str = "auto",
        out: str | Path | None = None,
        save_every: int = 500,
        progress: bool = False,
    ) -> Self:
        """Train from the start, or go on where a run in `out` was interrupted. Under `torchrun`, on all its processes.

        Args:
            features: a `FeatureCache`, `ArrayFeatures`, or an array (images, m, d) with `feature_ids`.
            responses: train `Pairs`, `Responses` or a `Subject`, or an array (trials, V) with `image_ids`; a dictionary
                by subject trains them together. Each trial is one pair; single trials are expected.
            subject: name of the only subject.
            image_ids: of the trials of an array, by subject where there are several.
            feature_ids: of the rows of an array of features.
            validation: share of the training images that is held out for the early stop; None is the recipe's.
            drop_voxels: leave out voxels that are constant or not finite, an error otherwise.
            alignment: "auto" tests that responses know their images before anything is trained, "off" does not.
            out: folder for checkpoints and the log of the run; None keeps none.
            save_every: steps between checkpoints.
            progress: show a bar.

        Raises:
            BrainDataError: ids, shapes, scales or values are not what they should be; see the message.
            AlignmentError: responses identify their images at chance.
        """
        vars(self).pop("meta_", None)  # a fit that fails leaves no mixture of two
        data = self._join(features, responses, subject, image_ids, feature_ids, validation, drop_voxels)
        checked = self._aligned(data, alignment)
        self.residual_ = {}
        with join_world(self.device) as world:
            run = self._open_run(world, data, out, save_every, progress)
            self._finish(data, self._train(run, data), checked)
        return self

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        """Build the networks and train all stages."""
        raise NotImplementedError

    def _posterior(self, responses: Tensor, subject: str) -> Posterior:
        """Of responses (B, V kept) in model units, where the networks are."""
        raise NotImplementedError

    def _aligned(self, data: TrialData, alignment: str) -> dict[str, Any]:
        check_choice("alignment", alignment, ("auto", "off"))
        return data.check_alignment() if alignment == "auto" else {}

    def _open_run(self, world: World, data: TrialData, out: str | Path | None, save_every: int, progress: bool) -> Run:
        """What all stages share; a folder of another run is refused."""
        self.device = world.device
        if out is not None:
            content = {"recipe": self.recipe.to_json(), "features": self.fingerprint_, "data": data.signature()}
            check_run(Path(out) / "run.json", json.loads(json.dumps(content)), world)
        options = {"save_every": save_every, "progress": progress}
        return Run(world, self.recipe.precision, None if out is None else Path(out), options)

    def _finish(self, data: TrialData, stages: Sequence[StageResult], checked: Mapping[str, Any]) -> None:
        """Statistics of the trained networks, and the facts of the fit."""
        device = self._place()
        with torch.no_grad():
            batches = data.batches("train", BATCH)
            self.sigma_ = mean_sigma(self._posterior(x.responses.to(device), x.subject) for x in batches)
        for name in data.sizes("train"):
            noise = self._fit_noise(data, name)
            if noise is not None:
                self.residual_[name] = noise
        self._note(data, stages, checked)

    def _join(
        self,
        features: Features,
        responses: Trials | Mapping[str, Trials],
        subject: str,
        image_ids: Any,
        feature_ids: Sequence[str] | None,
        validation: float | None,
        drop_voxels: bool,
        known: "BrainModel | None" = None,
    ) -> TrialData:
        """Training data in model units; sets what the fit knows of them. `known` has the tokens' statistics already."""
        recipe = self.recipe
        given = responses if isinstance(responses, Mapping) else {subject: responses}
        ids = image_ids if isinstance(image_ids, Mapping) else dict.fromkeys(given, image_ids)
        for part in given.values():
            check_training(part)
        source = self._source(features, feature_ids)
        recordings = {name: self._recording(part, ids.get(name), len(source)) for name, part in given.items()}
        share = recipe.validation if validation is None else validation
        shown = sorted({str(x) for item in recordings.values() for x in item.image_ids})
        held = held_out(shown, share)
        rows = {name: part_rows(item, held) for name, item in recordings.items()}
        parts = {part: {name: found[part] for name, found in rows.items()} for part in ("train", "val")}
        train = sorted({str(x) for name, item in recordings.items() for x in item.image_ids[parts["train"][name]]})
        if known is not None:
            _check_fingerprint(known.fingerprint_, source.fingerprint)
            self.fingerprint_, self.scaler_ = known.fingerprint_, known.scaler_
        else:
            scaler = TokenScaler(recipe.what, reduce=recipe.reduce) if recipe.tokens == "scaled" else None
            self.fingerprint_, self.scaler_ = source.fingerprint, scaler and scaler.fit(source, train)
        table = TokenTable(source, self.scaler_, recipe.what, shown)
        self._check_tokens(table.shape)
        self.scales_ = {
            name: VoxelScale.fit(item, parts["train"][name], recipe.response_scale, drop_voxels)
            for name, item in recordings.items()
        }
        self.subjects_ = tuple(recordings)
        return TrialData(table, recordings, self.scales_, parts)

    def _recording(self, responses: Trials, image_ids: Sequence[str] | None, count: int) -> Recording:
        if self.pairing == "ids":
            recording = Recording.of(responses, image_ids)
            if not recording.image_ids.all():
                raise IdError(
                    "expected image_ids of the trials, got responses without; pass image_ids=, or pairing='rows' where "
                    "row i of the features belongs to trial i"
                )
            return recording
        if image_ids is not None:
            raise IdError("expected no image_ids with pairing='rows', which joins by position, got some")
        recording = Recording.of(responses)
        if len(recording) != count:
            raise AxisError(f"expected a row of features for each of {len(recording)} trials, got {count}")
        return replace(recording, image_ids=np.array(_row_ids(count)))

    def _source(self, features: Features, feature_ids: Sequence[str] | None) -> FeatureSource:
        if self.pairing == "rows":
            if feature_ids is not None or not isinstance(features, np.ndarray | Tensor):
                got = "feature_ids" if feature_ids is not None else type(features).__name__
                raise BrainDataError(f"expected an array of features without ids with pairing='rows', got {got}")
            return ArrayFeatures(features, _row_ids(len(features)))
        if isinstance(features, np.ndarray | Tensor):
            if feature_ids is None:
                raise IdError("expected feature_ids, one for each row of the features, got none")
            return ArrayFeatures(features, feature_ids)
        if feature_ids is not None:
            raise IdError(f"expected no feature_ids with {type(features).__name__}, which has its own, got some")
        return features

    def _check_tokens(self, shape: tuple[int, int]) -> None:
        wanted = (self.recipe.num_tokens, self.recipe.token_width)
        if shape != wanted:
            raise AxisError(
                f"expected tokens {wanted}, as recipe {self.recipe.name!r} has, got {shape}; take "
                f"dataclasses.replace(recipe, num_tokens={shape[0]}, token_width={shape[1]}) with sizes to match, or "
                "reduce=(side, width)"
            )

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
        raise NotImplementedError

    # use

    def tokens(self, features: Features, image_ids: Sequence[str] | None = None) -> np.ndarray:
        """Features as the model sees them: fp32 (n, m, d), reduced and scaled as in the fit."""
        return self._tokens(features, image_ids).numpy()

    def _tokens(self, features: Features, image_ids: Sequence[str] | None) -> Tensor:
        """Tokens (n, m, d) in model units: rows of an array, or of a source in the order of `image_ids`."""
        self._check_fitted()
        if isinstance(features, np.ndarray | Tensor):
            if image_ids is not None:
                raise IdError("expected no image_ids with an array, whose rows are predicted in order, got some")
            values = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
        else:
            _check_fingerprint(self.fingerprint_, features.fingerprint)
            if image_ids is None:
                raise IdError("expected image_ids, the images to predict, got none")
            values = features.get(image_ids, self.recipe.what)
        tokens = scaled_tokens(np.asarray(values, np.float32), self.scaler_)
        self._check_tokens(tokens.shape[1:])
        bad = ~np.isfinite(tokens).all((1, 2))
        if bad.any():
            raise BrainDataError(f"expected finite features, got others in row {np.argmax(bad)}")
        return torch.from_numpy(tokens)

    def predict(self, features: Features, **options: Any) -> np.ndarray:
        """Responses to images."""
        raise NotImplementedError

    def score(self, features: Features, responses: Trials, **options: Any) -> np.ndarray:
        """R^2 of each voxel, fp64 (V,): trial i is compared with the prediction for row i of the features.

        1 - sum (y - p)^2 / sum (y - mean y)^2; NaN for voxels that are constant here or were dropped. `options` are of
        `predict`: `image_ids` where features are no array, `subject` where there are several.
        """
        from ..metrics.encoding import r2

        recording, predicted = Recording.of(responses), self.predict(features, **options)
        measured = recording.read(np.arange(len(recording)))
        measured[:, ~self.scales_[self._subject(options.get("subject"))].kept] = np.nan
        return r2(measured, predicted, axis=0)

    def _features(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens in model units as features of the caller."""
        tokens = tokens[:, 0] if self.recipe.what == "pooled" else tokens
        return tokens if self.scaler_ is None else self.scaler_.inverse_transform(tokens)

    def _measured(self, responses: Trials, subject: str) -> Tensor:
        """Responses (n, V kept) in model units."""
        self._check_fitted()
        recording = Recording.of(responses, None)
        known = self.meta_["subjects"][subject]
        if known["voxels"] and recording.voxels and known["voxels"] != recording.voxels:
            raise AxisError(
                f"expected the voxels of {subject} in the order of the fit ({known['voxels']}), got others "
                f"({recording.voxels})"
            )
        if "unknown" not in (known["normalizer"], recording.normalizer) and known["normalizer"] != recording.normalizer:
            raise NormalizationError(
                f"expected responses through {known['normalizer']!r}, as in the fit, got {recording.normalizer!r}"
            )
        return torch.from_numpy(self.scales_[subject].apply(recording, np.arange(len(recording))))

    def _subject(self, subject: str | None) -> str:
        self._check_fitted()
        if subject is None and len(self.subjects_) == 1:
            return self.subjects_[0]
        if subject not in self.subjects_:
            near = "" if subject is None else near_names(subject, self.subjects_)
            raise BrainDataError(f"expected a subject of {', '.join(self.subjects_)}, got {subject!r}{near}")
        return subject

    def _check_fitted(self) -> None:
        if not hasattr(self, "meta_"):
            raise BrainDataError(f"expected a fitted {type(self).__name__}, got one before fit")

    def _place(self) -> torch.device:
        """Where it computes, with the networks there and in eval mode."""
        default = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(default if self.device is None else self.device)
        for name in self.networks:
            getattr(self, name).to(device).eval()
        return device

    def _note(self, data: TrialData, stages: Sequence[Any], alignment: Mapping[str, Any]) -> None:
        """Write down what was fitted to what."""
        ids = data.train_ids()
        subjects = {
            name: {
                "normalizer": data.recordings[name].normalizer,
                "response_scale": "as_is" if not self.scales_[name].mean.any() else "train_z",
                "total_variance": self.scales_[name].variance,
                "num_voxels": int(self.scales_[name].kept.sum()),
                "alignment": str(alignment.get(name, "not tested")),
                **data.signature()[name],
            }
            for name in self.subjects_
        }
        self.meta_ = {
            "format": FORMAT,
            "system": type(self).__name__,
            "versions": dict(library_versions()),
            "features": self.fingerprint_,
            "pairing": self.pairing,
            "train_images": len(ids),
            "subjects": subjects,
            "stages": [_stage_json(stage) for stage in stages],
        }

    def save(self, folder: str | Path) -> Path:
        """Write the model as safetensors and JSON into a folder, which appears whole or not at all.

        Raises:
            LayoutError: the folder exists and is no model.
        """
        self._check_fitted()
        return write_model(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        """The model that `save` wrote.

        Raises:
            LayoutError: a file is missing or broken, weights are missing or unknown, or it is of another system.
        """
        return read_model(cls, Path(folder), device)


def _check_fingerprint(expected: str, given: str) -> None:
    """Features of another extractor are refused; those of an array, which has no fingerprint, cannot be told apart."""
    if expected and given and expected != given:
        raise NormalizationError(f"expected features of the extractor {expected}, as in the fit, got those of {given}")


def _row_ids(count: int) -> list[str]:
    return [f"row:{row:07d}" for row in range(count)]


def _stage_json(stage: Any) -> dict[str, Any]:
    return {
        key: getattr(stage, key)
        for key in ("name", "steps", "epochs", "ended", "best", "contrast_batch", "seconds", "peak_memory")
    } | {"log": list(stage.log)}
