"""A picture that talks: what `veca brain animate` does."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.animation import check_saving
from ..errors import BrainDataError
from ..evaluation.kinds import kind_of_models
from ..simulated.talking_head import drawn_face, drawn_speech
from ..systems import load_model, shipped_model
from .opening import open_head

__all__ = ["AnimateSettings", "run_animation"]

RATE = 16_000  # Hz, of drawn speech


@dataclass(frozen=True)
class AnimateSettings:
    """Settings of `veca brain animate`.

    Attributes:
        model: "toy", the model that ships, or the folder of a trained one (`veca brain train --model emodiffhead`).
        image: Square picture of a face, or "toy:SEED", a drawn one.
        audio: File of sound or video, or "toy:SEED" or "toy:SEED:SECONDS", drawn speech.
        out: File to write: .mp4, .gif, .png, .npz, or a folder.
        emotion: Name of an emotion, or a mixture such as "happy=0.5,surprise=0.3".
        intensity: Intensity from 0 to 1.
        lips: "audio" takes the mouth from the sound, "expression" from the coefficients.
        crop: Box of the face in the picture: left, top, right, bottom in pixels.
        head: Head model of a trained model: "toy", "flame:FILE", "gnm:FILE" or "ict:FOLDER".
        steps: Denoising steps of a chunk; None is the recipe's.
        preview: Render every fifth frame in five steps.
        consent: A sentence on the consent of the person, which is written into the file. Only with it is the visible
            mark left out.
        seed: Seed of the noise.
        device: Device; None is a GPU where there is one.
    """

    model: Path
    image: str
    audio: str
    out: Path
    emotion: str = "neutral"
    intensity: float = 1.0
    lips: Literal["audio", "expression"] = "audio"
    crop: tuple[int, int, int, int] | None = None
    head: str = "toy"
    steps: int | None = None
    preview: bool = False
    consent: str | None = None
    seed: int = 0
    device: str | None = None


def run_animation(settings: AnimateSettings) -> Path:
    """Animate a picture, and write it with its sound.

    Returns:
        The file or folder.

    Raises:
        BrainDataError: A setting, the picture or the sound is not what it should be; see the message.
    """
    marks = {"mark": settings.consent is None, "consent": settings.consent}
    check_saving(settings.out, **marks)  # before any time is spent
    image, sound, emotion = _image(settings.image), _sound(settings.audio), _emotion(settings.emotion)
    folder = shipped_model("toy") if settings.model == Path("toy") else settings.model
    if (kind := kind_of_models([folder])) != "clips":
        raise BrainDataError(f"expected a model of clips, such as emodiffhead, got one of {kind} in {folder}")
    head = None if settings.head == "toy" else open_head(settings.head)  # a model knows its own drawn head
    model: Any = load_model(folder, settings.device, head=head)
    frames = model.animate(
        image,
        sound,
        emotion=emotion,
        intensity=settings.intensity,
        sample_rate=RATE,
        lips=settings.lips,
        crop=settings.crop,
        steps=settings.steps,
        preview=settings.preview,
        seed=settings.seed,
    )
    return frames.save(settings.out, **marks)


def _image(word: str) -> Any:
    kind, _, seed = word.partition(":")
    return drawn_face(_number(seed, word, int)) if kind == "toy" and seed else Path(word)


def _sound(word: str) -> Any:
    kind, _, rest = word.partition(":")
    if kind != "toy" or not rest:
        return Path(word)
    seed, _, seconds = rest.partition(":")
    return drawn_speech(_number(seed, word, int), _number(seconds or "3", word, float), RATE)


def _emotion(word: str) -> str | dict[str, float]:
    """A name, or weights by name."""
    if "=" not in word:
        return word
    pairs = [part.partition("=") for part in word.split(",")]
    if len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise BrainDataError(f"expected each emotion once, got {word!r}")
    return {name.strip(): _number(value, word, float) for name, _, value in pairs}


def _number(text: str, word: str, kind: type[int] | type[float]) -> Any:
    """A number of a word: digits for int, or any finite number for float."""
    try:
        found = kind(text)
    except ValueError:
        found = float("nan")
    if not math.isfinite(found) or (kind is int and found < 0):
        what = "a whole number of 0 or more" if kind is int else "a number"
        raise BrainDataError(f"expected {what} in {word!r}, got {text!r}")
    return found
