"""What draws pictures in an evaluation: a bank of pictures, a generator, and how far each decoder can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..baselines import LinearDecoder
from ..data import BrainDataset, Pairs
from ..data.ids import Ids
from ..drawing import Generator, KeyedNearest, train_nearest
from ..drawing.recipes import nano
from ..drawing.scenes import PIXELS, SHIPPED, bank_pictures, shipped_generator, shipped_nearest
from ..drawing.training import pooled_of
from ..errors import BrainDataError, LeakageError
from ..features import FeatureCache
from ..nn.tokens_to_image import NearestImage
from ..simulated import SimulatedDataset
from ..training.stacked import Stacked
from .encoding import Study
from .models import SAME_TOKENS, ModelEvaluation, alone_name
from .user_pictures import UserFunction, UserPictures

__all__ = ["Drawers", "Space"]

Drawer = Generator | KeyedNearest | NearestImage | UserPictures
FOLDS, LEAST = 5, 30
SCENES = "drawn scenes that no subject has seen"
SAME = 0.02  # mean deviation, in standard deviations, within which two decoders share a calibration


class Space:
    """Between tokens in a model's units and those that are drawn from.

    Tokens are drawn from in the units of the extractor. Pooled features are drawn from in the model's units, where a
    cosine compares them. A function of the user gets both in the units of the extractor.

    Args:
        evaluated: Scores and outputs of the model.
        restores: Whether pooled features are drawn from in the units of the extractor as well.
    """

    def __init__(self, evaluated: ModelEvaluation, restores: bool = False):
        model = evaluated.opened.model.tokens_from
        self.restores = restores
        self.pooled, self.scaler, self._test = model.recipe.what == "pooled", model.scaler_, evaluated.space.test
        whole = restores or not self.pooled
        self.reduces = whole and self.scaler is not None and self.scaler.reduction is not None

    def whole(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens to draw from, approximate where the model's are reduced."""
        plain = np.asarray(tokens, np.float32)
        if self.scaler is None or (self.pooled and not self.restores):
            return plain
        if self.pooled:  # one row an image
            return self.scaler.inverse_transform(plain[:, 0])[:, None]
        return self.scaler.inverse_transform(plain)

    def units(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled features (n, p) of the extractor as tokens (n, 1, E) of the model."""
        scaled = np.asarray(pooled, np.float32) if self.scaler is None else self.scaler.transform(pooled)
        return scaled[:, None]

    def true(self, cache: FeatureCache, ids: Ids) -> np.ndarray:
        """True tokens (n, m, d) of these images to draw from; in model units only those of the test images."""
        if self.pooled:
            return cache.get(ids, "pooled")[:, None] if self.restores else self._test
        return cache.get(ids, "tokens")


@dataclass(frozen=True)
class Drawers:
    """The drawers of one model's tokens, by the decoder that gave the tokens.

    Attributes:
        space: Units of the tokens.
        exact: Drawers of true tokens. The first is the one that was asked for; the nearest picture is always there.
        measured: The same, calibrated on held-out images, for the model and for ridge, by name.
        bank: What the bank of pictures is, in words; "" without one.
        held_out: Number of images of the calibration, and whether they are of "validation" or of "folds" of the train
            images; None for pooled features, whose nearest picture needs no calibration.
        pixels: Side of the pictures.
    """

    space: Space
    exact: tuple[Drawer, ...]
    measured: Mapping[str, tuple[Drawer, ...]]
    bank: str
    held_out: tuple[int, str] | None
    pixels: int

    @property
    def reduced(self) -> Drawer:
        """The first drawer, for true tokens that were reduced as the model's are."""
        first = self.exact[0]
        return first.told(whole=False) if isinstance(first, Generator) else first

    @classmethod
    def of(
        cls,
        evaluated: ModelEvaluation,
        study: Study,
        dataset: BrainDataset,
        cache: FeatureCache,
        folder: Path | UserFunction | None,
        device: str,
        progress: bool,
    ) -> "Drawers":
        """Open or learn the drawers, and measure how far the decoders can be trusted.

        Pooled features have one drawer: the picture of the bank with the highest cosine.

        Args:
            evaluated: Scores and outputs of the model.
            study, dataset: Responses to the images, and the images.
            cache: Features of train and test images.
            folder: What `veca brain drawer` has written, or `SHIPPED` for the generator that ships. None takes the
                drawn scenes that ship where the study is simulated and their keys are of the same features; else a bank
                of the train images, or for pooled features of the images that are not tested on. A function of the
                user draws alone: it learns from the train images what it wants.
            device: Device of all networks.
            progress: Show bars.

        Raises:
            LeakageError: A picture of the bank is tested on.
            BrainDataError: Pooled features, and a generator, which draws from tokens.
        """
        space = Space(evaluated, restores=isinstance(folder, UserFunction))
        if isinstance(folder, UserFunction):
            ids = study.train.image_ids
            drawer = folder.made(space.true(cache, ids), lambda side: dataset.stimuli.images(ids, side), device)
            names = SAME_TOKENS, evaluated.opened.name, alone_name(evaluated.opened)
            return cls(space, (drawer,), dict.fromkeys(names, (drawer,)), "", None, drawer.side)
        if space.pooled:
            nearest, bank, pixels = _nearest_pooled(space, study, dataset, cache, folder, device, progress)
            _check_bank(nearest.ids, study)
            names = SAME_TOKENS, evaluated.opened.name, alone_name(evaluated.opened)
            return cls(space, (nearest,), dict.fromkeys(names, (nearest,)), bank, None, pixels)
        drawers, bank, pixels = _opened(study, dataset, cache, folder, device, progress)
        _check_bank(drawers[-1].bank.ids, study)
        decoded, true, pooled, held = _held_out(evaluated, study, dataset, cache)
        measured, known = {}, []
        for name, guess in decoded.items():  # a stacked model with weight 0 decodes as ridge does
            same = next((other for other in known if np.abs(decoded[other] - guess).mean() < SAME * guess.std()), None)
            if same is None:
                known.append(name)
                nearest = drawers[-1].calibrated(space.whole(guess), true, pooled)
                measured[name] = tuple(
                    x.told(nearest=nearest) if isinstance(x, Generator) else nearest for x in drawers
                )
            else:
                measured[name] = measured[same]
        exact = tuple(x.told(whole=True) if isinstance(x, Generator) else x for x in drawers)
        return cls(space, exact, measured, bank, held, pixels)


def _opened(
    study: Study, dataset: BrainDataset, cache: FeatureCache, folder: Path | None, device: str, progress: bool
) -> tuple[tuple[Generator, KeyedNearest] | tuple[KeyedNearest], str, int]:
    """The drawers, the nearest picture last; what the bank is; and the side of its pictures."""
    if folder == SHIPPED:
        generator = shipped_generator(cache.extractor, device)
        if generator is None:
            raise BrainDataError(
                f"expected features of the VECA that ships with all its cores, of which the generator draws, got "
                f"{cache.extractor.name}"
            )
        return (generator, generator.nearest), f"{len(generator.nearest.bank.ids):,} {SCENES}", generator.recipe.pixels
    if folder is not None:
        pictures, side = bank_pictures(folder)
        if (folder / "generator.json").is_file():
            generator = Generator.load(folder, pictures, device)
            drawers, side = (generator, generator.nearest), generator.recipe.pixels
        else:
            drawers = (KeyedNearest.load(folder, lambda ids: pictures(ids, side), device),)
        return drawers, f"{len(drawers[-1].bank.ids):,} pictures of {folder}", side
    shipped = shipped_nearest(cache.extractor, device) if isinstance(dataset, SimulatedDataset) else None
    if shipped is not None:
        return (shipped,), f"{len(shipped.bank.ids):,} {SCENES}", PIXELS
    ids = study.train.image_ids
    recipe = replace(nano(), bank=len(ids))
    nearest = train_nearest(cache, dataset.stimuli.images, ids, recipe, device=device, progress=progress)
    return (nearest,), f"{len(ids):,} train images", recipe.pixels


def _check_bank(ids: np.ndarray, study: Study) -> None:
    """Refuse a bank with pictures that are tested on."""
    seen = set(ids.tolist()) & set(map(str, study.test.image_ids))
    if seen:
        raise LeakageError(f"expected a bank without test images, got one with {len(seen)}, such as {min(seen)}")


def _nearest_pooled(
    space: Space,
    study: Study,
    dataset: BrainDataset,
    cache: FeatureCache,
    folder: Path | None,
    device: str,
    progress: bool,
) -> tuple[NearestImage, str, int]:
    """The nearest picture by pooled features, what its bank is, and the side of its pictures."""
    if folder is not None and (folder / "generator.json").is_file():
        raise BrainDataError(
            f"expected the nearest picture of pooled features ({cache.extractor.name}), got the generator of {folder}, "
            "which draws from tokens; take nearest, or a folder of `veca brain drawer --kind nearest`"
        )
    if folder is not None:
        pictures, side = bank_pictures(folder)
        keyed, told = KeyedNearest.load(folder, lambda ids: pictures(ids, side)), f"pictures of {folder}"
    else:
        keyed = shipped_nearest(cache.extractor, device) if isinstance(dataset, SimulatedDataset) else None
        side, told = PIXELS, SCENES
    if keyed is not None:
        bank, count = keyed.bank, len(keyed.bank.ids)
        tokens = space.units(bank.pooled.cpu().numpy())
        return NearestImage(tokens, bank.images(np.arange(count)), bank.ids, centre=False), f"{count:,} {told}", side
    recipe = nano()
    ids = np.array([str(name) for name in dataset.stimuli.ids if str(name) not in study.test.split.test])[: recipe.bank]
    cache.extract(ids, device=device, progress=progress, verify=False)
    tokens, images = space.units(cache.get(ids, "pooled")), dataset.stimuli.images(ids, recipe.pixels)
    return NearestImage(tokens, images, ids, centre=False), f"{len(ids):,} images that are not tested on", recipe.pixels


def _held_out(
    evaluated: ModelEvaluation, study: Study, dataset: BrainDataset, cache: FeatureCache
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, tuple[int, str]]:
    """Tokens that model and ridge decode of images they were not fitted to, and the true ones.

    They are the validation images. With fewer than `LEAST` of them, ridge decodes train images in folds, and the model
    is taken to be as reliable as ridge.

    Returns:
        Tokens in model units by decoder; true tokens and pooled features of the extractor; number and kind of images.
    """
    opened, train, name = evaluated.opened, study.train, evaluated.opened.name
    split, subject = train.split, train.subject
    trials = subject.responses.trials
    if len(np.unique(trials.image_id[split.rows(trials, "val", subject.id)])) >= LEAST:
        held: Pairs = dataset.pairs(subject.id, split, "val", "repeats", train.transform)
        cache.extract(held.image_ids, progress=False, verify=False)
        decoded = {SAME_TOKENS: evaluated.space.decode(study, held.array())}
        if opened.decodes:
            model, subject = opened.model, opened.subject_in(study)
            decoded[name] = model.tokens(model.decode(held, subject=subject))
            if isinstance(model, Stacked):
                decoded[alone_name(opened)] = model.tokens(model.model.decode(held, subject=subject))
        ids, kind = held.image_ids, "validation"
    else:
        ids, kind = train.image_ids, "folds"
        guess = _in_folds(study.measured_train[:, study.voxels], evaluated.space.train, study.seed)
        decoded = dict.fromkeys((SAME_TOKENS, name, alone_name(opened)), guess)
    return decoded, cache.get(ids, "tokens"), pooled_of(cache, ids), (len(ids), kind)


def _in_folds(responses: np.ndarray, tokens: np.ndarray, seed: int) -> np.ndarray:
    """Tokens (n, m, d) that ridge reads from responses (n, V) of images that it was not fitted to."""
    fold = np.random.default_rng(seed).permutation(len(tokens)) % FOLDS
    guess, flat = np.empty_like(tokens), tokens.reshape(len(tokens), -1)
    for number in range(FOLDS):
        out = fold == number
        guess[out] = LinearDecoder().fit(responses[~out], flat[~out]).predict(responses[out]).reshape(guess[out].shape)
    return guess
