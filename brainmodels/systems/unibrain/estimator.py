"""UniBrain as an estimator: fit, latents, decode, score, save, load."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...data import StimulusSet
from ...data.align import alignment_of
from ...data.ids import Ids
from ...errors import BrainDataError, LayoutError, LeakageError, NormalizationError, check_choice
from ...training.estimator import BrainModel
from ...training.files import read_model
from ...training.loop import StageResult
from ...training.run import Run
from ...training.trials import Recording, TrialData, Trials
from .bank import LatentBank, shipped_bank
from .generator import Generator, Latents
from .nano import NanoGenerator
from .recipes import UniBrainRecipe, named
from .reconstruction import DRAWERS, KINDS, MODES, Reconstruction, Writing, reconstructed, sampling_of
from .regressors import Regressors
from .saved import load_generator, save_generator
from .targets import StimulusLatents

__all__ = ["UniBrain"]

REPEATS = ("avg_voxels", "avg_outputs")


class UniBrain(BrainModel):
    """Responses to a picture and a caption: four ridge regressors, and one frozen generator.

        z_image, z_text, c_image, c_text = ridge(response)
        picture = draw(denoise(noised z_image | c_image, c_text)),  caption = write(denoise(noised z_text | ...))

    Args:
        config: An `UniBrainRecipe`, or its name: "nano", "tiny", "paper", "versatile".
        generator: A `Generator`, the folder of one, or None for the one that ships with the package.
        pairing, device: As in `BrainModel`; only pairing "ids" is possible, because pictures and captions have ids.

    Attributes:
        generator_: The generator.
        regressors_: `Regressors` by subject.
        and those of `BrainModel`.

    Example:
        >>> model = UniBrain("nano").fit(dataset.stimuli, dataset.pairs("sim01", "shared", "train"))  # doctest: +SKIP
        >>> model.decode(dataset.pairs("sim01", "shared", "test", "repeats")).captions  # doctest: +SKIP
    """

    direction = "decode"
    about = "responses to a picture and a caption by four ridge regressors and a frozen generator"
    recipe_type, named = UniBrainRecipe, staticmethod(named)
    inputs: ClassVar[str] = "stimuli"
    outputs: ClassVar[tuple[str, ...]] = ("images", "captions")
    trained_by: ClassVar[str] = "the generator is trained by `veca brain pretrain`, the regressors in one step"
    options: ClassVar[tuple[str, ...]] = ("generator",)

    generator_: Any  # a Generator
    recipe: UniBrainRecipe
    regressors_: dict[str, Regressors]

    def __init__(
        self,
        config: UniBrainRecipe | str = "nano",
        generator: Generator | str | Path | None = None,
        pairing: str = "ids",
        device: str | torch.device | None = None,
    ):
        self.generator = generator
        self._found: LatentBank | None = None  # the bank, once it was needed
        super().__init__(config, pairing, device)

    def _check_params(self) -> None:
        super()._check_params()
        if self.pairing != "ids":
            raise BrainDataError(
                f"expected pairing='ids', because pictures and captions have ids, got {self.pairing!r}"
            )

    def _build(self, voxels: Mapping[str, int]) -> None:
        """Nothing: the regressors come from the statistics, the generator from its own folder."""

    # fitting

    def fit(
        self,
        stimuli: StimulusSet,
        responses: Trials | Mapping[str, Trials],
        *,
        subject: str = "default",
        image_ids: Ids | Mapping[str, Ids] | None = None,
        drop_voxels: bool = False,
        alignment: str = "auto",
        cache: str | Path | None = None,
        progress: bool = False,
    ) -> Self:
        """Fit the regressors of each subject. Repeats of an image are averaged first.

        Args:
            stimuli: Images, with captions where the generator writes some.
            responses, subject, image_ids, drop_voxels: As in `BrainModel.fit`; a dictionary by subject fits all.
            alignment: "auto" tests first whether responses identify their images, and captions their pictures. "off"
                does not.
            cache: Folder that keeps the latents of the images as fp16; None keeps them in memory.
            progress: Not used: nothing takes long.

        Raises:
            LeakageError: The generator was trained on some of these images.
            AlignmentError: Responses or captions identify their images at chance.
            BrainDataError: Ids, shapes, captions or values are not what they should be; see the message.
        """
        self._check_params()
        self.generator_, self._found = self._opened(self.generator), None
        source = self.stimulus_latents(stimuli, cache)
        given = responses if isinstance(responses, Mapping) else {subject: responses}
        ids = image_ids if isinstance(image_ids, Mapping) else dict.fromkeys(given, image_ids)
        shown = {str(x) for name, part in given.items() for x in Recording.of(part, ids.get(name)).image_ids}
        known = sorted(name for name in shown if self.generator_.unseen and name.startswith(self.generator_.unseen))
        if known:
            raise LeakageError(
                f"expected images that the generator {self.generator_.name} was not trained on, got {len(known)} such "
                f"as {known[0]}; simulate with another seed"
            )
        if all(shown):
            source.prepare(sorted(shown))
        self._source = source
        try:
            options = {"image_ids": image_ids, "drop_voxels": drop_voxels, "alignment": alignment}
            return super().fit(source, responses, subject=subject, progress=progress, **options)
        finally:
            del self._source

    def _train(self, run: Run, data: TrialData) -> list[StageResult]:
        self.regressors_ = {}
        for name in self.subjects_:
            ids, X = data.averaged(name)
            latents = self._source.blocks(ids)
            self.regressors_[name] = self.refitted(X, latents)
        self.train_ids_ = data.train_ids()
        return []

    def _aligned(self, data: TrialData, alignment: str) -> dict[str, Any]:
        """Test responses against pictures, and captions against pictures: files of both may be off by one row."""
        found = super()._aligned(data, alignment)
        latents = self._source.blocks(data.train_ids())
        if alignment == "auto" and latents.z_text is not None and latents.c_image is not None:
            self.captions_aligned_ = str(alignment_of("captions", latents.z_text, latents.c_image))
        return found

    def _note(self, data: TrialData, stages: Sequence[Any], alignment: Mapping[str, Any]) -> None:
        super()._note(data, stages, alignment)
        self.meta_["generator"] = {
            "name": self.generator_.name,
            "fingerprint": self.generator_.fingerprint,
            "folder": str(self.generator) if isinstance(self.generator, str | Path) else "",
        }
        self.meta_["captions_alignment"] = getattr(self, "captions_aligned_", "not tested")

    def _opened(self, generator: Generator | str | Path | None) -> Any:
        """The generator itself, one from its folder, or the shipped one."""
        if generator is not None and not isinstance(generator, str | Path):
            return generator
        if self.recipe.generator == "nano":
            return load_generator(generator, device=self._place())
        from .versatile import VersatileGenerator

        if generator is None:
            raise LayoutError(
                f"expected the folder of Versatile Diffusion for the recipe {self.recipe.name!r}, got none: pass "
                "generator= a local folder in diffusers' layout; nothing is downloaded"
            )
        return VersatileGenerator(generator, device=self._place())

    def check_unseen(self, image_ids: Ids) -> bool:
        """Refuse images of the fit, and those of the generator's training, with a `LeakageError`."""
        both = sorted({*map(str, image_ids)} & {*self.train_ids_})
        start = self.generator_.unseen
        both += [name for name in map(str, image_ids) if start and name.startswith(start)]
        if both:
            raise LeakageError(f"expected test images that were not fitted, got {len(both)} such as {both[0]!r}")
        return True

    # use

    def latents(
        self, responses: Trials, *, subject: str | None = None, repeats: str = "avg_voxels", calibrated: bool = True
    ) -> Latents:
        """The four blocks of the images that responses are of.

        Args:
            responses: Responses of one subject; trials of one image are averaged. Rows of an array are images each.
            subject: The subject; None where there is one.
            repeats: "avg_voxels" averages responses, "avg_outputs" averages the blocks of single trials.
            calibrated: Give the blocks the spread that they had in training. Without it they have the least squared
                error.

        Returns:
            Blocks with one row for each image, in the order in which the images come first.

        Raises:
            AxisError: The voxels are not those of the fit.
            NormalizationError: The responses went through another normaliser.
        """
        check_choice("repeats", repeats, REPEATS)
        name = self._subject(subject)
        values, ids = self._measured(responses, name).numpy(), Recording.of(responses).image_ids
        known = bool(len(ids)) and bool(ids.all())
        ids = ids if known else np.array([str(row) for row in range(len(values))])
        order = list(dict.fromkeys(ids.tolist()))
        rows = [np.flatnonzero(ids == image) for image in order]
        regressors = self.regressors_[name]
        if repeats == "avg_voxels":
            found = regressors.predict(np.stack([values[own].mean(0) for own in rows]), calibrated)
        else:
            single = regressors.predict(values, calibrated).blocks()
            means: dict[str, Any] = {key: np.stack([x[own].mean(0) for own in rows]) for key, x in single.items()}
            found = Latents(**means)
        return replace(found, ids=order, generator=self.meta_["generator"]["fingerprint"])

    def decode(
        self,
        responses: Trials,
        *,
        subject: str | None = None,
        what: Sequence[str] = ("images", "captions"),
        mode: str = "full",
        image_weight: float | None = None,
        strength: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        n_samples: int = 1,
        seed: int = 0,
        repeats: str = "avg_voxels",
        drawer: str | None = None,
    ) -> Reconstruction:
        """Pictures and captions of the images that responses are of.

        Args:
            responses, subject, repeats: As in `latents`.
            what: "images", "captions", or both.
            mode: What is used of the four blocks; see `MODES`. "only_z" decodes the latent as it is.
            image_weight: Weight of the image context, for both; 0 is the text context alone, 1 the image context alone.
            strength, steps, guidance: As in `Sampling`, for both. None is the recipe's.
            n_samples: Number of samples with different noise.
            seed: Seed of the noise, which also depends on the id of each image.
            drawer: "denoised" or "nearest", see `UniBrainRecipe`; None is the recipe's.

        Raises:
            LeakageError: The bank of pictures has an image of the responses.
            BrainDataError: An unknown mode or kind, a number out of range, or a kind that the generator lacks.
            FloatingPointError: A step gives NaN; the message has the kind, the step and the id.
        """
        sampled = {"image_weight": image_weight, "strength": strength, "steps": steps, "guidance": guidance}
        latents = self.latents(responses, subject=subject, repeats=repeats)
        options: Any = {"n_samples": n_samples, "seed": seed, "drawer": drawer, **sampled}
        return self.reconstruct(latents, what=what, mode=mode, **options)

    def reconstruct(
        self,
        latents: Latents,
        *,
        what: Sequence[str] = ("images", "captions"),
        mode: str = "full",
        n_samples: int = 1,
        seed: int = 0,
        drawer: str | None = None,
        **options: float | None,
    ) -> Reconstruction:
        """Pictures and captions of latents; arguments are those of `decode`. True latents give the generator's ceiling.

        Raises:
            NormalizationError: The latents are of another generator.
        """
        self._check_fitted()
        check_choice("mode", mode, tuple(MODES))
        what = (what,) if isinstance(what, str) else tuple(what)
        for kind in what:
            check_choice("what", kind, tuple(KINDS))
            if kind not in self.generator_.outputs:
                raise BrainDataError(f"expected a generator that makes {kind}, got {self.generator_.name} without")
        if n_samples < 1 or not what:
            raise BrainDataError(f"expected one sample or more of images or captions, got {n_samples} of {what}")
        expected = self.meta_["generator"]["fingerprint"]
        if latents.generator not in ("", expected):
            raise NormalizationError(f"expected latents of the generator {expected}, got those of {latents.generator}")
        latents.check(self.generator_.shapes)
        recipe = self.recipe
        given = {name: value for name, value in options.items() if value is not None}
        sampled = {kind: sampling_of(getattr(recipe, kind), mode, given) for kind in what}
        how = Writing(recipe.writing, recipe.cleaning, recipe.calibration == "test_batch")
        bank = self._bank(recipe.drawer if drawer is None else drawer, latents.ids) if "images" in what else None
        made = [reconstructed(self.generator_, latents, mode, sampled, how, seed, x, bank) for x in range(n_samples)]
        return replace(made[0], samples=tuple(made[1:]))

    def _bank(self, drawer: str, ids: Sequence[str]) -> LatentBank | None:
        """The bank of a drawer that takes one, without the images that are decoded."""
        if check_choice("drawer", drawer, DRAWERS) == "denoised":
            return None
        if not isinstance(self.generator_, NanoGenerator):
            raise BrainDataError(f"expected drawer='denoised' of the generator {self.generator_.name}, got {drawer!r}")
        if self._found is None:
            caption = self.recipe.c_caption
            self._found = shipped_bank(self.generator_, caption if isinstance(caption, int) else 1)
        both = {*self._found.ids.tolist()} & {*map(str, ids)}
        if both:
            raise LeakageError(f"expected images that are not in the bank of pictures, got {len(both)}: {min(both)}")
        return self._found

    def score(self, stimuli: StimulusSet, responses: Trials, *, subject: str | None = None) -> dict[str, float]:
        """R^2 of each block, pooled over its columns: 1 - sum (y - p)^2 / sum (y - mean y)^2.

        Predictions are those with the least squared error, before calibration.

        Args:
            stimuli: The images of the responses, with captions.
            responses: Responses of one subject that know their images.
            subject: The subject; None where there is one.
        """
        guess = self.latents(responses, subject=subject, calibrated=False)
        true = self.stimulus_latents(stimuli).blocks(guess.ids).blocks()
        return {name: _pooled_r2(true[name], block) for name, block in guess.blocks().items()}

    def stimulus_latents(self, stimuli: StimulusSet, cache: str | Path | None = None) -> StimulusLatents:
        """True blocks of images by id, with the captions of the recipe; `cache` is a folder that keeps them."""
        recipe = self.recipe
        return StimulusLatents(stimuli, self.generator_, recipe.z_caption, recipe.c_caption, cache)

    def refitted(self, X: np.ndarray, latents: Latents) -> Regressors:
        """New regressors with the settings of this model, for controls; the model stays as it is.

        Args:
            X: (n, V) Responses, one row for each image.
            latents: Blocks of these images.
        """
        return Regressors.fit(X, latents, self.recipe.penalties, self.recipe.calibration)

    # files

    def _statistics(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, texts = super()._statistics()
        texts["regressors"], texts["train_ids"] = {}, self.train_ids_
        for name, regressors in self.regressors_.items():
            own, texts["regressors"][name] = regressors.arrays(f"regressors.{name}.")
            arrays |= own
        return arrays, texts

    def _restore(self, arrays: dict[str, Tensor], texts: Mapping[str, Any], subjects: Mapping[str, Any]) -> None:
        super()._restore(arrays, texts, subjects)
        told = texts["regressors"]
        self.regressors_ = {x: Regressors.from_arrays(arrays, f"regressors.{x}.", told[x]) for x in subjects}
        self.train_ids_ = list(texts["train_ids"])

    def _save_more(self, folder: Path) -> None:
        """A copy of a small generator; a large one is named by its folder and its fingerprint."""
        if isinstance(self.generator_, NanoGenerator) and self.generator_.probe is not None:
            save_generator(self.generator_, folder / "generator", *self.generator_.probe)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        generator: Generator | str | Path | None = None,
    ) -> Self:
        """The model that `save` wrote.

        Args:
            folder: Folder of the model.
            device: Device of the generator.
            generator: The generator, or its folder; None takes the copy in the folder, or the folder of the fit.

        Raises:
            LayoutError: A file is missing or broken, or it is of another system.
            NormalizationError: The generator is not that of the fit.
        """
        folder = Path(folder)
        model = read_model(cls, folder, device)
        told = model.meta_["generator"]
        if generator is None:
            generator = folder / "generator" if (folder / "generator").is_dir() else (told["folder"] or None)
        model.generator = generator
        model.generator_ = model._opened(generator)
        if model.generator_.fingerprint != told["fingerprint"]:
            raise NormalizationError(
                f"expected the generator {told['name']} {told['fingerprint']}, as in the fit, got "
                f"{model.generator_.name} {model.generator_.fingerprint}"
            )
        return model


def _pooled_r2(true: np.ndarray, guess: np.ndarray) -> float:
    true, guess = (x.reshape(len(x), -1).astype(np.float64) for x in (true, guess))
    spread = np.square(true - true.mean(0)).sum()
    return float(1 - np.square(true - guess).sum() / spread) if spread > 0 else float("nan")
