"""Features of turning objects: what an extractor sees in pictures from all sides, with and without colour.

    study = with_features(study)                       # VECA nano, coloured and grey
    study.grey_targets.get(ids)                        # (n, d), the target of geometry
    object_features(stimuli, ids, "grid", grey=True)   # one array of features by id

Features of grey pictures tell the shape of an object and not its colour. Those of coloured pictures tell both.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from ..data.ids import Ids, as_ids
from ..data.stimuli import StimulusSet
from ..errors import AxisError, BrainDataError
from .arrays import ArrayFeatures
from .base import Extractor
from .sets import FeatureSet

__all__ = ["object_features", "with_features"]

_BATCH = 128  # pictures that an extractor sees at a time


class _Study(Protocol):
    @property
    def stimuli(self) -> StimulusSet: ...

    def with_targets(self, targets: Any, grey_targets: Any = None) -> Any: ...


_S = TypeVar("_S", bound=_Study)


def object_features(
    stimuli: StimulusSet,
    ids: Ids,
    word: str = "veca",
    frames: int = 4,
    grey: bool = False,
    size: int = 64,
) -> ArrayFeatures:
    """Pooled features of objects, as the mean over pictures from equally spaced sides.

        f(object) = 1 / frames * sum_k extractor(picture at azimuth 2 pi k / frames)

    Args:
        stimuli: Stimuli whose source draws turning objects. It has a method `frames(id, n, size, grey)`, as
            `veca.data.solids.SolidSource`.
        ids: Ids of the objects, each once.
        word: Extractor in a word of `FeatureSet.parse`, such as "veca" or "grid".
        frames: Number of pictures of an object.
        grey: Whether to draw the objects without colour.
        size: Side of the pictures in pixels. The extractor resizes them if it needs another size.

    Returns:
        Pooled features (n, d) fp32 by id. Their name and fingerprint say extractor, pictures, size, and colour or grey.

    Raises:
        BrainDataError: The source draws no turning objects, `frames` or `size` is below 1, or the extractor is unknown
            or has no pooled features.
        AxisError: There are no ids, or a picture has another shape than was asked for.
        IdError: An unknown or repeated id.
    """
    (features,) = _features(stimuli, ids, word, frames, size, (grey,))
    return features


def with_features(study: _S, word: str = "veca", frames: int = 4, size: int = 64) -> _S:
    """The same study of objects with features of all its objects, coloured in `targets` and grey in `grey_targets`.

    Args:
        study: Study of objects.
        word, frames, size: As in `object_features`.

    Raises:
        BrainDataError, AxisError: As in `object_features`.
    """
    colored, grey = _features(study.stimuli, study.stimuli.ids, word, frames, size, (False, True))
    return study.with_targets(colored, grey)


def _features(
    stimuli: StimulusSet, ids: Ids, word: str, frames: int, size: int, greys: Sequence[bool]
) -> list[ArrayFeatures]:
    """Features with and without colour. Both pictures of an object follow each other, so its source may share work."""
    source: Any = stimuli.source
    if not hasattr(source, "frames"):
        raise BrainDataError(
            f"expected a source that draws turning objects, with a method frames(id, n, size, grey), got "
            f"{type(source).__name__}; pass features that exist, such as study.with_targets(ArrayFeatures(values, ids))"
        )
    if frames < 1 or size < 1:
        raise BrainDataError(f"expected at least 1 frame of at least 1 pixel, got frames={frames} and size={size}")
    names = as_ids(ids)
    stimuli.rows(names)
    if not len(names):
        raise AxisError("expected ids of objects, got none")
    extractor = FeatureSet.parse(word).extractor
    rows: list[list[np.ndarray]] = [[] for _ in greys]
    step = max(_BATCH // frames, 1)
    for start in range(0, len(names), step):
        drawn: list[list[np.ndarray]] = [[] for _ in greys]
        for name in names[start : start + step].tolist():
            for into, grey in zip(drawn, greys, strict=True):
                into.append(_pictures(source.frames(name, frames, size, grey), name, (frames, size, size, 3)))
        for into, pictures in zip(rows, drawn, strict=True):
            into.append(_pooled(extractor, np.concatenate(pictures)).reshape(len(pictures), frames, -1).mean(1))
    out = []
    for values, grey in zip(rows, greys, strict=True):
        kind = f"{frames}x{size}px-{'grey' if grey else 'color'}"
        fingerprint = f"{extractor.fingerprint()}-{kind}"
        out.append(ArrayFeatures(np.concatenate(values), names, fingerprint, f"{word}-{kind}"))
    return out


def _pictures(pictures: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if pictures.shape != shape or pictures.dtype != np.uint8:
        raise AxisError(f"expected pictures of {name} as uint8 {shape}, got {pictures.dtype} {pictures.shape}")
    return pictures


def _pooled(extractor: Extractor, pictures: np.ndarray) -> np.ndarray:
    """Pooled features (n, d) of pictures uint8 (n, size, size, 3)."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    pooled = extractor.encode(images).pooled
    if pooled is None:
        raise BrainDataError(f"expected an extractor with pooled features, got {extractor.name}, which has none")
    return pooled.cpu().numpy()
