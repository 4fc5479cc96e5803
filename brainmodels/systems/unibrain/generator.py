"""What UniBrain needs of a generator: four blocks of numbers for each picture, and the way back from them.

    latents = generator.latents(images, captions)
    z = generator.denoise("text", latents.z_text, latents.c_image, latents.c_text, sampling=Sampling(), seeds=seeds)
    captions, pictures = generator.write(z), generator.draw(latents.z_image)

All arrays are fp32 with images first. `Generator.shapes` has the shape of each block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ...errors import AxisError, BrainDataError
from .sampling import Sampling

__all__ = ["BLOCKS", "Generator", "Latents"]

BLOCKS = ("z_image", "z_text", "c_image", "c_text")


@dataclass(frozen=True)
class Latents:
    """The four blocks of numbers that stand for pictures; a block may be None.

    Attributes:
        z_image, z_text: Low-level latents of picture and caption, (n, ...).
        c_image, c_text: Contexts (n, tokens, d).
        ids: Ids (n,) of the images, which seed the noise; none where they are not known.
        generator: Fingerprint of the generator that they belong to; "" where it is not known.
    """

    z_image: np.ndarray | None = None
    z_text: np.ndarray | None = None
    c_image: np.ndarray | None = None
    c_text: np.ndarray | None = None
    ids: Sequence[str] = ()
    generator: str = ""

    def __len__(self) -> int:
        return next((len(block) for block in self.blocks().values()), 0)

    def blocks(self) -> dict[str, np.ndarray]:
        """The blocks that are there, by name."""
        return {name: block for name in BLOCKS if (block := getattr(self, name)) is not None}

    def take(self, rows: Any) -> "Latents":
        """The latents of some rows, in their order."""
        ids: list[str] = [str(self.ids[row]) for row in rows] if len(self.ids) else []
        return Latents(
            **{name: block[rows] for name, block in self.blocks().items()}, ids=ids, generator=self.generator
        )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse latents of other shapes than the generator's, of different lengths, or that are not finite.

        Raises:
            AxisError: A shape or a length differs.
            BrainDataError: A number is not finite; the message has the block and the row.
        """
        for name, block in self.blocks().items():
            if tuple(block.shape[1:]) != tuple(shapes[name]) or len(block) != len(self):
                raise AxisError(f"expected {name} ({len(self)}, {shapes[name]}), got {tuple(block.shape)}")
            bad = ~np.isfinite(block.reshape(len(block), -1)).all(1)
            if bad.any():
                raise BrainDataError(f"expected finite latents, got others in {name}, row {int(bad.argmax())}")
        if len(self.ids) not in (0, len(self)):
            raise AxisError(f"expected an id for each of {len(self)} rows, got {len(self.ids)}")


class Generator(Protocol):
    """What UniBrain needs of a frozen generator.

    Attributes:
        name: Name in reports.
        fingerprint: Twelve hexadecimal digits that change with weights, sizes, vocabulary and context extractor.
        shapes: Shape of one image's part of each block.
        outputs: What it makes: "images", "captions", or both.
        unseen: Start of the ids of images that no study may have, because the generator was trained on them; "" if
            there are none.
    """

    name: str
    outputs: tuple[str, ...]
    unseen: str

    @property
    def fingerprint(self) -> str: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def pixels(self) -> int: ...

    def latents(self, images: np.ndarray | None = None, captions: Sequence[str] | None = None) -> Latents: ...

    def denoise(
        self,
        kind: Literal["image", "text"],
        z: np.ndarray | None,
        c_image: np.ndarray | None,
        c_text: np.ndarray | None,
        *,
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> np.ndarray: ...

    def draw(self, z: np.ndarray) -> np.ndarray: ...

    def write(
        self,
        z: np.ndarray,
        *,
        sampling: str = "greedy",
        temperature: float = 1.0,
        seeds: Sequence[int] | None = None,
        cleaning: str = "repeats",
    ) -> list[str]: ...
