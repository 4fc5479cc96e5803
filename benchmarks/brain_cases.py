"""Parts shared by the studies of `brain_models`: simulated subjects, models and baselines on them, rows of scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from brainmodels.baselines import LinearDecoder, MeanMap, NearestNeighbor, Ridge
from brainmodels.data import BrainDataset, Split
from brainmodels.data.normalize import fit_normalizer
from brainmodels.evaluation.encoding import SHRUNK, Encoded, Study, judge, planted_oracle, reliability
from brainmodels.features import FeatureCache, FeatureSource, TokenScaler, extractor
from brainmodels.features.sets import SHIPPED
from brainmodels.metrics import Score
from brainmodels.metrics.retrieval import full_gallery, identification, similarity
from brainmodels.simulated import PRESETS, Preset, SimulatedDataset, simulate
from brainmodels.systems.neuroflow import recipes as neuroflow_recipes
from brainmodels.systems.neuroflow.estimator import NeuroFlow
from brainmodels.systems.synbrain import recipes as synbrain_recipes
from brainmodels.systems.synbrain.estimator import SynBrain
from brainmodels.training.recipe import TrainingStage
from brainmodels.training.stacked import Stacked

from .record import Row

__all__ = [
    "BrainCase",
    "Fitted",
    "Settings",
    "Workshop",
    "decoding_row",
    "encoding_row",
    "scored_row",
    "timed",
    "top1",
]

BUDGET = 64  # cores
REDUCE = (4, 32)  # from 64 x 192 patch tokens to the 16 x 32 of the nano recipes
_CPU = "cpu"


@dataclass(frozen=True)
class Settings:
    """Size of all studies.

    Attributes:
        seeds: seeds of the simulated subjects. Seed 0 is refused, because its scenes trained the backbone.
        voxels: number of voxels of the first subject.
        images, test: numbers of train and test images, each shown three times.
        counts: numbers of images of a new subject. Decoders are augmented at the largest.
        steps: factor of the numbers of steps of the nano recipes.
        resamples: number of resamples for intervals.
        workdir: folder of cached features.
    """

    seeds: Sequence[int] = (1,)
    voxels: int = 400
    images: int = 900
    test: int = 100
    counts: Sequence[int] = (250, 100, 50)
    steps: float = 1.0
    resamples: int = 1000
    workdir: Path = Path("out/brain_models")

    def __post_init__(self):
        if 0 in self.seeds:
            raise ValueError("expected seeds of 1 or more, got 0, whose scenes trained the backbone")

    @property
    def preset(self) -> Preset:
        """The preset `small` with these numbers of voxels and images.

        A session has at least 20 images, because its statistics scale the responses.
        """
        small = PRESETS["small"]
        voxels, sessions = (self.voxels, round(0.88 * self.voxels)), min(small.sessions, max(self.images // 20, 1))
        return replace(small, voxels=voxels, own=self.images, shared=self.test, sessions=sessions)

    def shortened(self, stage: TrainingStage) -> TrainingStage:
        """The stage with its number of steps multiplied by `steps`."""
        return replace(stage, steps=max(round(self.steps * stage.steps), 2))


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and the training time of its stages in seconds."""

    model: Any
    seconds: float


class BrainCase:
    """One subject of a split: responses z-scored within sessions, and tokens of the images.

    Args:
        dataset: simulated data set.
        subject: id of the subject.
        split: split into train and test images. The statistics of the sessions always come from the train images of
            the data set's split "shared", because a smaller split may leave a session without train images.
        source: source of the tokens.
        reduce: reduction of the tokens, as in a recipe.
        resamples: number of resamples for intervals.
    """

    def __init__(
        self,
        dataset: SimulatedDataset,
        subject: str,
        split: Split,
        source: FeatureSource,
        reduce: tuple[int, int] | None,
        resamples: int,
    ):
        self.dataset, self.subject, self.split, self.source, self.reduce = dataset, subject, split, source, reduce
        self.normalizer = fit_normalizer("session_z_train", dataset.subject(subject), dataset.split("shared"))
        self.train, self.test = self.pairs("train", "none"), self.pairs("test", "repeats")
        singles = reliability(dataset.subject(subject), self.train)
        self.study = Study.of(self.pairs("train", "repeats"), self.test, singles, 0.1, resamples, 0)

    def pairs(self, part: str, average: str):
        """The responses of a part of the split."""
        return self.dataset.pairs(self.subject, self.split, part, average, self.normalizer)

    @property
    def oracle(self) -> Encoded:
        """Scores of the planted signal: the ceiling."""
        return planted_oracle(self.study, self.dataset)

    @cached_property
    def scaler(self) -> TokenScaler:
        """The scaler of the tokens, fitted on the train images as in the systems."""
        return TokenScaler(reduce=self.reduce).fit(self.source, np.unique(self.train.image_ids))

    def tokens(self, ids: Sequence[str], source: FeatureSource | None = None) -> np.ndarray:
        """Tokens in the form in which the systems get them, fp32 (n, m, d)."""
        return self.scaler.transform((source or self.source).get(ids, "tokens"))

    def rows(self, pairs: Any) -> np.ndarray:
        """Tokens of pairs, fp32 (n, m d)."""
        return self.tokens(pairs.image_ids).reshape(len(pairs), -1)

    @cached_property
    def baselines(self) -> dict[str, np.ndarray]:
        """Responses to the test images that the baselines predict. They are fitted to averaged responses."""
        X, X_test, Y = self.rows(self.study.train), self.rows(self.test), self.study.measured_train
        models = {"mean map": MeanMap(), "nearest neighbour": NearestNeighbor(), "ridge": Ridge(device=_CPU)}
        models |= {name: kind(device=_CPU) for name, kind in SHRUNK.items()}
        return {name: model.fit(X, Y).predict(X_test) for name, model in models.items()}

    @cached_property
    def linear_decoder(self) -> LinearDecoder:
        """A linear decoder from averaged responses to the same tokens."""
        return LinearDecoder(device=_CPU).fit(self.study.measured_train, self.rows(self.study.train))


class Workshop:
    """Subjects and fitted models. Each is made once in a process and shared by all studies."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._kept: dict[tuple, Any] = {}

    def once(self, key: tuple, make: Callable[[], Any]) -> Any:
        """The result of `make()`, computed at the first call with this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def dataset(self, seed: int, tuning: str = "linear") -> SimulatedDataset:
        """The two simulated subjects of a seed."""
        options = {"seed": seed, "tuning": tuning, "n_subjects": 2}
        return self.once(("data", *options.values()), lambda: simulate(self.settings.preset, **options))

    def cache(self, dataset: BrainDataset, ids: Sequence[str], budget: int = BUDGET) -> FeatureCache:
        """Tokens of the backbone with shipped weights, computed for those of the images that the cache lacks."""
        made = extractor(SHIPPED, pretrained=True, num_cores=budget)
        cache = FeatureCache(self.settings.workdir / "features", made, dataset.stimuli)
        cache.extract(ids, progress=False, verify=False)
        return cache

    def case(self, seed: int, tuning: str = "linear", subject: str = "sim01", split: Split | None = None) -> BrainCase:
        """A subject on the tokens of the backbone."""
        dataset = self.dataset(seed, tuning)
        split = dataset.split("shared") if split is None else split
        ids = sorted(split.ids("train", subject) | split.ids("val", subject) | split.test)

        def make() -> BrainCase:
            return BrainCase(dataset, subject, split, self.cache(dataset, ids), REDUCE, self.settings.resamples)

        return self.once(("case", seed, tuning, subject, split.hash), make)

    def synbrain(self, **changes: Any) -> synbrain_recipes.SynBrainRecipe:
        """The nano recipe of this size."""
        return self._sized(replace(synbrain_recipes.nano(), **({"reduce": REDUCE} | changes)))

    def neuroflow(self, **changes: Any) -> neuroflow_recipes.NeuroFlowRecipe:
        """The nano recipe of this size."""
        return self._sized(replace(neuroflow_recipes.nano(), **({"reduce": REDUCE} | changes)))

    def _sized(self, recipe: Any) -> Any:
        names = [name for name in ("stage1", "stage2", "adapt1", "adapt2") if hasattr(recipe, name)]
        return replace(recipe, **{name: self.settings.shortened(getattr(recipe, name)) for name in names})

    def fit(self, system: type, recipe: Any, case: BrainCase) -> Fitted:
        """Fit a system to the single trials of a case. No trials are held out, since nano recipes do not stop early."""

        def make() -> Fitted:
            model = system(recipe, device=_CPU)
            return timed(model.fit(case.source, case.train, subject=case.subject, validation=0.0))

        return self.once(("fit", system, recipe, case), make)

    def stacked(self, case: BrainCase) -> dict[str, Fitted]:
        """Both systems, stacked as their recipes say, by name."""

        def fitted(system: type, recipe: Any) -> Fitted:
            def make() -> Fitted:
                model = Stacked(system(recipe, device=_CPU), recipe.stack)
                return timed(model.fit(case.source, case.train, subject=case.subject))

            return self.once(("stacked", system, recipe, case), make)

        recipes = {SynBrain: self.synbrain(), NeuroFlow: self.neuroflow()}
        return {system.__name__: fitted(system, recipe) for system, recipe in recipes.items()}

    def both(self, case: BrainCase) -> dict[str, Fitted]:
        """Both fitted systems without what they are stacked with, by name."""
        return {name: Fitted(fit.model.model, fit.seconds) for name, fit in self.stacked(case).items()}


def timed(model: Any) -> Fitted:
    """A fitted model with the training time of its stages."""
    return Fitted(model, sum(stage["seconds"] for stage in model.meta_["stages"]))


def encoding_row(case: BrainCase, name: str, predicted: np.ndarray, rois: bool = False) -> Row:
    """Scores of predicted responses (n, V) to the test images."""
    return scored_row(name, judge(case.study, predicted, name, "tokens"), rois)


def scored_row(name: str, found: Encoded, rois: bool = False) -> Row:
    """One row with the scores of an `Encoded`."""
    row = {"model": name, "voxel r, median": shown(found.score("voxel_r")), "nr2": shown(found.score("nr2"))}
    return row | ({region: f"{value:.2f}" for region, (value, _, _) in found.rois.items()} if rois else {})


def decoding_row(case: BrainCase, name: str, decoded: np.ndarray, tokens: np.ndarray | None = None) -> Row:
    """Identification among the test images from decoded tokens (n, m, d) on the scale of the systems."""
    own = case.tokens(case.test.image_ids) if tokens is None else tokens
    options = {"resamples": case.study.resamples, "seed": 0}
    scores = full_gallery(similarity(decoded, own), top=(1,), **options)
    first = {start: next(x for x in scores if x.metric.name.startswith(start)) for start in _DIRECTIONS.values()}
    row = {"model": name, "two-way": shown(identification(own, decoded, "tokens", **options), 3)}
    return row | {title: shown(first[start]) for title, start in _DIRECTIONS.items()}


_DIRECTIONS = {
    "top-1, image given brain": "image_given_brain_top1",
    "top-1, brain given image": "brain_given_image_top1",
}


def top1(brain: np.ndarray, image: np.ndarray) -> str:
    """Top-1 identification of images from brain features; both are features (n, ...) in the same order."""
    scores = full_gallery(similarity(brain, image), top=(1,), resamples=200)
    return shown(scores[0])


def shown(score: Score, digits: int = 2) -> str:
    """A score as text, with its interval."""
    low, high = score.interval[:2]
    return f"{score.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
