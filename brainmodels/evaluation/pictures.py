"""Pictures from decoded tokens, with scores beside controls and beside the best that the drawing allows.

The score of a picture is one of decoding and drawing together. The row from true tokens says how well the drawing
works. The row from another image's responses says what a picture scores by chance.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from veca.hashes import hex_digest, json_digest

from ..data import BrainDataset, Pairs
from ..data.ids import Ids
from ..errors import BrainDataError
from ..features import Extractor, FeatureCache, TokenScaler, extractor
from ..features.sets import FeatureSet
from ..metrics import Score, metric, not_available
from ..metrics.image import examples, ssim
from ..metrics.retrieval import correlation_matrix, identification
from ..metrics.statistics import score_images
from ..nn.tokens_to_image import Blend, ConvDecoder, DecoderSize, NearestImage, TokensToImage
from ..simulated import SimulatedDataset, scene_stimuli
from .encoding import SHUFFLED, Study, chance_band
from .models import EXTERNAL, SAME_TOKENS, ModelEvaluation, other_images

__all__ = ["ANOTHER", "REDUCED", "TRUE", "Drawn", "Judge", "Pictures", "draw_pictures"]

_log = logging.getLogger(__name__)
TRUE, REDUCED, ANOTHER = "true tokens", "true tokens, reduced", "responses of another image"
SCENES, SCENES_SEED = 1000, 1000  # further scenes of a simulated study, and how far their seed is from its own
STEPS, TRUE_SHARE, UNKNOWN_ERROR = 1500, 0.25, 1.0
LOW = 0.35  # share of what is drawn, laid over the nearest picture
WEIGHTED = ("alexnet2", "alexnet5", "inception", "clip", "effnet_b1", "swav")  # scores of published tables
RANDOM = 8  # test images in figures


@dataclass(frozen=True)
class Drawn:
    """Pictures of the test images from one source of tokens.

    Attributes:
        source: What the tokens were decoded from.
        drawer: Name and fingerprint of the model that draws them.
        images: Pictures (n, H, W, 3), uint8.
        scores: pixcorr, ssim_2d and two-way identification by networks, then the names of scores whose weights are
            absent.
    """

    source: str
    drawer: str
    images: np.ndarray
    scores: Sequence[Score]

    def score(self, name: str) -> Score | None:
        """One of the scores by the name of its metric."""
        return next((score for score in self.scores if score.metric.name == name), None)

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "drawer": self.drawer, "scores": [score.to_json() for score in self.scores]}


@dataclass(frozen=True)
class Pictures:
    """Pictures from the tokens of one model's space.

    Attributes:
        model: Name of the model.
        shown: Test images at the size of the pictures, uint8 (n, H, W, 3).
        drawn: by source; all of the first drawer, then what others make of the first source, of ridge and of the true
            tokens: the nearest picture of the bank, and what is drawn laid over it.
        chosen: rows for figures: "random" ones, then the "best" and the "worst" of the others by the cosine of decoded
            and true tokens.
        seed: Seed of the random ones.
        trained: How the drawer was trained; empty where it was not.
        bank: Number of pictures of the bank, and of train images among them; the others are scenes that no subject has
            seen.
    """

    model: str
    shown: np.ndarray
    drawn: Sequence[Drawn]
    chosen: dict[str, np.ndarray]
    seed: int
    trained: dict[str, Any]
    bank: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        chosen = {name: rows.tolist() for name, rows in self.chosen.items()}
        drawn = [item.to_json() for item in self.drawn]
        return {
            "model": self.model,
            "chosen": chosen,
            "seed": self.seed,
            "trained": self.trained,
            "bank": self.bank,
            "drawn": drawn,
        }


class _Space:
    """Where pictures are drawn from: tokens as wide as the extractor's where the model's are reduced."""

    def __init__(self, evaluated: ModelEvaluation):
        self.scaler = evaluated.opened.model.scaler_
        self.reduced = self.scaler is not None and self.scaler.reduction is not None

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens in model units as they are drawn from."""
        if self.scaler is None or not self.reduced:
            return np.asarray(tokens, np.float32)
        return self.scaler.inverse_transform(tokens)

    def true(self, features: np.ndarray) -> np.ndarray:
        """Features of the extractor as they are drawn from."""
        return features if self.reduced or self.scaler is None else self.scaler.transform(features)


@dataclass(frozen=True)
class _Bank:
    """Pictures with their features: train images, and where the study is simulated, further scenes."""

    ids: list[str]
    features: np.ndarray  # (N, m, d) of the extractor
    images: np.ndarray  # (N, H, W, 3) uint8

    @classmethod
    def of(
        cls, study: Study, dataset: BrainDataset, cache: FeatureCache, pixels: int, device: str, progress: bool
    ) -> "_Bank":
        ids = list(study.train.image_ids)
        bank = cls(ids, cache.get(ids, "tokens"), dataset.stimuli.images(ids, pixels))
        if not isinstance(dataset, SimulatedDataset):
            return bank
        scenes = scene_stimuli(study.seed + SCENES_SEED, SCENES)
        further = FeatureCache(cache.folder.parent, cache.extractor, scenes, cache.size)
        further.extract(device=device, progress=progress, verify=False)
        features = np.concatenate([bank.features, further.get(scenes.ids, "tokens")])
        images = np.concatenate([bank.images, scenes.images(scenes.ids, pixels)])
        return cls(ids + scenes.ids.tolist(), features, images)


class _FromModel:
    """What draws from tokens of the extractor, given tokens in model units."""

    def __init__(self, drawer: TokensToImage, space: _Space):
        self.drawer, self.space = drawer, space
        self.name, self.fingerprint = drawer.name, drawer.fingerprint

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.drawer(torch.from_numpy(self.space.of(tokens.cpu().numpy())).to(tokens.device))


class _Damaged:
    """True tokens as an array whose rows come as a decoder of brains would give them, with new damage at every reading.

    A row is reduced, gets noise of a random strength up to `error` in the model's space, and is brought back. Some rows
    stay whole. Noise on every number of unreduced tokens would be averaged away, which decoding errors are not.
    """

    ndim = 3

    def __init__(self, features: np.ndarray, space: _Space, error: float, seed: int):
        self.features, self.space, self.error = features, space, error
        self.shape = features.shape
        self._unit = float(features.std()) if space.scaler is None else 1.0
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> np.ndarray:
        features = self.features[rows]
        scaler = self.space.scaler
        tokens = features if scaler is None else scaler.transform(features)
        strength = self.error * self._unit * self._rng.random((len(tokens), 1, 1), np.float32)
        damaged = self.space.of(tokens + strength * self._rng.standard_normal(tokens.shape, np.float32))
        whole = self._rng.random(len(tokens)) < TRUE_SHARE
        return np.where(whole[:, None, None], self.space.true(features), damaged)


def draw_pictures(
    evaluated: ModelEvaluation,
    study: Study,
    dataset: BrainDataset,
    cache: FeatureCache,
    kind: str,
    out: Path,
    device: str = "cpu",
    others: Sequence[ModelEvaluation] = (),
    progress: bool = False,
) -> Pictures:
    """Pictures from all that can be decoded into the tokens of one model.

    Args:
        evaluated: Scores and outputs of the model.
        study, dataset: Responses to the test images, and the images.
        cache: Features of train and test images.
        kind: "nearest", the picture of the bank that is nearest in tokens, or "conv", drawn by a `ConvDecoder` that is
            trained here on the bank, pictures alone. The bank is the train images, and where the study is simulated,
            further scenes.
        out: Folder that keeps the decoder, which is used again for the same inputs.
        device: Device of the decoder.
        others: Further models with the same tokens, whose synthetic responses the external ridge reads.
        progress: Show bars.

    Raises:
        BrainDataError: the model's tokens are pooled features, which have no place for pictures to be drawn.
    """
    if evaluated.opened.model.recipe.what != "tokens":
        raise BrainDataError(f"expected tokens to draw pictures from, got pooled features of {evaluated.opened.name}")
    space, model = _Space(evaluated), evaluated.opened.model
    size = _size(cache, study.train.image_ids, device)
    bank = _Bank.of(study, dataset, cache, size.pixels, device, progress)
    shown = dataset.stimuli.images(study.test.image_ids, size.pixels)
    sources = _sources(evaluated, study, others)
    nearest = NearestImage(model.tokens(bank.features), bank.images, bank.ids)
    judge, first = Judge(study, shown, device), next(iter(sources))
    trained: dict[str, Any] = {}
    if kind == "nearest":
        made = sources | {TRUE: evaluated.space.test}
        drawn = [judge(source, nearest, guess) for source, guess in made.items()]
        drawn.append(judge.chance(nearest, evaluated.space.shuffled(study)))
    else:
        measured = _decode_error(evaluated, study, dataset, cache)
        error = UNKNOWN_ERROR if measured is None else measured
        conv = _conv_decoder(bank, study, cache.fingerprint, space, size, error, out, device, progress)
        made = {source: space.of(guess) for source, guess in sources.items()}
        if space.reduced:
            made[REDUCED] = space.of(evaluated.space.test)
        made[TRUE] = space.true(cache.get(study.test.image_ids, "tokens"))
        drawn = [judge(source, conv, guess) for source, guess in made.items()]
        drawn.append(judge.chance(conv, map(space.of, evaluated.space.shuffled(study))))
        compared = {first: sources[first], SAME_TOKENS: sources[SAME_TOKENS], TRUE: evaluated.space.test}
        for drawer in (nearest, Blend(_FromModel(conv, space), nearest, LOW)):
            drawn += [judge(source, drawer, guess) for source, guess in compared.items()]
        trained = dict(conv.trained) | {"error": error, "error_measured": measured is not None}
    chosen, counts = _chosen(evaluated, study), (len(bank.ids), len(study.train.image_ids))
    return Pictures(evaluated.opened.name, shown, drawn, chosen, study.seed, trained, counts)


def _sources(evaluated: ModelEvaluation, study: Study, others: Sequence[ModelEvaluation]) -> dict[str, np.ndarray]:
    """Tokens in model units by what they were decoded from; the model's own first."""
    answers, linear, name = evaluated.answers, evaluated.space, evaluated.opened.name
    found = {}
    if answers.decoded is not None:
        found[name] = answers.decoded
    found[SAME_TOKENS] = linear.decode(study, study.measured)
    if answers.decoded is not None:
        found[ANOTHER] = answers.decoded[other_images(study)]
    if answers.returned is not None:
        found[f"{name}, its own responses"] = answers.returned
    for item in others if answers.decoded is not None else (evaluated, *others):
        if item.answers.predicted is not None:
            found[f"{EXTERNAL}, responses of {item.opened.name}"] = linear.decode(study, item.answers.predicted)
    return found


def _chosen(evaluated: ModelEvaluation, study: Study) -> dict[str, np.ndarray]:
    """Rows of figures."""
    cosines = np.diagonal(evaluated.decoded[0].similarities)
    drawn_at_random = examples(cosines, "up", min(RANDOM, len(cosines) - 2), study.seed)["random"]
    others = np.setdiff1d(np.arange(len(cosines)), drawn_at_random)
    order = others[np.argsort(-cosines[others], kind="stable")]
    return {"random": drawn_at_random, "best": order[:1], "worst": order[-1:]}


class Judge:
    """Draws from tokens and scores the pictures, at their own size, by networks that need no download."""

    def __init__(self, study: Study, shown: np.ndarray, device: str):
        self.study, self.device = study, device
        self.real = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255
        self.networks = [FeatureSet.parse("vit_nano_patch8").extractor.to(device), extractor("grid").to(device)]
        self.known = [self._seen(network, self.real) for network in self.networks]

    def __call__(self, source: str, drawer: TokensToImage, tokens: np.ndarray) -> Drawn:
        pictures = drawer(torch.from_numpy(np.ascontiguousarray(tokens, np.float32)).to(self.device)).cpu()
        return self.of_pictures(source, f"{drawer.name} {drawer.fingerprint}", pictures)

    def of_pictures(self, source: str, told: str, pictures: torch.Tensor) -> Drawn:
        """Scores of pictures (n, 3, H, W) in [0, 1], of the size of the real ones; `told` says who drew them."""
        study = self.study
        options: dict[str, Any] = {"resamples": study.resamples, "seed": study.seed, "decoder": f"{source}; {told}"}
        options["note"] = f"at {pictures.shape[-1]} px, no published protocol"
        table = correlation_matrix(self.real.numpy(), pictures.numpy())
        scores = [
            score_images(metric("pixcorr"), np.diagonal(table), table, **options),
            score_images(metric("ssim_2d"), ssim(self.real, pictures), **options),
        ]
        for network, known in zip(self.networks, self.known, strict=True):
            seen = self._seen(network, pictures)
            score = identification(known, seen, network.name, **options)
            scores.append(score.under(features=network.fingerprint()))
        scores = [score.under(study.test) for score in scores]
        scores += [not_available(metric(name), f"weights {metric(name).needs_weights}") for name in WEIGHTED]
        images = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return Drawn(source, told, images, scores)

    def chance(self, drawer: TokensToImage, shuffles: Iterable[np.ndarray]) -> Drawn:
        """Pictures from ridge after each fit to wrong pairs: mean and range of the scores, images of the first fit."""
        runs = [self(SHUFFLED, drawer, tokens) for tokens in shuffles]
        scores = chance_band([[score for score in run.scores if score.available] for run in runs])
        absent = [score for score in runs[0].scores if not score.available]
        return replace(runs[0], scores=scores + absent)

    def _seen(self, network: Extractor, images: torch.Tensor) -> np.ndarray:
        outputs = [network(part.to(self.device)) for part in images.split(64)]
        return torch.cat([x.tokens if x.pooled is None else x.pooled for x in outputs]).cpu().numpy()


def _size(cache: FeatureCache, ids: Ids, device: str) -> DecoderSize:
    shape = cache.get(ids[:1], "tokens").shape[1:]
    return DecoderSize.small(*shape) if device == "cpu" else DecoderSize(*shape)


def _decode_error(evaluated: ModelEvaluation, study: Study, dataset: BrainDataset, cache: FeatureCache) -> float | None:
    """Root mean squared error of decoded tokens, in deviations, on validation images; one digit.

    By the model, or by ridge for a model that only encodes. None without validation images.
    """
    opened, train = evaluated.opened, study.train
    split, subject = train.split, train.subject
    if not len(split.rows(subject.responses.trials, "val", subject.id)):
        return None
    held: Pairs = dataset.pairs(subject.id, split, "val", "repeats", train.transform)
    cache.extract(held.image_ids, progress=False, verify=False)
    true, model = opened.model.tokens(cache, held.image_ids), opened.model
    if opened.decodes:
        guess = model.tokens(model.decode(held, subject=opened.subject_in(study)))
    else:
        guess = evaluated.space.decode(study, held.array())
    return round(float(np.sqrt(np.mean(np.square(guess - true)) / np.var(true))), 1)


def _conv_decoder(
    bank: _Bank,
    study: Study,
    fingerprint: str,
    space: _Space,
    size: DecoderSize,
    error: float,
    out: Path,
    device: str,
    progress: bool,
) -> ConvDecoder:
    """The decoder of these inputs: trained now, or found in `out`."""
    key = json_digest([fingerprint, _state(space.scaler), bank.ids, vars(size), error, STEPS, TRUE_SHARE, study.seed])
    folder = Path(out) / key
    if (folder / "config.json").is_file():
        _log.info("pictures are drawn by %s, trained before", folder)
        return ConvDecoder.load(folder, device)
    damaged: Any = _Damaged(bank.features, space, error, study.seed)
    options = {"steps": STEPS, "seed": study.seed, "device": device, "progress": progress}
    conv = ConvDecoder.fit(damaged, bank.images, size, **options)
    conv.save(folder)
    return conv


def _state(scaler: TokenScaler | None) -> str:
    """What changes with any number of a scaler."""
    state = {} if scaler is None else scaler.state_dict()
    return hex_digest(part for name, value in sorted(state.items()) for part in (name, np.asarray(value)))
