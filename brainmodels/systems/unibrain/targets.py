"""The blocks of many images by id: what the regressors learn to predict.

source = StimulusLatents(stimuli, generator, z_caption=1, c_caption="mean")
source.blocks(ids)  # z_image, z_text, c_image, c_text of these images
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veca.files import new_array, read_json, whole_folder
from veca.hashes import json_digest

from ...data import StimulusSet
from ...data.ids import Ids
from ...errors import BrainDataError, LayoutError
from .generator import BLOCKS, Generator, Latents

__all__ = ["Caption", "StimulusLatents", "captions_of"]

Caption = int | str  # number of the caption, from 0, or "mean"
BLOCK = 64  # images that are computed together


class StimulusLatents:
    """Blocks of the images of a set, computed once for each image. It is a source of features, those of c_image.

    Args:
        stimuli: Images with captions.
        generator: The generator, which computes the blocks.
        z_caption, c_caption: Caption whose latent, and whose context, stands for an image: its number from 0, or
            "mean" over all captions of the image.
        folder: Folder that keeps the blocks as fp16 arrays, mapped to memory; None keeps them in memory as fp32.

    Attributes:
        fingerprint: That of the generator.

    Raises:
        BrainDataError: The stimuli have no captions, but the generator writes some.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        generator: Generator,
        z_caption: Caption,
        c_caption: Caption,
        folder: str | Path | None = None,
    ):
        if not isinstance(stimuli, StimulusSet):
            raise BrainDataError(f"expected a StimulusSet with images and captions, got {type(stimuli).__name__}")
        self.stimuli, self.generator, self.folder = stimuli, generator, None if folder is None else Path(folder)
        self.captions = {"z_text": z_caption, "c_text": c_caption}
        self.fingerprint = generator.fingerprint
        self.names = [name for name in BLOCKS if "text" not in name or "captions" in generator.outputs]
        self._rows: dict[str, int] = {}
        self._held: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.stimuli)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.stimuli

    def get(self, ids: Ids, what: str = "tokens") -> np.ndarray:
        """Image contexts (n, tokens, d), as features for joining and for the test of alignment."""
        found = self.blocks(ids).c_image
        assert found is not None  # every generator has one
        return found if what == "tokens" else found.mean(1)

    def blocks(self, ids: Ids) -> Latents:
        """All blocks of images, in the order of the ids.

        Raises:
            IdError: The set lacks an image.
            BrainDataError: An image has no caption of the wanted number.
        """
        names = [str(name) for name in ids]
        missing = [name for name in dict.fromkeys(names) if name not in self._rows]
        if missing:
            self._add(missing)
        rows = [self._rows[name] for name in names]
        found: dict[str, Any] = {name: np.asarray(self._held[name][rows], np.float32) for name in self.names}
        return Latents(**found, ids=names, generator=self.fingerprint)

    def prepare(self, ids: Ids) -> None:
        """Compute the blocks of these images together, or map them from the folder."""
        names = sorted({str(name) for name in ids})
        if self.folder is None:
            self.blocks(names)
            return
        key = json_digest([self.fingerprint, self.captions, [self.stimuli.digest(name) for name in names], names])
        place = self.folder / f"latents-{key}"
        if not (place / "ids.json").is_file():
            with whole_folder(place, replace=True) as partial:
                self._write(partial, names)
        if read_json(place / "ids.json", LayoutError) != names:
            raise LayoutError(f"expected the ids of {place} to be those of its images, got others")
        self._rows = {name: row for row, name in enumerate(names)}
        self._held = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in self.names}

    def _write(self, folder: Path, names: Sequence[str]) -> None:
        shapes = self.generator.shapes
        arrays = {x: new_array(folder / f"{x}.npy", (len(names), *shapes[x]), np.float16) for x in self.names}
        for start in range(0, len(names), BLOCK):
            part = self._computed(names[start : start + BLOCK])
            for name, array in arrays.items():
                array[start : start + BLOCK] = part[name]
        for array in arrays.values():
            array.flush()
        (folder / "ids.json").write_text(json.dumps(names))

    def _add(self, names: Sequence[str]) -> None:
        parts = [self._computed(names[start : start + BLOCK]) for start in range(0, len(names), BLOCK)]
        for name in self.names:
            values = np.concatenate([part[name] for part in parts])
            self._held[name] = np.concatenate([self._held[name], values]) if name in self._held else values
        self._rows |= {name: len(self._rows) + row for row, name in enumerate(names)}

    def _computed(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        images = self.stimuli.images(names, self.generator.pixels)
        found = dict(self.generator.latents(images=images).blocks())
        for block, which in self.captions.items():
            if block in self.names:
                found[block] = self._of_captions(block, names, which)
        return found

    def _of_captions(self, block: str, names: Sequence[str], which: Caption) -> np.ndarray:
        texts = [captions_of(self.stimuli, name, which) for name in names]
        flat = [text for some in texts for text in some]
        values = getattr(self.generator.latents(captions=flat), block)
        ends = np.cumsum([len(some) for some in texts])
        return np.stack([part.mean(0) for part in np.split(values, ends[:-1])])


def captions_of(stimuli: StimulusSet, name: str, which: Caption) -> list[str]:
    """The captions of an image that count: one, or all for "mean".

    Raises:
        BrainDataError: There is none.
    """
    texts = stimuli.captions(name)
    wanted = texts if which == "mean" else texts[int(which) : int(which) + 1]
    if not wanted or not all(text.strip() for text in wanted):
        raise BrainDataError(
            f"expected caption {which} of image {name!r}, got {len(texts)} captions, or an empty one; captions are "
            "needed for each train image"
        )
    return wanted
