"""Scores of pictures and captions that a model reads from responses, beside what they score without a brain.

    made = evaluate_generation(opened, study, dataset)
    print(made.row("model").score("caption_label[shape]"))

Captions are judged by labels first. Two captions of one template have many words in common, right or wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..baselines import LinearDecoder
from ..data import BrainDataset
from ..errors import BrainDataError
from ..metrics import Score
from ..metrics.labels import caption_label_scores, majority_rate
from ..metrics.retrieval import full_gallery, similarity
from ..metrics.text import caption_scores, words
from .encoding import Study, chance_band
from .models import other_images
from .opened import OpenedModel
from .pictures import Drawn, Judge
from .published_images import PublishedImages

__all__ = ["Generation", "GenerationRow", "evaluate_generation"]

PERMUTATIONS = 20  # of the pairs, for the chance of word scores
SHUFFLES = (0,)  # seeds of the fits to wrong pairs
WEIGHTS = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
GUIDANCES = (1.0, 2.0, 3.0, 5.0, 7.5)
COMPONENTS = (1, 2, 5, 10, 20, 50)
RANDOM_SETS = 5  # of voxels, beside each region
FEWEST, MOST = 2, 30  # levels of a label that captions are judged by

MEANINGS = {
    "model": "pictures and captions from responses, with all four blocks",
    "only_z": "the latents as the regressors give them, without diffusion",
    "denoised": "pictures of the denoised image latent, as published, in place of the nearest ones of a bank",
    "true latents": "ceiling: the generator with the blocks of the shown images",
    "labels by ridge": "ceiling of linear decoding: levels read by ridge, in the template of the captions",
    "other_images": "chance: those of another image",
    "mean latent": "the mean of the train latents, the same for all images",
    "prior_only": "chance: the generator without a brain, from noise and without contexts",
    "noise_input": "chance: random numbers in place of responses",
    "shuffled_pairing": "chance: regressors fitted to wrong pairs",
    "nearest train image": "the train image whose context is nearest to the decoded one, with its caption",
}


@dataclass(frozen=True)
class GenerationRow:
    """Pictures and captions of the test images from one source, with their scores.

    Attributes:
        name: What they were made of; `MEANINGS` has it in words.
        group: "rows", "ablations", "regions", or the name of a curve.
        captions: Caption of each test image; None where none are made.
        images: Pictures (n, H, W, 3) uint8; None likewise.
        scores: Scores of captions, then of pictures.
        share_known: Share of the captions that are captions of train images.
        published: Scores of pictures as in published tables; empty without weights.
    """

    name: str
    group: str
    captions: Sequence[str] | None
    images: np.ndarray | None
    scores: Sequence[Score]
    share_known: float | None = None
    published: Sequence[Score] = ()

    def score(self, name: str) -> Score | None:
        """One of the scores by the name of its metric."""
        return next((score for score in self.scores if score.metric.name == name), None)

    @property
    def labels(self) -> float | None:
        """Mean of the label scores."""
        values = [x.value for x in self.scores if x.metric.name.startswith("caption_label") and x.value is not None]
        return float(np.mean(values)) if values else None

    def to_json(self) -> dict[str, Any]:
        told = {
            "name": self.name,
            "group": self.group,
            "captions": None if self.captions is None else list(self.captions),
            "share_known": self.share_known,
            "scores": [score.to_json() for score in self.scores],
        }
        return told | ({"published": [score.to_json() for score in self.published]} if self.published else {})


@dataclass(frozen=True)
class Generation:
    """All rows of one model.

    Attributes:
        opened: The model.
        rows: Rows and ablations, the model first.
        ids: Test images.
        shown: The pictures that were shown, (n, H, W, 3) uint8.
        references: Caption of each test image that the scores compare with.
        r2: R^2 of each block, before calibration.
        found: Test images identified by the decoded image context.
        settings: Settings of the model's row.
        majority: Rate of the most frequent level of each label.
        transductive: Whether test rows influenced each other.
    """

    opened: OpenedModel
    rows: Sequence[GenerationRow]
    ids: Sequence[str]
    shown: np.ndarray
    references: Sequence[str]
    r2: Mapping[str, float]
    found: Sequence[Score]
    settings: Mapping[str, Any]
    majority: Mapping[str, float]
    transductive: bool = False

    def row(self, name: str) -> GenerationRow:
        """A row by its name; an unknown one is a `BrainDataError`."""
        for row in self.rows:
            if row.name == name:
                return row
        raise BrainDataError(f"expected a row of {', '.join(row.name for row in self.rows)}, got {name!r}")

    def group(self, name: str) -> list[GenerationRow]:
        """The rows of a group."""
        return [row for row in self.rows if row.group == name]

    @property
    def curves(self) -> list[str]:
        """Names of the curves."""
        return list(dict.fromkeys(row.group for row in self.rows if row.group not in ("rows", "ablations", "regions")))

    def to_json(self) -> dict[str, Any]:
        model = self.opened.model
        return {
            "name": self.opened.name,
            "system": model.meta_["system"],
            "recipe": model.recipe.to_json(),
            "generator": model.meta_["generator"],
            "run": dict(self.opened.run),
            "settings": dict(self.settings),
            "transductive": self.transductive,
            "ids": list(self.ids),
            "references": list(self.references),
            "r2": dict(self.r2),
            "majority": dict(self.majority),
            "found": [score.to_json() for score in self.found],
            "rows": [row.to_json() for row in self.rows],
        }


def evaluate_generation(
    opened: OpenedModel,
    study: Study,
    dataset: BrainDataset,
    device: str = "cpu",
    ablations: bool = False,
    cache: Path | None = None,
    published: PublishedImages | None = None,
) -> Generation:
    """Pictures and captions of the test images, their scores, ceilings and controls.

    Args:
        opened: A model whose outputs are images, captions or both.
        study: Responses of its subject, on the scale of its training.
        dataset: The data set with images, captions and, if there are some, labels.
        device: Device of the networks that judge pictures.
        ablations: Add rows without some of the blocks and of single regions, and curves over weight, strength, guidance
            and components.
        cache: Folder that keeps the latents of the train images; None keeps them in memory.
        published: Networks of published scores; None leaves these scores out.

    Raises:
        BrainDataError: The model does not belong to this study, see `OpenedModel.check`.
    """
    opened.check(study)
    case = _Case(opened, study, dataset, device, cache, published)
    rows = [case.row(name, make()) for name, make in case.sources().items()]
    rows.append(case.nearest())
    if case.labels and "captions" in case.what:
        rows.insert(3, case.labels_by_ridge())
    if ablations:
        rows += case.ablations()
    guess = case.latents.c_image
    gallery = similarity(guess.reshape(len(guess), -1), case.true.c_image.reshape(len(guess), -1))
    found = full_gallery(gallery, resamples=study.resamples, seed=study.seed, decoder="ridge into c_image")
    found = [score.under(study.test) for score in found if "top1" in score.metric.name]
    majority = {name: majority_rate(list(level.values())) for name, level in case.labels.items()}
    r2 = case.model.score(dataset.stimuli, study.test, subject=case.subject)
    told = rows[0]
    settings = case.made.settings
    references = list(case.references.values())
    transductive = case.made.transductive
    assert told.name == "model"
    return Generation(opened, rows, case.ids, case.shown, references, r2, found, settings, majority, transductive)


@dataclass
class _Made:
    """Captions and pictures (n, 3, H, W) of the test images."""

    captions: Sequence[str] | None = None
    images: np.ndarray | None = None


@dataclass
class _Case:
    """What all rows of one model share."""

    opened: OpenedModel
    study: Study
    dataset: BrainDataset
    device: str
    cache: Path | None
    published: PublishedImages | None = None
    labels: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self):
        model: Any = self.opened.model  # with the methods of a system that makes pictures or captions
        study, stimuli = self.study, self.dataset.stimuli
        self.model = model
        self.subject = self.opened.subject_in(study)
        self.ids = [str(name) for name in study.test.image_ids]
        self.what = tuple(kind for kind in model.outputs if kind in model.generator_.outputs)
        self.pixels = model.generator_.pixels
        self.latents = model.latents(study.test, subject=self.subject)
        self.source = model.stimulus_latents(stimuli, self.cache)
        self.source.prepare(study.train.image_ids)
        self.true = self.source.blocks(self.ids)
        self.train = self.source.blocks(study.train.image_ids)
        self.caption = model.recipe.z_caption if isinstance(model.recipe.z_caption, int) else 0
        self.references = {name: self._caption(name) for name in self.ids}
        self.known = {self._caption(str(name)) for name in study.train.image_ids}
        self.shown = stimuli.images(self.ids, min(self.pixels, 256))
        self.judge = Judge(study, self.shown, self.device, self.published)
        for name in stimuli.labels:
            values = [str(x) for x in stimuli.label(name, self.ids)]
            if FEWEST <= len(set(values)) <= MOST and self._spoken(values):
                self.labels[name] = dict(zip(self.ids, values, strict=True))
        self.levels = {name: sorted({str(x) for x in stimuli.labels[name]}) for name in self.labels}
        self.made = model.reconstruct(self.latents, what=self.what, seed=study.seed)

    def _caption(self, name: str) -> str:
        texts = self.dataset.stimuli.captions(name)
        return texts[min(self.caption, len(texts) - 1)] if texts else ""

    def _spoken(self, values: Sequence[str]) -> bool:
        """Whether most reference captions say the level of a label, so that captions can be judged by it."""
        said = [set(words(x)) <= set(words(self._caption(image))) for x, image in zip(values, self.ids, strict=True)]
        return bool(np.mean([yes or x == "plain" for yes, x in zip(said, values, strict=True)]) > 0.9)

    def decoded(self, latents: Any, what: Sequence[str] = (), **options: Any) -> _Made:
        made = self.model.reconstruct(latents, what=what or self.what, seed=self.study.seed, **options)
        return _Made(made.captions, made.images)

    def sources(self) -> dict[str, Callable[[], _Made]]:
        """How each row is made, the model first."""
        model, latents = self.model, self.latents
        own = _Made(self.made.captions, self.made.images)
        said: list[str] = list(own.captions or [])
        order = other_images(self.study)
        mean = {name: np.repeat(x.mean(0, keepdims=True), len(self.ids), 0) for name, x in self.train.blocks().items()}
        noise = np.random.default_rng(self.study.seed).standard_normal(self.study.measured.shape).astype(np.float32)
        spread, centre = (f(self.study.measured_train, 0) for f in (np.nanstd, np.nanmean))
        published = {"denoised": lambda: self.decoded(latents, ("images",), drawer="denoised")}
        return {
            "model": lambda: own,
            "only_z": lambda: self.decoded(latents, mode="only_z"),
            **(published if self.made.settings["drawer"] != "denoised" else {}),
            "true latents": lambda: self.decoded(self.true),
            "other_images": lambda: _Made(
                None if own.captions is None else [said[row] for row in order],
                None if own.images is None else own.images[order],
            ),
            "mean latent": lambda: self.decoded(replace(latents, **mean), mode="only_z"),
            "prior_only": lambda: self.decoded(latents, mode="prior"),
            "noise_input": lambda: self.decoded(
                replace(model.latents(np.nan_to_num(noise * spread + centre), subject=self.subject), ids=self.ids)
            ),
            "shuffled_pairing": lambda: self.decoded(self.refitted(SHUFFLES[0])),
        }

    def refitted(self, seed: int | None = None, components: int | None = None) -> Any:
        """Latents by new regressors, fitted to wrong pairs or to few principal components of the responses."""
        model, study = self.model, self.study
        order = (
            np.arange(len(study.train)) if seed is None else np.random.default_rng(seed).permutation(len(study.train))
        )
        X, X_test = (np.nan_to_num(x[:, study.voxels]) for x in (study.measured_train, study.measured))
        if components is not None:
            centre = X.mean(0)
            axes = np.linalg.svd(X - centre, full_matrices=False)[2][:components].T
            X, X_test = (X - centre) @ axes, (X_test - centre) @ axes
        return replace(model.refitted(X, self.train.take(order)).predict(X_test), ids=self.ids)

    def nearest(self) -> GenerationRow:
        """The train image whose context is nearest to the decoded one."""
        train, guess = (x.c_image.reshape(len(x), -1) for x in (self.train, self.latents))
        names = [str(self.study.train.image_ids[row]) for row in similarity(guess, train).argmax(1)]
        pictures = self.dataset.stimuli.images(names, self.shown.shape[1])
        images = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255 if "images" in self.what else None
        captions = [self._caption(name) for name in names] if "captions" in self.what else None
        return self.row("nearest train image", _Made(captions, images))

    def labels_by_ridge(self) -> GenerationRow:
        """Levels of the labels by ridge from the voxels that count, written into the caption of a train image.

        The caption is that of a train image with these levels, or of the one that shares most of them.
        """
        study, stimuli = self.study, self.dataset.stimuli
        X, X_test = study.measured_train[:, study.voxels], study.measured[:, study.voxels]
        train, guesses = [str(name) for name in study.train.image_ids], {}
        for name, levels in self.levels.items():
            truth = np.array([str(x) for x in stimuli.label(name, train)])
            one_hot = (truth[:, None] == np.array(levels)).astype(np.float32)
            guesses[name] = [
                levels[i] for i in LinearDecoder(calibration="none").fit(X, one_hot).predict(X_test).argmax(1)
            ]
        known = {name: [str(x) for x in stimuli.label(name, train)] for name in self.levels}
        captions = []
        for row in range(len(self.ids)):
            same = np.sum([np.array(known[name]) == guesses[name][row] for name in self.levels], 0)
            captions.append(self._caption(train[int(same.argmax())]))
        made = self.row("labels by ridge", _Made(captions, None))
        scores = self._label_scores(guesses)  # the levels themselves, where no train image has all of them
        others = [score for score in made.scores if not score.metric.name.startswith("caption_label")]
        return replace(made, scores=[*scores, *others])

    def _label_scores(self, guesses: Mapping[str, Sequence[str]]) -> list[Score]:
        scores = []
        for name, found in guesses.items():
            said = {image: "" if level == "plain" else level for image, level in zip(self.ids, found, strict=True)}
            scores += self._judged_labels(said, "labels by ridge", [name])
        return scores

    def _judged_labels(self, said: Mapping[str, str], source: str, names: Sequence[str]) -> list[Score]:
        labels = {name: self.labels[name] for name in names}
        options = {"resamples": self.study.resamples, "seed": self.study.seed, "decoder": source}
        return [x.under(self.study.test) for x in caption_label_scores(said, labels, self.levels, **options)]

    def row(self, name: str, made: _Made, group: str = "rows") -> GenerationRow:
        """A row with its scores."""
        scores: list[Score] = []
        share, drawn = None, None
        if made.captions is not None:
            said = dict(zip(self.ids, made.captions, strict=True))
            scores += self._judged_labels(said, name, list(self.labels))
            references = {image: [text] for image, text in self.references.items()}
            options = {"resamples": self.study.resamples, "seed": self.study.seed, "permutations": PERMUTATIONS}
            encoders = [self.bag_of_words(made.captions), *(self.published.text if self.published else ())]
            every = caption_scores(references, said, encoders, decoder=name, **options)
            scores += [score.under(self.study.test) for score in every if "distinct" not in score.metric.name]
            share = float(np.mean([text in self.known for text in made.captions]))
        if made.images is not None:
            pictures = torch.from_numpy(np.ascontiguousarray(made.images, np.float32))
            side = self.shown.shape[1]
            if pictures.shape[-1] != side:
                pictures = torch.nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
            drawer = f"{self.made.settings['drawer']}, {self.made.generator}"
            drawn = self.judge.of_pictures(name, drawer, pictures.clamp(0, 1), published=group == "rows")
            scores += drawn.scores
        published = () if drawn is None else drawn.published
        return GenerationRow(name, group, made.captions, _images_of(drawn), scores, share, published)

    def bag_of_words(self, captions: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
        """Counts of words, as an embedding of captions that needs no weights."""
        texts = [*self.references.values(), *captions]
        places = {word: place for place, word in enumerate(sorted({word for text in texts for word in words(text)}))}

        def counted(texts: Sequence[str]) -> np.ndarray:
            out = np.zeros((len(texts), len(places) + 1))
            for row, text in enumerate(texts):
                out[row, -1] = 1  # an empty caption has a direction too
                for word in words(text):
                    out[row, places[word]] += 1
            return out

        counted.__name__ = "words"
        return counted

    def ablations(self) -> list[GenerationRow]:
        """Rows without some of the blocks, and curves; the noise of all is the same."""
        modes = ("only_z_denoised", "only_c_image", "only_c_text", "without_z", "without_c_image", "without_c_text")
        rows = [self.row(mode, self.decoded(self.latents, mode=mode), "ablations") for mode in modes]
        for name, values in {"image_weight": WEIGHTS, "strength": STRENGTHS, "guidance": GUIDANCES}.items():
            for value in values:
                made = self.decoded(self.latents, **{name: value})
                rows.append(self.row(f"{name} {value:g}", made, name))
        for count in [x for x in COMPONENTS if x < min(self.study.voxels.sum(), len(self.study.train))]:
            made = self.decoded(self.refitted(components=count))
            rows.append(self.row(f"components {count}", made, "components"))
        return rows + (self.regions() if "captions" in self.what else [])

    def regions(self) -> list[GenerationRow]:
        """Captions by new regressors that see one region, all others, or random sets of as many voxels.

        They are the decoded latents without diffusion, so that only the regressors differ.
        """
        rows, usable = [], self.study.voxels
        rng = np.random.default_rng(self.study.seed)
        for name, mask in self.study.rois.items():
            rows.append(self.row(f"{name} alone", self.seen_by(mask), "regions"))
            if (usable & ~mask).any():
                rows.append(self.row(f"without {name}", self.seen_by(usable & ~mask), "regions"))
            sets = [rng.choice(np.flatnonzero(usable), int(mask.sum()), replace=False) for _ in range(RANDOM_SETS)]
            runs = [self.row(f"random voxels, as many as {name}", self.seen_by(x), "regions") for x in sets]
            known = [[score for score in run.scores if score.available] for run in runs]
            rows.append(replace(runs[0], scores=chance_band(known, "random sets")))
        return rows

    def seen_by(self, voxels: np.ndarray) -> _Made:
        """Captions by regressors that see some voxels alone, a mask or numbers."""
        X, X_test = (np.nan_to_num(x[:, voxels]) for x in (self.study.measured_train, self.study.measured))
        text = replace(self.train, z_image=None, c_image=None, c_text=None)
        latents = replace(self.model.refitted(X, text).predict(X_test), ids=self.ids)
        made = self.model.reconstruct(latents, what=("captions",), mode="only_z", seed=self.study.seed)
        return _Made(made.captions)


def _images_of(drawn: Drawn | None) -> np.ndarray | None:
    return None if drawn is None else drawn.images
