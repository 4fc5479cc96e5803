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

from ..data import BrainDataset
from ..drawing.patch_code import pixels_of
from ..drawing.scenes import SHIPPED
from ..features import Extractor, FeatureCache, extractor
from ..features.sets import FeatureSet
from ..metrics import Score, metric
from ..metrics.image import examples, ssim
from ..metrics.retrieval import correlation_matrix, identification
from ..metrics.slots import missing_weights
from ..metrics.statistics import score_images
from ..nn.tokens_to_image import TokensToImage
from .drawers import Drawers
from .encoding import SHUFFLED, Study, chance_band
from .models import EXTERNAL, SAME_TOKENS, ModelEvaluation, alone_name, other_images
from .published_images import PublishedImages
from .user_pictures import UserFunction

__all__ = ["ANOTHER", "MEAN", "REDUCED", "TRUE", "Drawn", "Judge", "Pictures", "draw_pictures", "drawing_of"]

_log = logging.getLogger(__name__)
TRUE, REDUCED, ANOTHER = "true tokens", "true tokens, reduced", "responses of another image"
MEAN = "mean tokens"
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
        published: Scores as in published tables, by `PublishedImages`. Empty without weights.
    """

    source: str
    drawer: str
    images: np.ndarray
    scores: Sequence[Score]
    published: Sequence[Score] = ()

    def score(self, name: str) -> Score | None:
        """One of the scores by the name of its metric."""
        return next((score for score in self.scores if score.metric.name == name), None)

    def to_json(self) -> dict[str, Any]:
        told = {"source": self.source, "drawer": self.drawer, "scores": [score.to_json() for score in self.scores]}
        return told | ({"published": [score.to_json() for score in self.published]} if self.published else {})


@dataclass(frozen=True)
class Pictures:
    """Pictures from the tokens of one model's space.

    Attributes:
        model: Name of the model.
        alone: Source of a stacked model without its baseline; "" without one.
        shown: Test images at the size of the pictures, uint8 (n, H, W, 3).
        drawn: by source; all of the first drawer, then what the nearest picture makes of the first source, of ridge and
            of the true tokens, where it is not the first.
        chosen: rows for figures: "random" ones, then the "best" and the "worst" of the others by the cosine of decoded
            and true tokens.
        seed: Seed of the random ones.
        bank: What the bank is that the nearest picture is of.
        calibration: Number of images on which the decoders' reliability was measured, and whether they are of
            "validation" or of "folds" of the train images; None where it was not measured.
    """

    model: str
    shown: np.ndarray
    drawn: Sequence[Drawn]
    chosen: dict[str, np.ndarray]
    seed: int
    bank: str
    calibration: tuple[int, str] | None
    alone: str = ""

    def to_json(self) -> dict[str, Any]:
        chosen = {name: rows.tolist() for name, rows in self.chosen.items()}
        drawn = [item.to_json() for item in self.drawn]
        return {
            "model": self.model,
            "chosen": chosen,
            "seed": self.seed,
            "bank": self.bank,
            "calibration": self.calibration,
            "drawn": drawn,
        }


def drawing_of(word: str) -> Path | UserFunction | None:
    """What draws pictures, from the setting `pictures`, for `draw_pictures`.

    Args:
        word: "none" or "nearest", "generator", a folder of `veca brain drawer`, or module:name of the user.

    Raises:
        BrainDataError: Nothing callable of that name.
        LayoutError: No such file or module.
    """
    if word in ("none", "nearest"):
        return None
    if word == "generator":
        return SHIPPED
    return Path(word) if (Path(word) / "nearest.json").is_file() else UserFunction.of(word)


def draw_pictures(
    evaluated: ModelEvaluation,
    study: Study,
    dataset: BrainDataset,
    cache: FeatureCache,
    folder: Path | UserFunction | None = None,
    device: str = "cpu",
    others: Sequence[ModelEvaluation] = (),
    progress: bool = False,
    published: PublishedImages | None = None,
) -> Pictures:
    """Pictures from all that can be decoded into the tokens of one model.

    Each decoder's tokens are calibrated: how far they can be trusted is measured on images that it was not fitted to.
    Pooled features are not. They have no places, so that the nearest picture of a bank is all that is drawn from them.

    Args:
        evaluated: Scores and outputs of the model.
        study, dataset: Responses to the test images, and the images.
        cache: Features of train and test images.
        folder: What `veca brain drawer` has written, or a function of the user; None draws nearest pictures of a bank,
            see `Drawers`.
        device: Device of the networks.
        others: Further models with the same tokens, whose synthetic responses the external ridge reads.
        progress: Show bars.
        published: Networks of published scores; None leaves these scores out.

    Raises:
        BrainDataError: The model's tokens are pooled features, and a generator draws from tokens.
    """
    drawers = Drawers.of(evaluated, study, dataset, cache, folder, device, progress)
    shown = dataset.stimuli.images(study.test.image_ids, drawers.pixels)
    judge, name, space = Judge(study, shown, device, published), evaluated.opened.name, drawers.space
    sources = _sources(evaluated, study, others)
    calibrated = {source: drawers.measured[decoder] for source, (decoder, _) in sources.items()}
    true = space.true(cache, study.test.image_ids)
    drawn = [judge(source, calibrated[source][0], space.whole(guess)) for source, (_, guess) in sources.items()]
    if space.reduces:
        drawn.append(judge(REDUCED, drawers.reduced, space.whole(evaluated.space.test)))
    drawn.append(judge(TRUE, drawers.exact[0], true))
    wrong = map(space.whole, evaluated.space.shuffled(study))
    drawn.append(judge.chance(drawers.measured[SAME_TOKENS][0], wrong))
    for number in range(1, len(drawers.exact)):
        for source in dict.fromkeys((next(iter(sources)), SAME_TOKENS)):
            drawn.append(judge(source, calibrated[source][number], space.whole(sources[source][1])))
        drawn.append(judge(TRUE, drawers.exact[number], true))
    chosen = _chosen(evaluated, study)
    alone = alone_name(evaluated.opened) if "decoded" in evaluated.answers.alone else ""
    return Pictures(name, shown, drawn, chosen, study.seed, drawers.bank, drawers.held_out, alone)


def _sources(
    evaluated: ModelEvaluation, study: Study, others: Sequence[ModelEvaluation]
) -> dict[str, tuple[str, np.ndarray]]:
    """The decoder and its tokens in model units, by what they were decoded from; the model's own first."""
    answers, linear, name = evaluated.answers, evaluated.space, evaluated.opened.name
    found = {}
    if answers.decoded is not None:
        found[name] = name, answers.decoded
    found[SAME_TOKENS] = SAME_TOKENS, linear.decode(study, study.measured)
    if answers.decoded is not None:
        found[ANOTHER] = name, answers.decoded[other_images(study)]
    own = next(iter(found.values()))
    found[MEAN] = own[0], np.broadcast_to(own[1].mean(0), own[1].shape)
    if "decoded" in answers.alone:
        alone = alone_name(evaluated.opened)
        found[alone] = alone, answers.alone["decoded"]
    if answers.returned is not None:
        found[f"{name}, its own responses"] = name, answers.returned
    for item in others if answers.decoded is not None else (evaluated, *others):
        if item.answers.predicted is not None:
            read = linear.decode(study, item.answers.predicted)
            found[f"{EXTERNAL}, responses of {item.opened.name}"] = SAME_TOKENS, read
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

    def __init__(self, study: Study, shown: np.ndarray, device: str, published: PublishedImages | None = None):
        self.study, self.device, self.published = study, device, published
        self.real = pixels_of(shown)
        self.networks = [FeatureSet.parse("vit_nano_patch8").extractor.to(device), extractor("grid").to(device)]
        self.known = [self._seen(network, self.real) for network in self.networks]

    def __call__(self, source: str, drawer: TokensToImage, tokens: np.ndarray, published: bool = True) -> Drawn:
        pictures = drawer(torch.from_numpy(np.ascontiguousarray(tokens, np.float32)).to(self.device)).cpu()
        return self.of_pictures(source, f"{drawer.name} {drawer.fingerprint}", pictures, published)

    def of_pictures(self, source: str, told: str, pictures: torch.Tensor, published: bool = True) -> Drawn:
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
        known = () if self.published is None else self.published.slots
        slots: dict[str, Any] = {name: metric(name).needs_weights for name in WEIGHTED}
        scores += [missing_weights(metric(name), slot) for name, slot in slots.items() if slot not in known]
        images = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        more = self.published.scores(pictures, options["decoder"]) if self.published and published else ()
        return Drawn(source, told, images, scores, more)

    def chance(self, drawer: TokensToImage, shuffles: Iterable[np.ndarray]) -> Drawn:
        """Pictures from ridge after each fit to wrong pairs: mean and range of the scores, images of the first fit."""
        runs = [self(SHUFFLED, drawer, tokens, published=False) for tokens in shuffles]
        scores = chance_band([[score for score in run.scores if score.available] for run in runs])
        absent = [score for score in runs[0].scores if not score.available]
        return replace(runs[0], scores=scores + absent)

    def _seen(self, network: Extractor, images: torch.Tensor) -> np.ndarray:
        outputs = [network(part.to(self.device)) for part in images.split(64)]
        return torch.cat([x.tokens if x.pooled is None else x.pooled for x in outputs]).cpu().numpy()
