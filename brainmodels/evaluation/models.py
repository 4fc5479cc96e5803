"""Scores of trained models on one subject's test images, beside ridge on the same tokens.

evaluated = evaluate_model(opened, study, cache)
print(evaluated.decoded[0].score("two_way"))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..features import FeatureCache
from ..metrics import Metric, Score, metric, register
from ..metrics.controls import Runs
from ..metrics.retrieval import full_gallery, identification, similarity
from ..metrics.statistics import score_images
from ..training.stacked import Stacked
from .decoding import Decoded
from .encoding import SHUFFLED, Encoded, Study, chance_band, judge
from .opened import OpenedModel
from .token_space import TokenSpace, bottleneck
from .voxels import VoxelStudy, WeightMaps, study_voxels, weight_maps

__all__ = [
    "EXTERNAL",
    "SAME_TOKENS",
    "Answers",
    "ModelEvaluation",
    "Semantics",
    "Trip",
    "alone_name",
    "evaluate_model",
    "filled",
    "other_images",
    "reference_name",
]

SAME_TOKENS = "ridge, same tokens"
EXTERNAL = "external:ridge"
_SQUEEZABLE = 2**15  # numbers of an image's tokens, beyond which eight more decoders take too long

register(
    Metric(
        "semantic_after_decoding[{decoder}]",
        "semantic",
        "up",
        0.5,
        None,
        "two-way identification of the image tokens that the decoder reads from synthetic responses; scores of two "
        "decoders do not compare, and `self`, who decodes what it encoded itself, is favoured",
    )
)


@dataclass(frozen=True)
class Answers:
    """The outputs of a model, computed once for all scores.

    Attributes:
        predicted: (n, V) responses to the test images, the train mean in voxels that the model leaves out; None for a
            model that only decodes.
        latents: (n, m, d) by name: "raw_" and a head of the model (`latent_heads`) of measured responses, "syn_" and a
            head of its own.
        decoded: (n, m, d) tokens in model units read from measured responses; None for a model that only encodes.
        returned: The same read from its own responses; None for a model that does not go both ways.
        note: A caution that belongs to the predictions.
        alone: `predicted` and `decoded` of a stacked model without its baseline, by name; else empty.
        reference_predictions: Responses as `predicted`, from simpler methods on the same data, by the name in tables.
        reference_decodings: Tokens as `decoded`, likewise.
    """

    predicted: np.ndarray | None
    latents: Mapping[str, np.ndarray]
    decoded: np.ndarray | None = None
    returned: np.ndarray | None = None
    note: str = ""
    alone: Mapping[str, np.ndarray] = field(default_factory=dict)
    reference_predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    reference_decodings: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Semantics:
    """Images found again in what a decoder reads from responses.

    Attributes:
        responses: "measured", or the name of the model that made synthetic ones.
        decoder: "self" where the model that made them decodes them, or "external:" and the name of another.
        scores: `semantic_after_decoding[decoder]`, then retrieval among all test images.
    """

    responses: str
    decoder: str
    scores: Sequence[Score]

    def score(self, start: str) -> Score | None:
        """The first score whose name starts so."""
        return next((score for score in self.scores if score.metric.name.startswith(start)), None)

    def to_json(self) -> dict[str, Any]:
        scores = [score.to_json() for score in self.scores]
        return {"responses": self.responses, "decoder": self.decoder, "scores": scores}


@dataclass(frozen=True)
class Trip:
    """How far a round trip ends from where it began.

    Attributes:
        start: "images" or "responses".
        through: "latent" or "response".
        relative_error: ||back - start|| / ||start||.
        solver: Solver of the flow.
        steps: Steps of the solver in each direction.
        function_evaluations: Evaluations of the flow, both ways together.
    """

    start: str
    through: str
    relative_error: float
    solver: str
    steps: int
    function_evaluations: int

    @classmethod
    def of(cls, start: str, through: str, trip: Any) -> "Trip":
        return cls(start, through, trip.relative_error, trip.solver, trip.steps, trip.function_evaluations)


@dataclass(frozen=True)
class ModelEvaluation:
    """All scores of one model.

    Attributes:
        opened: The model.
        space: Its image tokens, from which pictures are made.
        answers: Its outputs.
        encoded: Scores of its predictions, if it encodes, of the model alone, if it is stacked, of simpler methods that
            it names itself, and of linear models on the same tokens; the last are those of ridge.
        decoded: Rows of retrieval in its token space.
        semantics: What decoders read from synthetic responses, and from measured ones for reference.
        trips: Round trips of a reversible model.
        bottleneck: Scores of ridge into its tokens from few components; None where an earlier model has the same, and
            for tokens of too many numbers.
        voxels: Decoding from some of the voxels; None of a model that reads all or none.
        maps: Encoders of the voxels; None of a model without them.
    """

    opened: OpenedModel
    space: TokenSpace
    answers: Answers
    encoded: Sequence[Encoded]
    decoded: Sequence[Decoded]
    semantics: Sequence[Semantics]
    trips: Sequence[Trip] = ()
    bottleneck: Runs | None = None
    voxels: VoxelStudy | None = None
    maps: WeightMaps | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """Names in tables of the simpler methods that the model names itself."""
        return (*self.answers.reference_predictions, *self.answers.reference_decodings)

    @property
    def found(self) -> tuple[Decoded, Decoded]:
        """Images found from measured responses: by the model, else in its latents, else by ridge; and by ridge."""
        rows = {row.scores[0].decoder: row for row in self.decoded}
        name = self.opened.name
        own = next((rows[x] for x in (name, f"{name} raw_posterior") if x in rows), rows[SAME_TOKENS])
        return own, rows[SAME_TOKENS]

    def to_json(self) -> dict[str, Any]:
        model = self.opened.model
        return {
            "name": self.opened.name,
            "system": model.meta_["system"],
            "features": self.opened.tokens_of.name,
            "references": list(self.references),
            "adapted_from": model.meta_.get("adapted_from"),
            "fingerprint": model.fingerprint_,
            "recipe": model.recipe.to_json(),
            "stack": model.meta_.get("stack"),
            "run": dict(self.opened.run),
            "tokens": list(self.space.test.shape[1:]),
            "encoding": [item.to_json() for item in self.encoded],
            "decoding": [item.to_json() for item in self.decoded],
            "semantics": [item.to_json() for item in self.semantics],
            "round_trips": [vars(item) for item in self.trips],
            "bottleneck": None if self.bottleneck is None else self.bottleneck.to_json() | {"decoder": SAME_TOKENS},
            "voxels": None if self.voxels is None else self.voxels.to_json(),
            "maps": None if self.maps is None else self.maps.to_json(),
        }


def evaluate_model(
    opened: OpenedModel, study: Study, cache: FeatureCache, spaces: list[TokenSpace] | None = None
) -> ModelEvaluation:
    """All scores of one model except those of pictures.

    Args:
        opened: The model.
        study: Responses of its subject, on the scale of its training.
        cache: Features of the train and test images.
        spaces: Token spaces of other models of the study; a model with equal tokens shares one, a new one is added.

    Raises:
        BrainDataError: the model does not belong to this study, see `OpenedModel.check`.
    """
    opened.check(study)
    tokens = [opened.model.tokens(cache, pairs.image_ids) for pairs in (study.train, study.test)]
    spaces = [] if spaces is None else spaces
    space = next((known for known in spaces if _equal(known, tokens)), None)
    new = space is None
    if new:
        space = TokenSpace.of(study, tokens[0], tokens[1])
        spaces.append(space)
    answers = _answers(opened, study, cache)
    return ModelEvaluation(
        opened,
        space,
        answers,
        _encoding_rows(opened, study, space, answers),
        _decoding_rows(opened, study, space, answers),
        _semantics(opened, study, space, answers),
        _trips(opened, study, cache) if opened.model.reversible else (),
        bottleneck(study, space) if new and space.test[0].size <= _SQUEEZABLE else None,
        study_voxels(opened, study, space) if opened.masks else None,
        weight_maps(opened, study) if opened.maps else None,
    )


def _equal(space: TokenSpace, tokens: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip((space.train, space.test), tokens, strict=True))


def _answers(opened: OpenedModel, study: Study, cache: FeatureCache) -> Answers:
    """Ask the model for responses, latents and tokens."""
    model, subject, ids = opened.model, opened.subject_in(study), study.test.image_ids
    latents = _latents(opened, study.test, subject, "raw")  # refuses other voxels before anything is predicted
    predicted = full = decoded = returned = None
    alone, told, read, note = {}, {}, {}, ""
    if opened.encodes:
        predicted = model.predict(cache, image_ids=ids, subject=subject)
        latents |= _latents(opened, predicted, subject, "syn")
        full = filled(predicted, study)
        counted = int((np.isnan(predicted).any(0) & study.voxels).sum())
        note = f"{counted} voxels that the model leaves out are predicted by their train mean" if counted else ""
        references = model.reference_predictions(cache, image_ids=ids, subject=subject)
        told = {reference_name(opened, name): filled(guess, study) for name, guess in references.items()}
    if opened.decodes:
        decoded = model.tokens(model.decode(study.test, subject=subject))
        references = model.reference_decodings(study.test, subject=subject)
        read = {reference_name(opened, name): model.tokens(guess) for name, guess in references.items()}
    if opened.decodes and predicted is not None:
        returned = model.tokens(model.decode(predicted, subject=subject))
    if isinstance(model, Stacked) and opened.encodes:
        alone["predicted"] = filled(model.model.predict(cache, image_ids=ids, subject=subject), study)
    if isinstance(model, Stacked) and opened.decodes:
        alone["decoded"] = model.tokens(model.model.decode(study.test, subject=subject))
    return Answers(full, latents, decoded, returned, note, alone, told, read)


def filled(predicted: np.ndarray, study: Study) -> np.ndarray:
    """Predictions (n, V) with the train mean in voxels that the model leaves out."""
    return np.where(np.isnan(predicted).any(0), np.nan_to_num(study.measured_train.mean(0)), predicted)


def _latents(opened: OpenedModel, responses: Any, subject: str, kind: str) -> dict[str, np.ndarray]:
    """Latents of responses by head; none of a system without them."""
    model = opened.model
    return {f"{kind}_{head}": model.latents(responses, subject=subject, head=head) for head in model.latent_heads}


def _encoding_rows(opened: OpenedModel, study: Study, space: TokenSpace, answers: Answers) -> list[Encoded]:
    mark, name = opened.model.fingerprint_, f"{opened.tokens_of.name} tokens"
    note = "; ".join(filter(None, [opened.tokens_of.extractor.note, answers.note]))
    told = {} if answers.predicted is None else {opened.name: (answers.predicted, note)}
    if "predicted" in answers.alone:
        told[alone_name(opened)] = answers.alone["predicted"], note
    told |= {name: (guess, note) for name, guess in answers.reference_predictions.items()}
    told |= {_same_tokens(kind): (found[0], opened.tokens_of.extractor.note) for kind, found in space.shrunk.items()}
    told[SAME_TOKENS] = space.predicted, opened.tokens_of.extractor.note
    return [judge(study, guess, model, name, said, features_of=mark) for model, (guess, said) in told.items()]


def alone_name(opened: OpenedModel) -> str:
    """Name of the model without what it is stacked with."""
    return f"{opened.model.model.label if isinstance(opened.model, Stacked) else opened.model.label} alone"


def reference_name(opened: OpenedModel, name: str) -> str:
    """Name in tables of a simpler method that a model names beside itself."""
    return f"{opened.name}: {name}"


def _same_tokens(kind: str) -> str:
    """Name of a linear model on the tokens of a trained one."""
    return f"{kind}, same tokens"


def _decoding_rows(opened: OpenedModel, study: Study, space: TokenSpace, answers: Answers) -> list[Decoded]:
    """Tokens, and latents, found among the tokens of all test images: the model, then references and controls."""
    guesses = {}
    if answers.decoded is not None:
        guesses[opened.name] = answers.decoded
    if "decoded" in answers.alone:
        guesses[alone_name(opened)] = answers.alone["decoded"]
    guesses |= answers.reference_decodings
    guesses |= {_same_tokens(kind): found[1] for kind, found in space.shrunk.items()}
    guesses[SAME_TOKENS] = space.decode(study, study.measured)
    guesses["mean of train tokens"] = np.broadcast_to(space.train.mean(0), space.test.shape)
    if answers.decoded is not None:
        guesses[f"{opened.name}, responses of another image"] = answers.decoded[other_images(study)]
    guesses |= {f"{opened.name} {kind}": latents for kind, latents in answers.latents.items()}
    found = [_found(opened, study, space, guess, decoder) for decoder, guess in guesses.items()]
    wrong = [_found(opened, study, space, guess, SHUFFLED) for guess in space.shuffled(study)]
    return [*found, replace(wrong[0], scores=chance_band([run.scores for run in wrong]))]


def other_images(study: Study) -> np.ndarray:
    """For each test image the row of another one; each is taken once."""
    order = np.random.default_rng(study.seed).permutation(len(study.test))
    rows = np.empty(len(order), np.int64)
    rows[order] = np.roll(order, 1)
    return rows


def _found(opened: OpenedModel, study: Study, space: TokenSpace, guess: np.ndarray, decoder: str) -> Decoded:
    """How well tokens (n, m, d), or latents in their place, tell test images apart."""
    name, note = f"{opened.tokens_of.name} tokens", opened.tokens_of.extractor.note
    table = similarity(guess, space.test)
    options = {"resamples": study.resamples, "seed": study.seed, "decoder": decoder}
    scores = full_gallery(table, **options)
    scores.append(identification(space.test, guess, name, **options))
    scores.append(score_images(metric(f"token_cosine[{name}]"), np.diagonal(table), table, **options))
    return Decoded(name, _under(opened, study, scores, note), table, note)


def _semantics(opened: OpenedModel, study: Study, space: TokenSpace, answers: Answers) -> list[Semantics]:
    """What is read from synthetic responses: by the model itself, and by a ridge that was fitted to measured ones."""
    external = {"measured": study.measured, opened.name: answers.predicted, SAME_TOKENS: space.predicted}
    known = {responses: values for responses, values in external.items() if values is not None}
    rows = [(responses, EXTERNAL, space.decode(study, values)) for responses, values in known.items()]
    if answers.returned is not None:
        rows = [("measured", "self", answers.decoded), (opened.name, "self", answers.returned), *rows]
    found = []
    for responses, decoder, guess in rows:
        told = f"{decoder} on {'measured responses' if responses == 'measured' else f'responses of {responses}'}"
        options = {"resamples": study.resamples, "seed": study.seed, "decoder": told}
        first = identification(space.test, guess, decoder, "semantic_after_decoding", **options)
        scores = [first, *full_gallery(similarity(guess, space.test), (1,), **options)]
        found.append(Semantics(responses, decoder, _under(opened, study, scores, opened.tokens_of.extractor.note)))
    return found


def _under(opened: OpenedModel, study: Study, scores: Sequence[Score], note: str) -> list[Score]:
    mask = f"{int(study.voxels.sum())} of {len(study.voxels)} voxels"
    mark = opened.model.fingerprint_
    return [
        score.under(
            study.test,
            features=mark,
            mask=mask if _linear(opened, score.decoder or "") else "voxels of the model",
            note="; ".join(filter(None, [score.note, note])),
        )
        for score in scores
    ]


def _linear(opened: OpenedModel, decoder: str) -> bool:
    """Whether a decoder is one of the linear models beside the model, which see the voxels that count."""
    return "ridge" in decoder and not decoder.startswith(opened.name)


def _trips(opened: OpenedModel, study: Study, cache: FeatureCache) -> list[Trip]:
    model, subject = opened.model, opened.subject_in(study)
    starts = {"images": {"features": cache, "image_ids": study.test.image_ids}, "responses": {"responses": study.test}}
    return [
        Trip.of(name, through, model.round_trip(**start, subject=subject, through=through))
        for through in ("latent", "response")
        for name, start in starts.items()
    ]
