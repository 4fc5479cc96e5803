"""MindAligner as an estimator: responses of a new subject in the voxels of a known one, whose decoder stays as it is.

model = MindAligner("tiny").fit(cache, {"sim02": new, "sim01": known}, new="sim02", labels=labels)
aligned = model.transform(test)        # (m, V of sim01)
features = model.decode(test)          # what the known subject's decoder reads from them
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from veca.hashes import hex_digest, json_digest
from veca.train.parallel import World

from ...baselines import LinearDecoder
from ...data.ids import Ids
from ...errors import BrainDataError, LeakageError, check_choice
from ...training.estimator import BATCH, BrainModel
from ...training.files import read_model
from ...training.joining import Features, check_fingerprint, source_of
from ...training.loop import StageResult
from ...training.run import Run, check_run
from ...training.trials import TokenTable, TrialData, Trials
from . import recipes
from .checks import check_decoded, check_tested, check_trials
from .closed_forms import AffineMap, Side, encoder_of, fit_closed_forms, no_alignment
from .model import EmbeddingDecoder, LowRankMap, map_rank
from .pairing import Partners, class_partners, nearest_partners, random_partners, same_partners
from .recipes import MindAlignerRecipe
from .tasks import AlignmentTask, DecoderTask, Judge, KnownImages, NewTrials
from .transfer import TransferQuantity, pattern_blocks, transfer_quantity, weight_blocks

__all__ = ["MindAligner"]

_log = logging.getLogger(__name__)
_EXTERNAL = "decoder"  # folder of a decoder that is a model of its own


class MindAligner(BrainModel):
    """A linear map of low rank from the voxels of a new subject to those of a known one (arXiv 2502.05034).

    It is trained on pairs of different images, with a helper that explains their difference. Only the map is used
    afterwards. A decoder of the known subject reads the aligned responses; its parameters do not change.

    Args:
        config: A recipe of `recipes`, or its name.
        pairing, device: As in `BrainModel`.

    Attributes:
        map_: The map.
        decoder_: `EmbeddingDecoder` of the known subject; empty where another model decodes, or none.
        known_model_: The model that decodes, where `fit` was given one; else None.
        new_, known_: Names of the two subjects.
        baselines_: Closed forms on the same data, as `AffineMap` by name, see `fit_closed_forms`.
        no_alignment_: `AffineMap` from responses of the new subject straight to embeddings.
        fitted_ids_: Images of the fit, those that validated among them.
        and those of `BrainModel`.
    """

    direction = "decode"
    about = "responses of a new subject to those of a known one, whose decoder is used as it is"
    stages, aligns = ("decoder", "align"), True
    networks = ("map_", "decoder_")
    recipe_type, named = MindAlignerRecipe, staticmethod(recipes.named)
    recipe: MindAlignerRecipe
    map_: LowRankMap
    decoder_: EmbeddingDecoder | nn.Identity
    known_model_: Any = None

    def fit(
        self,
        features: Features,
        responses: Trials | Mapping[str, Trials],
        *,
        new: str = "",
        decoder: "str | BrainModel | None" = "embedding",
        labels: Mapping[str, object] | None = None,
        **options: Any,
    ) -> Self:
        """Train the map.

        Args:
            features: Source of pooled features of all images, or an array with `feature_ids`. With a model as decoder
                it must have that model's features too.
            responses: Train `Pairs` by subject, of the new and of the known one. Single trials are expected, z-scored.
            new: Name of the new subject. The other one is the known subject.
            decoder: "embedding" trains an `EmbeddingDecoder` of the known subject. A fitted model with
                `frozen(subject)`, such as a NeuroFlow of the known subject, is used as it is. None decodes nothing.
            labels: Class of each image by id, for `pairs="class"`.
            options: Those of `BrainModel.fit`.

        Raises:
            BrainDataError: There are not two subjects, too few trials, or no classes for `pairs="class"`.
            LeakageError: A subject, or the decoder, was given images that the split of a subject tests on.
            NormalizationError: Responses are not z-scored, or not as the decoder expects them.
        """
        if not isinstance(responses, Mapping) or len(responses) != 2 or new not in responses:
            got = ", ".join(responses) if isinstance(responses, Mapping) else type(responses).__name__
            raise BrainDataError(f"expected responses of two subjects, one of them new={new!r}, got {got}")
        if isinstance(decoder, str):
            check_choice("decoder", decoder, ("embedding",))
        elif decoder is not None and not hasattr(decoder, "frozen"):
            raise BrainDataError(
                f"expected decoder='embedding', None or a model with frozen(subject), got {type(decoder).__name__}"
            )
        check_tested(responses, None if isinstance(decoder, str) else decoder)
        self.new_, (self.known_,) = new, [name for name in responses if name != new]
        self._asked = decoder, labels, features, options.get("feature_ids")
        try:
            return super().fit(features, responses, **options)
        finally:
            del self._asked

    @property
    def tokens_from(self) -> BrainModel:
        return self if self.known_model_ is None else self.known_model_

    # use

    def transform(self, responses: Trials) -> np.ndarray:
        """Responses (m, V new) of the new subject in the voxels of the known one, fp32 (m, V known)."""
        self._check_fitted()
        values, device = self._measured(responses, self.new_), self._place()
        with torch.no_grad():
            found = [self.map_(part.to(device)).cpu().numpy() for part in values.split(BATCH)]
        return self.scales_[self.known_].undo(np.concatenate(found))

    def decode(self, responses: Trials, *, subject: str | None = None, **options: Any) -> np.ndarray:
        """What the known subject's decoder reads from responses of either subject.

        Args:
            responses: Responses (m, V) of one subject.
            subject: The new subject, whose responses are aligned first, or the known one; None is the new one.
            options: Those of `decode` of another model that decodes.

        Returns:
            fp32 (m, p) pooled features, or what the other model decodes.

        Raises:
            BrainDataError: The model was fitted without a decoder, or the subject is unknown.
        """
        self._check_fitted()
        aligned = self.transform(responses) if self._subject(subject or self.new_) == self.new_ else responses
        return self._read(aligned, **options)

    def _read(self, responses: Trials, **options: Any) -> np.ndarray:
        """Features that the decoder reads from responses (m, V known)."""
        if self.known_model_ is not None:
            return self.known_model_.decode(responses, subject=self.known_, **options)
        if isinstance(self.decoder_, nn.Identity):
            raise BrainDataError("expected a decoder of the known subject, got a fit with decoder=None")
        values, device = self._measured(responses, self.known_), self._place()
        with torch.no_grad():
            found = [self.decoder_(part.to(device)).cpu().numpy() for part in values.split(BATCH)]
        return self._features(np.concatenate(found)[:, None])

    def tokens(self, features: Features, image_ids: Ids | None = None) -> np.ndarray:
        """Features as the decoder has them, see `BrainModel.tokens`."""
        if self.known_model_ is not None:
            return self.known_model_.tokens(features, image_ids)
        return super().tokens(features, image_ids)

    def reference_decodings(self, responses: Trials, *, subject: str | None = None, **options: Any) -> dict[str, Any]:
        """What the same decoder reads after each closed form, and ridge without any alignment."""
        self._check_fitted()
        if self._subject(subject or self.new_) != self.new_:
            return {}
        aligned = self.reference_transforms(responses)
        maps = {f"{name}, same decoder": self._read(values, **options) for name, values in aligned.items()}
        if self.known_model_ is None:
            direct = self.no_alignment_.transform(self._measured(responses, self.new_).numpy())
            maps["ridge without alignment"] = self._features(_unit(direct)[:, None])
        return maps

    def reference_transforms(self, responses: Trials) -> dict[str, np.ndarray]:
        """The same as `transform` by each closed form, fp32 (m, V known) by name."""
        self._check_fitted()
        values, scale = self._measured(responses, self.new_).numpy(), self.scales_[self.known_]
        return {name: scale.undo(item.transform(values)) for name, item in self.baselines_.items()}

    def check_unseen(self, image_ids: Ids) -> bool:
        """Refuse images of the fit, or of that of the decoder, with a `LeakageError`; see `BrainModel`."""
        self._check_fitted()
        seen = self.fitted_ids_ & {str(name) for name in image_ids}
        if seen:
            raise LeakageError(f"expected images that the fit did not see, got {len(seen)} of it, such as {min(seen)}")
        return self.known_model_ is None or self.known_model_.check_unseen(image_ids)

    def matrix(self, rows: slice = slice(None)) -> np.ndarray:
        """Rows of the map between voxels that the fit kept, fp32 (rows, V known). The whole of it may be large."""
        self._check_fitted()
        return self.map_.matrix(rows).cpu().numpy()

    def transfer(self, responses: Trials | None = None, kind: str = "weights") -> TransferQuantity:
        """How much each voxel of either subject takes part in the map.

        Args:
            responses: Responses of the new subject, for "pattern".
            kind: "weights" sums |A B|. "pattern" sums activation patterns of the map instead (Haufe et al., 2014).

        Returns:
            Sums over the voxels that the fit kept.
        """
        self._check_fitted()
        check_choice("kind", kind, ("weights", "pattern"))
        if kind == "weights":
            return transfer_quantity(
                weight_blocks(self.map_.A.detach().cpu().numpy(), self.map_.B.detach().cpu().numpy())
            )
        if responses is None:
            raise BrainDataError(f"expected responses of {self.new_} for kind={kind!r}, got None")
        values = self._measured(responses, self.new_).numpy()
        return transfer_quantity(pattern_blocks(values, self.transform(responses)[:, self.scales_[self.known_].kept]))

    # fitting

    def _build(self, voxels: Mapping[str, int]) -> None:
        new, known = voxels[self.new_], voxels[self.known_]
        start = "uniform" if self.recipe.init == "uniform" else "random"
        self.map_ = LowRankMap(new, known, map_rank(self.recipe.rank, new, known), start)
        self.decoder_ = nn.Identity()
        if self._decodes == "embedding":
            self.decoder_ = EmbeddingDecoder(known, self.token_shape_[1], self.recipe.decoder_depth)

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        decoder, labels, features, feature_ids = self._asked
        check_trials(data, self.new_, self.known_)
        self.known_model_ = None if decoder is None or isinstance(decoder, str) else decoder
        self._decodes = decoder if decoder is None or isinstance(decoder, str) else "model"
        torch.manual_seed(self.recipe.align.seed)
        self._build({name: int(scale.kept.sum()) for name, scale in self.scales_.items()})
        sides = {name: self._side(data, name, labels) for name in (self.new_, self.known_)}
        partners = self._partners(sides, labels)
        if partners.dropped:
            _log.warning("%d trials have no partner and are not trained on", partners.dropped)
        new, known = sides[self.new_], sides[self.known_]
        differing = random_partners(new.image_ids, known.image_ids) if self.recipe.pairs == "same" else partners
        self.baselines_ = fit_closed_forms(new, known, differing, self.recipe.align.seed)
        self.no_alignment_ = no_alignment(new)
        if self.recipe.init == "encode_align":
            self.map_ = LowRankMap.from_matrix(self.baselines_["encode_align"].matrix, self.map_.rank)
        results = self._train_decoder(run, known)
        judge = self._judge(data, source_of(features, feature_ids, self.pairing), known, run.device)
        task = AlignmentTask(self.map_, self.recipe, new, known, partners, judge)
        return [*results, run.stage("align", task, NewTrials(data, self.new_, partners), self.recipe.align)]

    def _side(self, data: TrialData, name: str, labels: Mapping[str, object] | None) -> Side:
        """Single trials of the new subject, or responses of the known one averaged over repeats."""
        if name == self.new_:
            rows = data.rows["train"][name]
            ids = data.recordings[name].image_ids[rows]
            responses = data.batch("train", name, np.arange(len(rows))).responses.numpy()
        else:
            ids = np.concatenate([data.images(name, part) for part in ("train", "val")])
            responses = data.means(name, ids)
        classes = None if labels is None else np.array([str(labels[x]) if x in labels else "" for x in ids.tolist()])
        if classes is not None and (classes == "").any():
            raise BrainDataError(f"expected a label for every image, got none for {ids[classes == ''][0]}")
        return Side(responses, data.tokens.get(ids)[:, 0], ids, classes)

    def _partners(self, sides: Mapping[str, Side], labels: Mapping[str, object] | None) -> Partners:
        """Images of the known subject for each trial of the new one, as the recipe says."""
        new, known = sides[self.new_], sides[self.known_]
        if self.recipe.pairs == "class":
            if labels is None:
                raise BrainDataError(
                    "expected labels, the class of each image, for pairs='class', got None; see pairs='nearest'"
                )
            return class_partners(new.image_ids, known.image_ids, labels)
        if self.recipe.pairs == "nearest":
            return nearest_partners(new.embeddings, known.embeddings)
        return (same_partners if self.recipe.pairs == "same" else random_partners)(new.image_ids, known.image_ids)

    def _train_decoder(self, run: Run, known: Side) -> list[StageResult]:
        """Begin the decoder at ridge, and train its MLPs where it has any."""
        if not isinstance(self.decoder_, EmbeddingDecoder):
            return []
        linear = LinearDecoder(calibration="none").fit(known.responses, known.embeddings)
        self.decoder_.to(run.device).begin_at(*linear.affine())
        if not self.recipe.decoder_depth:
            return []
        task = DecoderTask(self.decoder_)
        return [run.stage("decoder", task, KnownImages(self.known_, known), self.recipe.decoder)]

    def _judge(self, data: TrialData, source: Any, known: Side, device: torch.device) -> Judge:
        """Encoder and decoder of the known subject."""
        encoder = encoder_of(known)
        if self._decodes is None:
            return Judge(encoder)
        if self._decodes == "embedding":
            return Judge(encoder, self.decoder_, data.tokens)
        model = self.known_model_
        check_fingerprint(model.fingerprint_, source.fingerprint)
        check_decoded(data, self.known_, model.meta_["subjects"][model._subject(self.known_)])
        ids = sorted(set(data.recordings[self.new_].image_ids.tolist()))
        frozen = model.frozen(self.known_).to(device)
        return Judge(encoder, frozen, TokenTable(source, model.scaler_, model.recipe.what, ids))

    def _open_run(self, world: World, data: TrialData, out: str | Path | None, save_every: int, progress: bool) -> Run:
        run = super()._open_run(world, data, out, save_every, progress)
        if out is not None:
            decoder, labels, *_ = self._asked
            ids = sorted({str(x) for item in data.recordings.values() for x in item.image_ids})
            told = {
                "new": self.new_,
                "decoder": decoder if decoder is None or isinstance(decoder, str) else json_digest(decoder.meta_),
                "labels": None if labels is None else hex_digest(f"{labels.get(name)}\n" for name in ids),
            }
            check_run(Path(out) / "alignment.json", told, world)
        return run

    def _finish(self, data: TrialData, stages: Sequence[StageResult], checked: Mapping[str, Any]) -> None:
        super()._finish(data, stages, checked)
        self.fitted_ids_ = frozenset(str(x) for item in data.recordings.values() for x in item.image_ids)
        rows, log = data.rows["train"][self.new_], stages[-1].log
        scored = [row for row in log if "val_loss" in row and self.recipe.align.patience]
        best = min(scored, key=lambda row: row["val_loss"]) if scored else log[-1]
        _log.info("the map is that of step %d of %d", best["step"], stages[-1].steps)
        self.meta_ |= {
            "new": self.new_,
            "known": self.known_,
            "rank": self.map_.rank,
            "best_step": best["step"],
            "decoder": self._decodes if self.known_model_ is None else self.known_model_.meta_["system"],
            "new_trials": len(rows),
            "new_images": len(data.images(self.new_, "train")),
        }

    # files

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, texts = super()._statistics()
        for name, item in {**self.baselines_, "no_alignment": self.no_alignment_}.items():
            arrays[f"map.{name}.matrix"] = torch.from_numpy(np.ascontiguousarray(item.matrix))
            arrays[f"map.{name}.intercept"] = torch.from_numpy(np.ascontiguousarray(item.intercept))
        told = {"new": self.new_, "known": self.known_, "decodes": self._decodes, "baselines": list(self.baselines_)}
        return arrays, {**told, "fitted_ids": sorted(self.fitted_ids_), **texts}

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        super()._restore(arrays, texts, subjects)
        self.new_, self.known_, self._decodes = texts["new"], texts["known"], texts["decodes"]
        self.fitted_ids_ = frozenset(texts["fitted_ids"])

        def taken(name: str) -> AffineMap:
            return AffineMap(*(arrays.pop(f"map.{name}.{key}").numpy() for key in ("matrix", "intercept")))

        self.baselines_ = {name: taken(name) for name in texts["baselines"]}
        self.no_alignment_ = taken("no_alignment")

    def _save_more(self, folder: Path) -> None:
        """A copy of the model that decodes."""
        if self.known_model_ is not None:
            self.known_model_.save(folder / _EXTERNAL)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        """The model that `save` wrote, with the model that decodes."""
        from .. import load_model

        model = read_model(cls, Path(folder), device)
        if model._decodes == "model":
            model.known_model_ = load_model(Path(folder) / _EXTERNAL, device)
        return model


def _unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
