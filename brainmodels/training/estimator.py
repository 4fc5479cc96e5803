"""The base of every brain model: joining what it is given, units, facts, and folders.

A system's estimator adds its networks, how they are trained, and what it predicts. What the command line, the
evaluation and the report need to know of a system stands in its class attributes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from veca.train.parallel import World, join_world

from ..data.ids import Ids
from ..errors import AxisError, BrainDataError, IdError, NormalizationError, check_choice, near_names
from ..features import EmbeddingSpace, TokenScaler
from ..metrics.encoding import r2
from ..versions import library_versions
from .files import scale_arrays, scales_from
from .joining import Features, check_fingerprint, recording_of, source_of
from .loop import StageResult
from .recipe import EmbeddingRecipe, ModelRecipe
from .run import Run, check_run
from .saved import FORMAT, SavedModel, stage_json
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

BATCH = 256  # samples that are predicted together


class BrainModel(SavedModel):
    """An estimator of tokens of images and responses to them.

    `get_params`, `set_params` and scikit-learn's `clone` work. `fit` has its own signature, because trials and images
    are matched by id, so searches and pipelines of scikit-learn do not take it.

    Args:
        config: A recipe of the system, or its name.
        pairing: "ids" joins features and responses by image id. "rows" takes row i of the features for trial i, as
            scikit-learn does, which hides repeats from the model and is recorded.
        device: Device of the networks; None is a GPU where there is one.

    Attributes:
        direction: "encode" predicts responses to images, "decode" features of images from responses, "both" does both.
        responses: Kinds of responses it can be fitted to, "voxels" or "sensors".
        reversible: Whether it has `round_trip`, from either side to the other and back.
        adapts: Whether it has `adapt`, which fits it to a new subject from few images.
        aligns: Whether its fit takes a new subject and a known one, whose decoder it uses.
        freezes: Whether it has `frozen`, a decoder that other systems are trained through.
        masks: Whether `decode` takes `voxels`, a mask (V,) of those that are used, and `max_voxels`, their most.
        maps: Whether it has `voxel_model`, which gives a subject's encoders of voxels as arrays.
        inputs: What `fit` takes of the images: "features", or "stimuli" where the model computes what it needs.
        outputs: What it reads from responses: "tokens" of images, or "images" and "captions" themselves.
        recipe: How it is built, trained and used, by `config`.
        subjects_: Subjects of the fit.
        scales_: `VoxelScale` by subject.
        scaler_: `TokenScaler` or `EmbeddingSpace` of the tokens; None where the recipe takes them as they are.
        token_shape_: (m, d) of the tokens that it sees.
        meta_: Facts of the fit, as JSON: versions, fingerprint of the features, normaliser and voxels by subject, hash
            of training images, stages with steps and losses.
        and those of `SavedModel`.
    """

    direction: ClassVar[Literal["encode", "decode", "both"]]
    responses: ClassVar[tuple[str, ...]] = ("voxels",)
    recipe_type: ClassVar[type[ModelRecipe]]
    named: ClassVar[Callable[[str], ModelRecipe]]
    reversible: ClassVar[bool] = False
    adapts: ClassVar[bool] = False
    aligns: ClassVar[bool] = False
    freezes: ClassVar[bool] = False
    masks: ClassVar[bool] = False
    maps: ClassVar[bool] = False
    inputs: ClassVar[str] = "features"
    outputs: ClassVar[tuple[str, ...]] = ("tokens",)
    subjects_: tuple[str, ...]
    recipe: ModelRecipe
    adapt: Callable[..., "BrainModel"]  # where `adapts`
    latents: Callable[..., np.ndarray]  # where there are `latent_heads`
    round_trip: Callable[..., Any]  # where `reversible`
    voxel_model: Callable[..., Any]  # where `maps`

    def __init__(self, config: ModelRecipe | str, pairing: str = "ids", device: str | torch.device | None = None):
        self.pairing = pairing
        super().__init__(config, device)

    def _check_params(self) -> None:
        check_choice("pairing", self.pairing, ("ids", "rows"))
        super()._check_params()

    @property
    def encodes(self) -> bool:
        """Whether it predicts responses."""
        return self.direction in ("encode", "both")

    @property
    def decodes(self) -> bool:
        """Whether it reads features of images from responses."""
        return self.direction in ("decode", "both")

    @property
    def tokens_from(self) -> "BrainModel":
        """The model whose tokens `decode` returns: this one, unless another one decodes for it."""
        return self

    @property
    def latent_heads(self) -> tuple[str, ...]:
        """Names of latents of responses that `latents` returns in the space of image tokens; most systems have none."""
        return ()

    def _build(self, voxels: Mapping[str, int]) -> None:
        """Make the networks, for subjects with so many voxels and tokens of `token_shape_`."""
        raise NotImplementedError

    # fitting

    def fit(
        self,
        features: Features,
        responses: Trials | Mapping[str, Trials],
        *,
        subject: str = "default",
        image_ids: Ids | Mapping[str, Ids] | None = None,
        feature_ids: Ids | None = None,
        validation: float | None = None,
        drop_voxels: bool = False,
        alignment: str = "auto",
        out: str | Path | None = None,
        save_every: int = 500,
        progress: bool = False,
    ) -> Self:
        """Train from the start, or go on where a run in `out` was interrupted. Under `torchrun`, on all its processes.

        Args:
            features: A `FeatureCache`, `ArrayFeatures`, or an array (images, m, d) with `feature_ids`.
            responses: Train `Pairs`, `Responses` or a `Subject`, or an array (trials, V) with `image_ids`. A dictionary
                by subject trains them together. Each trial is one pair; single trials are expected.
            subject: Name of the only subject.
            image_ids: Images of the trials of an array, by subject where there are several.
            feature_ids: Ids of the rows of an array of features.
            validation: Share of the training images that is held out for the early stop; None is the recipe's.
            drop_voxels: Leave out voxels that are constant or not finite, which is an error otherwise.
            alignment: "auto" tests first whether responses identify their images, "off" does not.
            out: Folder for checkpoints and the log of the run; None keeps none.
            save_every: Steps between checkpoints.
            progress: Show a bar.

        Raises:
            BrainDataError: Ids, shapes, scales or values are not what they should be; see the message.
            AlignmentError: Responses identify their images at chance.
        """
        self._check_params()
        self._forget()
        data = self._join(features, responses, subject, image_ids, feature_ids, validation, drop_voxels)
        checked = self._aligned(data, alignment)
        with join_world(self.device) as world:
            run = self._open_run(world, data, out, save_every, progress)
            self._finish(data, self._train(run, data), checked)
        return self

    def _forget(self) -> None:
        super()._forget()
        vars(self).pop("token_shape_", None)

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        """Build the networks and train all stages."""
        raise NotImplementedError

    def _aligned(self, data: TrialData, alignment: str) -> dict[str, Any]:
        check_choice("alignment", alignment, ("auto", "off"))
        return data.check_alignment() if alignment == "auto" else {}

    def _open_run(self, world: World, data: TrialData, out: str | Path | None, save_every: int, progress: bool) -> Run:
        """What all stages share; a folder of another run is refused."""
        if out is not None:
            content = {"recipe": self.recipe.to_json(), "features": self.fingerprint_, "data": data.signature()}
            check_run(Path(out) / "run.json", json.loads(json.dumps(content)), world)
        options = {"save_every": save_every, "progress": progress}
        return Run(world, self.recipe.precision, None if out is None else Path(out), options)

    def _finish(self, data: TrialData, stages: Sequence[StageResult], checked: Mapping[str, Any]) -> None:
        """Write down what was fitted; systems with statistics of the trained networks take them here first."""
        self._place()
        self._note(data, stages, checked)

    def _join(
        self,
        features: Features,
        responses: Trials | Mapping[str, Trials],
        subject: str,
        image_ids: Any,
        feature_ids: Ids | None,
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
        source = source_of(features, feature_ids, self.pairing)
        recordings = {
            name: recording_of(part, ids.get(name), self.pairing, len(source)) for name, part in given.items()
        }
        share = recipe.validation if validation is None else validation
        shown = sorted({str(x) for item in recordings.values() for x in item.image_ids})
        held = held_out(shown, share)
        rows = {name: part_rows(item, held) for name, item in recordings.items()}
        parts = {part: {name: found[part] for name, found in rows.items()} for part in ("train", "val")}
        train = sorted({str(x) for name, item in recordings.items() for x in item.image_ids[parts["train"][name]]})
        if known is not None:
            check_fingerprint(known.fingerprint_, source.fingerprint)
            self.fingerprint_, self.scaler_ = known.fingerprint_, known.scaler_
        else:
            scaler = _new_scaler(recipe)
            self.fingerprint_, self.scaler_ = source.fingerprint, scaler and scaler.fit(source, train)
        table = TokenTable(source, self.scaler_, recipe.what, shown)
        self._check_tokens(table.shape)
        self.token_shape_ = tuple(table.shape)
        self.scales_ = {
            name: VoxelScale.fit(item, parts["train"][name], recipe.response_scale, drop_voxels)
            for name, item in recordings.items()
        }
        self.subjects_ = tuple(recordings)
        return TrialData(table, recordings, self.scales_, parts)

    def _check_tokens(self, shape: tuple[int, int]) -> None:
        """Refuse tokens (m, d) of another shape than the fit had; systems with sizes in the recipe ask for those."""
        known = getattr(self, "token_shape_", shape)
        if tuple(shape) != tuple(known):
            raise AxisError(f"expected tokens {tuple(known)}, as in the fit, got {tuple(shape)}")

    # use

    def tokens(self, features: Features, image_ids: Ids | None = None) -> np.ndarray:
        """Features as the model sees them: fp32 (n, m, d), reduced and scaled as in the fit."""
        return self._tokens(features, image_ids).numpy()

    def _tokens(self, features: Features, image_ids: Ids | None) -> Tensor:
        """Tokens (n, m, d) in model units: rows of an array, or of a source in the order of `image_ids`."""
        self._check_fitted()
        if isinstance(features, np.ndarray | Tensor):
            if image_ids is not None:
                raise IdError("expected no image_ids with an array, whose rows are predicted in order, got some")
            values = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
        else:
            check_fingerprint(self.fingerprint_, features.fingerprint)
            if image_ids is None:
                raise IdError("expected image_ids, the images to predict, got none")
            values = features.get(image_ids, self.recipe.what)
        tokens = scaled_tokens(np.asarray(values, np.float32), self.scaler_)
        self._check_tokens(tokens.shape[1:])
        bad = ~np.isfinite(tokens).all((1, 2))
        if bad.any():
            raise BrainDataError(f"expected finite features, got others in row {np.argmax(bad)}")
        return torch.tensor(tokens)  # a copy: the bits of products depend on where memory begins

    def predict(self, features: Features, **options: Any) -> np.ndarray:
        """Responses to images, fp32 (n, V); of systems that encode."""
        raise NotImplementedError(f"{type(self).__name__} does not predict responses")

    def encode(self, features: Features, **options: Any) -> np.ndarray:
        """The same as `predict`: images to responses."""
        return self.predict(features, **options)

    def decode(self, responses: Trials, **options: Any) -> np.ndarray:
        """Features of the images that responses (n, V) are of, fp32 (n, m, d); of systems that decode."""
        raise NotImplementedError(f"{type(self).__name__} does not decode responses")

    def reference_predictions(self, features: Features, **options: Any) -> dict[str, np.ndarray]:
        """Responses (n, V) that simpler methods predict from the same data, by name; they belong in every table.

        Args:
            features: As in `predict`.
            options: Those of `predict`.
        """
        return {}

    def reference_decodings(self, responses: Trials, **options: Any) -> dict[str, np.ndarray]:
        """Features that simpler methods decode from the same data, by name; they belong in every table.

        Args:
            responses: As in `decode`.
            options: Those of `decode`.
        """
        return {}

    def score(self, features: Features, responses: Trials, **options: Any) -> np.ndarray:
        """R^2 of each voxel, fp64 (V,): trial i is compared with the prediction for row i of the features.

        1 - sum (y - p)^2 / sum (y - mean y)^2; NaN for voxels that are constant here or were dropped. `options` are of
        `predict`: `image_ids` where features are no array, `subject` where there are several.
        """
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
        return torch.tensor(self.scales_[subject].apply(recording, np.arange(len(recording))))

    def _subject(self, subject: str | None) -> str:
        self._check_fitted()
        if subject is None and len(self.subjects_) == 1:
            return self.subjects_[0]
        if subject not in self.subjects_:
            near = "" if subject is None else near_names(subject, self.subjects_)
            raise BrainDataError(f"expected a subject of {', '.join(self.subjects_)}, got {subject!r}{near}")
        return subject

    def check_unseen(self, image_ids: Ids) -> bool:
        """Refuse images that the fit saw with a `LeakageError`; False where the model does not know which these are."""
        if self.scaler_ is None:
            return False
        self.scaler_.check_unseen(image_ids)
        return True

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
            "token_shape": list(self.token_shape_),
            "subjects": subjects,
            "stages": [stage_json(stage) for stage in stages],
        }

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return scale_arrays(self.scales_, self.scaler_)

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        self.scales_, self.scaler_ = scales_from(arrays, texts, subjects)

    @classmethod
    def _arguments(cls, meta: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        return super()._arguments(meta, **options) | {"pairing": meta["pairing"]}

    def _recall(self, meta: Mapping[str, Any]) -> None:
        self.fingerprint_, self.subjects_ = meta["features"], tuple(meta["subjects"])
        if "token_shape" in meta:
            self.token_shape_ = tuple(meta["token_shape"])

    def _rebuild(self) -> None:
        self._build({name: int(scale.kept.sum()) for name, scale in self.scales_.items()})


def _new_scaler(recipe: ModelRecipe) -> TokenScaler | EmbeddingSpace | None:
    """What brings features to model units, before its fit."""
    if isinstance(recipe, EmbeddingRecipe):
        return EmbeddingSpace(recipe.embed_width)
    return TokenScaler(recipe.what, reduce=recipe.reduce) if recipe.tokens == "scaled" else None
