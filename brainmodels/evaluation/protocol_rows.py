"""Scores under the protocols of papers, each with what still differs from the paper.

    for protocol in protocol_scores(("mindeye", "algonauts"), study, dataset, rows, decoded, models):
        print(protocol.name, protocol.differs)

| protocol | scores | needs |
|---|---|---|
| mindeye | top-1 among 300 images, mean of 30 draws, both directions | 300 test images |
| algonauts | median over vertices of the squared correlation over the noise ceiling | a noise ceiling |
| synbrain | mse, sample_r and cosine against every single trial, betas / 2000 | betas as measured |
| neuroflow | the same against means of trials, z-scores mapped back | betas as measured, a z-score as normaliser |

Numbers of two protocols are on different scales. They share no column with each other or with the other scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..data import BrainDataset, Pairs
from ..data.normalize import Normalizer, fit_normalizer
from ..errors import BrainDataError, NormalizationError, check_choice
from ..metrics import Score, metric, not_available
from ..metrics.encoding import algonauts_score, usable_voxels, voxel_r
from ..metrics.protocols import IMAGE_WISE, centred_interval, resampled_scores
from ..metrics.published import scores_as_in_neuroflow, scores_as_in_synbrain
from ..metrics.retrieval import galleries_of_300
from ..metrics.statistics import bootstrap_weights, permutation_chance
from .decoding import Decoded
from .encoding import SHUFFLED, Study, ridge_prediction
from .models import ModelEvaluation

__all__ = ["PROTOCOLS", "Protocol", "ProtocolRow", "check_protocols", "protocol_scores"]

PROTOCOLS = ("mindeye", "algonauts", "synbrain", "neuroflow")
GALLERY = 300
PERMUTATIONS = 100  # of the pairs, for the chance of `algonauts_score`
_UNIT = "div2000"


@dataclass(frozen=True)
class ProtocolRow:
    """Scores of one model under one protocol.

    Attributes:
        model, features: Names of the model and of its features.
        scores: Scores in the order of the protocol; one that cannot be had says why.
    """

    model: str
    features: str
    scores: Sequence[Score]

    def score(self, name: str) -> Score | None:
        """One of the scores by the name of its metric."""
        return next((score for score in self.scores if score.metric.name == name), None)


@dataclass(frozen=True)
class Protocol:
    """All rows under one protocol.

    Attributes:
        name: Name of the protocol.
        about: What it measures, in a sentence.
        differs: What differs from the paper, a sentence each.
        rows: Scores by model.
    """

    name: str
    about: str
    differs: Sequence[str]
    rows: Sequence[ProtocolRow]

    @property
    def columns(self) -> list[str]:
        """Names of the scores."""
        return list(dict.fromkeys(score.metric.name for row in self.rows for score in row.scores))

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"model": row.model, "features": row.features, "scores": [score.to_json() for score in row.scores]}
            for row in self.rows
        ]
        return {"protocol": self.name, "about": self.about, "differs": list(self.differs), "rows": rows}


def check_protocols(names: Iterable[str], study: Study) -> None:
    """Refuse protocols that these data cannot follow, before anything is fitted.

    Args:
        names: Names of protocols.
        study: Responses of the subject.

    Raises:
        BrainDataError: An unknown protocol, fewer than 300 test images for mindeye, or no noise ceiling for algonauts.
        NormalizationError: Responses that are normalised already for synbrain and neuroflow, or predictions that are no
            z-scores for neuroflow.
    """
    for name in names:
        check_choice("protocol", name, PROTOCOLS)
        count, used = len(study.test), study.test.normalizer
        if name == "mindeye" and count < GALLERY:
            raise BrainDataError(
                f"expected {GALLERY} test images or more for protocol mindeye, got {count} in split "
                f"{study.test.split.name!r}; every report has the scores among all test images"
            )
        if name == "algonauts" and study.ceiling is None:
            raise BrainDataError("expected a noise ceiling for protocol algonauts, got responses without repeats")
        if name in ("synbrain", "neuroflow"):
            try:
                fit_normalizer(_UNIT, study.test.subject, study.test.split)
            except NormalizationError as error:
                raise NormalizationError(f"protocol {name} compares betas as measured: {error}") from error
        if name == "neuroflow" and "_z" not in used:
            raise NormalizationError(
                f"expected z-scored responses for protocol neuroflow, such as session_z_train, got normaliser {used!r}"
            )


def protocol_scores(
    names: Sequence[str],
    study: Study,
    dataset: BrainDataset,
    rows: Mapping[str, tuple[np.ndarray, np.ndarray]],
    decoded: Sequence[Decoded] = (),
    models: Sequence[ModelEvaluation] = (),
) -> list[Protocol]:
    """Scores of ridge on each set of features, and of trained models, under the protocols of papers.

    Args:
        names: Names of protocols, see `PROTOCOLS`.
        study: Responses of the subject.
        dataset: The data set, for responses on other scales.
        rows: Features (n, p) of train and test images by the name of a set.
        decoded: Images found by linear decoders.
        models: Scores and outputs of trained models.

    Raises:
        BrainDataError: See `check_protocols`.
    """
    check_protocols(names, study)
    case = _Case(study, dataset, rows, decoded, models)
    makers = {
        "mindeye": case.mindeye,
        "algonauts": case.algonauts,
        "synbrain": case.synbrain,
        "neuroflow": case.neuroflow,
    }
    return [makers[name]() for name in dict.fromkeys(names)]


@dataclass
class _Case:
    """What the protocols share."""

    study: Study
    dataset: BrainDataset
    rows: Mapping[str, tuple[np.ndarray, np.ndarray]]
    decoded: Sequence[Decoded]
    models: Sequence[ModelEvaluation]

    @cached_property
    def options(self) -> dict[str, Any]:
        return {"resamples": self.study.resamples, "seed": self.study.seed}

    @cached_property
    def wide(self) -> Study:
        """The study with every voxel that has finite, varying responses, whatever its noise ceiling."""
        usable = usable_voxels(self.study.measured_train) & usable_voxels(self.study.measured)
        return replace(self.study, voxels=usable)

    @cached_property
    def predicted(self) -> dict[tuple[str, str], np.ndarray]:
        """Responses (n, V) on the scale of the study by names of model and features."""
        found = {("ridge", name): ridge_prediction(self.wide, *both) for name, both in self.rows.items()}
        for item in self.models:
            if item.answers.predicted is not None:
                found[item.opened.name, f"{item.opened.tokens_of.name} tokens"] = item.answers.predicted
        return found

    @cached_property
    def unit(self) -> Normalizer:
        return fit_normalizer(_UNIT, self.study.test.subject, self.study.test.split)

    def pairs(self, part: str, average: str) -> Pairs:
        """Responses in betas / 2000."""
        split = self.study.test.split
        return self.dataset.pairs(self.study.test.subject.id, split, part, average, self.unit)

    def other_data(self) -> list[str]:
        """A sentence if the data are not those of the papers."""
        layout = str(self.study.test.subject.provenance.get("layout", ""))
        known = layout.startswith(("nsd", "mindeye", "algonauts"))
        split = self.study.test.split.name
        told = f"The test images are the {len(self.study.test)} of split {split}"
        if known and split == "shared1000":
            return []
        return [f"{told}." if known else f"{told} of other data than the Natural Scenes Dataset."]

    def mindeye(self) -> Protocol:
        rows = []
        linear = [item for item in self.decoded if item.scores[0].decoder != SHUFFLED]
        for item in [*linear, *(x for model in self.models for x in model.decoded)]:
            made = item.scores[0]
            options = {"decoder": made.decoder, "features": made.features, "seed": self.study.seed}
            scores = galleries_of_300(item.similarities, GALLERY, **options)
            rows.append(ProtocolRow(made.decoder or "", item.features, [x.under(self.study.test) for x in scores]))
        differs = [
            *self.other_data(),
            "Images are compared in the features of each row. MindEye compares tokens of CLIP ViT-L/14, and MindEye2 "
            "those of ViT-bigG/14.",
            "Responses are averaged over repeats before they are decoded. MindEye2 averages what it decodes.",
            "The interval covers the 30 draws, as published, and not new images.",
        ]
        about = "top-1 among 300 random test images, mean of 30 draws; MindEye, NeurIPS 2023, and MindEye2, ICML 2024"
        return Protocol("mindeye", about, differs, rows)

    def algonauts(self) -> Protocol:
        study, ceiling = self.study, self.study.ceiling
        assert ceiling is not None  # checked before
        kept = self.wide.voxels & np.isfinite(ceiling)
        weights = bootstrap_weights(len(study.test), study.resamples, study.seed)
        limit, measured = ceiling[kept], study.measured[:, kept]

        def value(r: np.ndarray) -> float:
            return algonauts_score(np.nan_to_num(r), limit)

        rows = []
        for (model, features), guess in self.predicted.items():
            told = guess[:, kept]
            score = value(voxel_r(measured, told))
            drawn = np.array([value(r) for r in resampled_scores(measured, told, weights)["voxel_r"]])

            def shuffled(order: np.ndarray, told: np.ndarray = told) -> float:
                return value(voxel_r(measured, told[order]))

            chance = permutation_chance(shuffled, len(study.test), PERMUTATIONS, study.seed)
            found = {
                "interval": centred_interval(drawn, score),
                "chance": chance.mean,
                "chance_interval": chance.interval,
                "mask": f"{int(kept.sum())} of {len(kept)}",
                "decoder": model,
                "seed": study.seed,
                "note": "protocol algonauts; a voxel without a defined correlation counts as 0",
            }
            row = Score(metric("algonauts_score"), score, len(study.test), **found).under(study.test)
            rows.append(ProtocolRow(model, features, [row]))
        surface = getattr(study.test.subject.space, "index", np.zeros((0, 3))).shape[1] == 2
        differs = [
            "The test responses of the challenge were never published. "
            + (self.other_data() or ["These are the shared images."])[0],
            *([] if surface else ["The units are voxels of a volume. The challenge has vertices of fsaverage."]),
            f"{int((~kept).sum())} of {len(kept)} units are left out, because they are constant or have no ceiling.",
            "This is one subject. The challenge averages eight.",
        ]
        about = "median over vertices of min(max(r, 0)² / NC, 1), in all vertices; the Algonauts Project 2023"
        return Protocol("algonauts", about, differs, rows)

    def synbrain(self) -> Protocol:
        study, own = self.study, self.study.test.normalizer == _UNIT
        train, test = self.pairs("train", "repeats"), self.pairs("test", "none")
        scaled = replace(self.wide, train=train, measured_train=train.array())
        guesses = {("ridge", name): ridge_prediction(scaled, *both) for name, both in self.rows.items()}
        guesses["mean map", "none"] = np.broadcast_to(scaled.measured_train.mean(0), study.measured.shape)
        rows = []
        for (model, features), guess in guesses.items():
            scores = scores_as_in_synbrain(test, guess, study.test.image_ids, decoder=model, **self.options)
            rows.append(ProtocolRow(model, features, scores))
        for (model, features), guess in self.predicted.items():
            if model != "ridge":
                needs = f"a model of responses in betas / 2000, and this one was trained on {study.test.normalizer}"
                remedy = f"train and evaluate it with --normalizer {_UNIT}"
                scores = [not_available(metric(name), needs, remedy) for name in IMAGE_WISE]
                if own:
                    ids = study.test.image_ids
                    scores = scores_as_in_synbrain(test, guess, ids, decoder=model, **self.options)
                rows.append(ProtocolRow(model, features, scores))
        differs = [
            *self.other_data(),
            "Betas are not centred, so that the mean map is high. Compare with its row.",
            "The paper also judges pictures that MindEye2 decodes from its responses. They are not made here.",
        ]
        return Protocol("synbrain", "against every single trial, in betas / 2000; arXiv 2508.10298", differs, rows)

    def neuroflow(self) -> Protocol:
        study = self.study
        train, test = self.pairs("train", "repeats"), self.pairs("test", "repeats")
        guesses = self.predicted | {("mean map", "none"): np.zeros_like(study.measured)}
        rows = []
        for (model, features), guess in guesses.items():
            ids = study.test.image_ids
            scores = scores_as_in_neuroflow(test, guess, ids, train, decoder=model, **self.options)
            rows.append(ProtocolRow(model, features, scores))
        used = study.test.normalizer
        own = (
            []
            if used == "session_z"
            else [f"Predictions are z-scored by {used}. The paper's statistics of a session include test trials."]
        )
        differs = [
            *self.other_data(),
            *own,
            "The paper is quoted by third parties, and its code was not at hand.",
            "Betas are not centred, so that the mean map is high. Compare with its row.",
        ]
        about = "against means of trials, z-scores mapped back to betas / 2000; arXiv 2604.09817"
        return Protocol("neuroflow", about, differs, rows)
