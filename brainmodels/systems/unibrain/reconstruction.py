"""Pictures and captions of latents by a frozen generator, with all or some of the four blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from ...errors import BrainDataError, check_choice
from .bank import LatentBank
from .generator import Generator, Latents
from .sampling import Sampling, image_seeds
from .words import clean

__all__ = ["DRAWERS", "KINDS", "MODES", "Reconstruction", "Writing", "reconstructed", "sampling_of"]

DRAWERS = ("denoised", "nearest")
KINDS: dict[str, Literal["image", "text"]] = {"images": "image", "captions": "text"}
# which latent and which contexts are used, and the weight of the image context where it is not free
MODES: dict[str, tuple[bool, bool, bool, float | None]] = {
    "full": (True, True, True, None),
    "only_z": (True, False, False, None),
    "only_z_denoised": (True, False, False, None),
    "only_c_image": (False, True, False, 1.0),
    "only_c_text": (False, False, True, 0.0),
    "prior": (False, False, False, None),
    "without_z": (False, True, True, None),
    "without_c_image": (True, False, True, 0.0),
    "without_c_text": (True, True, False, 1.0),
}


@dataclass(frozen=True)
class Reconstruction:
    """Pictures and captions that were decoded.

    Attributes:
        images: (n, 3, H, W) fp32 in [0, 1]; None where none were asked for.
        captions: n captions, cleaned; None likewise.
        raw: The captions before cleaning.
        latents: Latents that they were made of.
        final: Latents after denoising, by kind: "images", "captions".
        settings: Mode, seed, and the sampling of each kind.
        generator: Name and fingerprint of the generator.
        transductive: Whether the rows influenced each other.
        samples: Further samples of the same latents, with other noise.
    """

    images: np.ndarray | None
    captions: list[str] | None
    raw: list[str] | None
    latents: Latents
    final: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    generator: str
    transductive: bool
    samples: tuple["Reconstruction", ...] = field(default=())

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the images."""
        return self.latents.ids


@dataclass(frozen=True)
class Writing:
    """How captions are written.

    Attributes:
        how: "greedy" or "sample".
        cleaning: What is removed of repetitions.
        transductive: Whether the latents of the rows influenced each other.
    """

    how: str = "greedy"
    cleaning: str = "repeats"
    transductive: bool = False


def sampling_of(base: Sampling, mode: str, given: Mapping[str, Any]) -> Sampling:
    """The sampling with what the caller gives and what the mode needs.

    Args:
        base: Sampling of the recipe.
        mode: A name of `MODES`.
        given: Settings of the caller by name; an unknown one is a `BrainDataError`.
    """
    for name in given:
        check_choice("a setting", name, tuple(known.name for known in fields(Sampling)))
    weight = MODES[mode][3]
    forced: dict[str, Any] = {} if weight is None else {"image_weight": weight}
    if mode == "only_z":
        forced["strength"] = 0.0
    if mode in ("only_z_denoised", "prior"):
        forced["guidance"] = 1.0
    return replace(base, **{**given, **forced})


def reconstructed(
    generator: Generator,
    latents: Latents,
    mode: str,
    sampled: Mapping[str, Sampling],
    writing: Writing,
    seed: int,
    sample: int = 0,
    bank: LatentBank | None = None,
) -> Reconstruction:
    """One sample of pictures, captions or both.

    Args:
        generator: The generator.
        latents: Blocks of n images.
        mode: A name of `MODES`.
        sampled: Sampling of each kind to make, "images" and "captions".
        writing: How captions are written.
        seed, sample: Seed, and number of the sample, of the noise.
        bank: Finds the pictures; None draws what the denoised latents stand for.

    Raises:
        BrainDataError: A block is missing.
        FloatingPointError: A step gives NaN; the message has the kind, the step and the ids.
    """
    uses_z, uses_image, uses_text, _ = MODES[mode]
    ids = list(latents.ids) or [str(row) for row in range(len(latents))]
    seeds = image_seeds(ids, seed, sample)
    contexts = latents.c_image if uses_image else None, latents.c_text if uses_text else None
    final: dict[str, np.ndarray] = {}
    for kind, sampling in sampled.items():
        z = getattr(latents, f"z_{KINDS[kind]}") if uses_z else None
        if uses_z and z is None:
            raise BrainDataError(f"expected z_{KINDS[kind]} to decode {kind} in mode {mode!r}, got none")
        try:
            final[kind] = generator.denoise(KINDS[kind], z, *contexts, sampling=sampling, seeds=seeds)
        except FloatingPointError as error:
            raise FloatingPointError(f"{kind}: {error}, of {', '.join(ids[:8])}") from error
    images = None
    if "images" in final:
        weight = sampled["images"].image_weight
        images = generator.draw(final["images"]) if bank is None else bank(final["images"], *contexts, weight)
    raw = captions = None
    if "captions" in final:
        raw = generator.write(final["captions"], sampling=writing.how, seeds=seeds, cleaning="none")
        captions = [clean(text, writing.cleaning) for text in raw]
    settings: dict[str, Any] = {"mode": mode, "seed": seed, "sample": sample}
    settings |= {"writing": writing.how, "cleaning": writing.cleaning}
    settings["drawer"] = "denoised" if bank is None else bank.name
    settings |= {kind: asdict(item) for kind, item in sampled.items()}
    made_by = f"{generator.name} {generator.fingerprint}"
    return Reconstruction(images, captions, raw, latents, final, settings, made_by, writing.transductive)
