"""The pictures that simulated subjects look at, and the features that their voxels respond to.

    stimuli = scene_stimuli(seed=0, count=100)
    stimuli.images(["sim0:000012"], size=64)  # (1, 64, 64, 3) uint8

The id of a scene defines it: `sim0:000123` is scene 123 of seed 0 of `veca.data.scenes`, drawn at any resolution.
Photographs have ids such as `photo:coffee`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veca.data import photographs
from veca.data.scenes import BACKGROUND_TEXTURES, COLORS, SHAPES, SIZES, Scene, sample_scene

from ..data.grid import GRID, GRID_PIXELS, grid_features
from ..data.ids import Ids
from ..data.stimuli import ImageFiles, RenderedImages, StimulusSet
from ..errors import BrainDataError, IdError

__all__ = [
    "FACTORS",
    "FEATURE_GROUPS",
    "NUM_FEATURES",
    "SceneFeatures",
    "parse_scene_id",
    "photograph_stimuli",
    "scene_combinations",
    "scene_id",
    "scene_pictures",
    "scene_stimuli",
]

# the factors of a scene with their levels: of its main object, and the texture of its background
FACTORS = {"shape": SHAPES, "color": COLORS, "size": SIZES, "background": BACKGROUND_TEXTURES}

_CELLS = GRID * GRID
_ID = re.compile(r"sim(\d+):(\d+)", re.ASCII)


def _groups() -> dict[str, slice]:
    groups, start = {}, 0
    for name, width in {"edges": _CELLS, "opponents": 2 * _CELLS, **{k: len(v) for k, v in FACTORS.items()}}.items():
        groups[name], start = slice(start, start + width), start + width
    return groups


FEATURE_GROUPS = _groups()  # columns of the features: edges and colour opponents of the grid, then one-hot factors
NUM_FEATURES = FEATURE_GROUPS["background"].stop


def scene_id(seed: int, index: int) -> str:
    """The id of a scene: `sim{seed}:{index}` with six digits."""
    return f"sim{seed}:{index:06d}"


def parse_scene_id(image_id: str) -> tuple[int, int]:
    """Seed and index of a scene, from its id `sim{seed}:{index}`. Another id is an `IdError`."""
    match = _ID.fullmatch(str(image_id))
    seed, index = map(int, match.groups()) if match else (0, 0)
    if scene_id(seed, index) != str(image_id):
        raise IdError(f"expected the id of a simulated scene, such as 'sim0:000123', got {str(image_id)!r}")
    return seed, index


@dataclass(frozen=True)
class _SceneRenderer:
    """Function (index, size) -> picture for the scenes of a seed. It can be pickled, for worker processes."""

    seed: int

    def __call__(self, index: int, size: int) -> np.ndarray:
        return _pixels(sample_scene(index, self.seed), size)


def scene_stimuli(seed: int, count: int, size: int = 128) -> StimulusSet:
    """Scenes 0 to count - 1 of a seed, with five captions each and labels of the main object.

    Args:
        seed: Seed of the scenes.
        count: Number of scenes.
        size: Side of a picture in pixels, where the caller names none. Other sizes are drawn, not resized.

    Returns:
        Stimuli with the labels "shape", "color", "size", "background" (its texture) and "place". All values are names.
    """
    scenes = [sample_scene(index, seed) for index in range(count)]
    ids = [scene_id(seed, index) for index in range(count)]
    labels = {name: [_factor(scene, name) for scene in scenes] for name in (*FACTORS, "place")}
    captions = {name: _captions(scene) for name, scene in zip(ids, scenes, strict=True)}
    return StimulusSet(ids, RenderedImages(count, _SceneRenderer(seed), size), captions, labels)


def scene_pictures(ids: Ids, size: int) -> np.ndarray:
    """Pictures (n, size, size, 3) uint8 of drawn scenes, of any seeds, by their ids.

    Raises:
        IdError: An id is not that of a simulated scene.
    """
    drawn = np.empty((len(ids), size, size, 3), np.uint8)
    for row, (seed, index) in enumerate(map(parse_scene_id, ids)):
        drawn[row] = _pixels(sample_scene(index, seed), size)
    return drawn


def scene_captions(ids: Ids, number: int = 1) -> list[str]:
    """One of the five captions of each drawn scene, by its number from 0.

    Raises:
        IdError: An id is not that of a simulated scene.
    """
    return [_captions(sample_scene(index, seed))[number] for seed, index in map(parse_scene_id, ids)]


def scene_combinations(ids: Ids, labels: Sequence[str] = ("shape", "color")) -> dict[str, frozenset[tuple[str, ...]]]:
    """Combinations of labels that scenes show, for all their objects, not only the main one.

    Args:
        ids: Ids of scenes, such as "sim0:000123".
        labels: Names of `FACTORS`. All objects of a scene have the same background.

    Returns:
        Combinations by image id, with values in the order of `labels`.

    Raises:
        BrainDataError: A label is unknown.
        IdError: An id is not that of a simulated scene.
    """
    unknown = [name for name in labels if name not in FACTORS]
    if unknown:
        raise BrainDataError(f"expected labels of {', '.join(FACTORS)}, got {unknown[0]!r}")
    found = {}
    for name in map(str, ids):
        seed, index = parse_scene_id(name)
        scene = sample_scene(index, seed)
        found[name] = frozenset(
            tuple(_factor(scene, label, which) for label in labels) for which in range(len(scene.objects))
        )
    return found


def photograph_stimuli(names: Sequence[str] | None = None) -> StimulusSet:
    """The photographs of `veca.data`, with ids `photo:<name>` and one caption each.

    Args:
        names: Names of the photographs. None means all that are on this machine.
    """
    found = [photographs.photograph(name) for name in (photographs.list_photographs() if names is None else names)]
    ids = [f"photo:{photo.name}" for photo in found]
    captions = {name: [photo.caption] for name, photo in zip(ids, found, strict=True)}
    return StimulusSet(ids, ImageFiles([photo.path for photo in found]), captions)


class SceneFeatures:
    """Function from ids of scenes to features, before standardisation.

    The columns are those of `FEATURE_GROUPS`: 108 of `grid_features`, then the one-hot factors of the main object. Each
    scene is drawn once, at 48 pixels, and its features are kept.
    """

    def __init__(self):
        self._rows: dict[str, np.ndarray] = {}

    def __call__(self, ids: Ids) -> np.ndarray:
        """Raw features of scenes, fp32 (len(ids), 133)."""
        names = [str(name) for name in ids]
        missing = [name for name in dict.fromkeys(names) if name not in self._rows]
        for start in range(0, len(missing), 512):
            block = missing[start : start + 512]
            scenes = [sample_scene(index, seed) for seed, index in map(parse_scene_id, block)]
            self._rows.update(zip(block, _features(scenes), strict=True))
        if not names:
            return np.empty((0, NUM_FEATURES), np.float32)
        return np.stack([self._rows[name] for name in names])


def _features(scenes: Sequence[Scene]) -> np.ndarray:
    out = np.zeros((len(scenes), NUM_FEATURES), np.float32)
    out[:, : 3 * _CELLS] = grid_features(np.stack([_pixels(scene, GRID_PIXELS) for scene in scenes]))
    for name, levels in FACTORS.items():
        columns = [FEATURE_GROUPS[name].start + levels.index(_factor(scene, name)) for scene in scenes]
        out[np.arange(len(scenes)), columns] = 1
    return out


def _pixels(scene: Scene, size: int) -> np.ndarray:
    image, _ = scene.render(size)
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def _factor(scene: Scene, name: str, which: int = 0) -> str:
    return scene.background.texture if name == "background" else getattr(scene.objects[which], name)


def _captions(scene: Scene) -> list[str]:
    """Five captions of a scene. The first is that of `veca.data.scenes`, which is complete."""
    main, behind = scene.objects[0], scene.background
    texture = "" if behind.texture == "plain" else f"{behind.texture} "
    others = [f"{_article(item.color)} {item.shape}" for item in scene.objects[1:]]
    company = f" with {' and '.join(others)}" if others else ""
    count = "one object" if not others else f"{1 + len(others)} objects"
    return [
        scene.caption,
        f"a {main.size} {main.color} {main.shape} on a {texture}background",
        f"there is {_article(main.color)} {main.shape}{company} in front of a {behind.color} {texture}wall",
        f"at the {main.place} of the picture is a {main.size} {main.shape} painted {main.color}",
        f"{count} on {behind.color}, the largest {_article(main.color)} {main.shape}",
    ]


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
