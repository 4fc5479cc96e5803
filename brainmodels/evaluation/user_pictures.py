"""Pictures by a function or class of the user, named on the command line as module:name or file.py:name.

    function = UserFunction.of("examples/wrap_unclip.py:UnCLIP")
    draw = function.made(tokens, images, device="cpu")
    draw(decoded)  # (n, 3, S, S) in [0, 1]

The contract has two forms.

| named object | is called |
|---|---|
| a class | once with `(tokens, images, device)`; the instance then as a function |
| a function, or another callable object | with tokens, each time pictures are drawn |

`tokens` are those of the train images, a tensor (N, m, d), fp32, in the units of their extractor; pooled features have
m = 1. `images(side)` returns the same N pictures, uint8 (N, side, side, 3). A generator for other tokens can thus learn
its `TokenAdapter`. Test images are never given.

The function gets a tensor (n, m, d), fp32, on `device`, and returns pictures (n, 3, S, S) as floats in [0, 1], a tensor
or an array. It may have the attributes `name` and `fingerprint`, which are printed with every score.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veca.hashes import hex_digest

from ..errors import AxisError, BrainDataError, LayoutError, NormalizationError, near_names

__all__ = ["UserFunction", "UserPictures"]

_BATCH = 64  # images that are drawn at a time


class UserPictures:
    """A checked `TokensToImage` around what the user wrote.

    Args:
        draw: Function from tokens (n, m, d) to pictures (n, 3, S, S) in [0, 1].
        name, fingerprint: Text for every score.
        probe: Tokens (n, m, d) that are drawn once, which tells the side of the pictures.

    Attributes:
        name, fingerprint: As given.
        side: Side of the pictures in pixels.

    Raises:
        AxisError: Pictures of another shape or type.
        NormalizationError: Values outside [0, 1], or NaN.
    """

    def __init__(self, draw: Callable[[Tensor], Any], name: str, fingerprint: str, probe: Tensor):
        self.name, self.fingerprint = name, fingerprint
        self._draw, self.side = draw, 0
        self.side = self._drawn(probe).shape[-1]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Pictures (n, 3, S, S) fp32 in [0, 1], drawn from tokens (n, m, d). Errors are those of the class."""
        return torch.cat([self._drawn(part) for part in tokens.split(_BATCH)])

    @torch.no_grad()
    def _drawn(self, tokens: Tensor) -> Tensor:
        out = self._draw(tokens)
        images = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
        wanted = f"floats ({len(tokens)}, 3, {self.side or 'S'}, {self.side or 'S'}) in [0, 1]"
        if not isinstance(images, Tensor):
            raise AxisError(f"expected pictures of {self.name} as {wanted}, got {type(out).__name__}")
        shape = tuple(images.shape)
        square = len(shape) == 4 and shape[:2] == (len(tokens), 3) and shape[2] == shape[3]
        if not square or self.side not in (0, shape[3]) or not images.is_floating_point():
            raise AxisError(f"expected pictures of {self.name} as {wanted}, got {images.dtype} {shape}")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise NormalizationError(
                f"expected pictures of {self.name} in [0, 1], got {low:.3g} to {high:.3g}; divide by 255, or map "
                "[-1, 1] to (x + 1) / 2 and clamp"
            )
        return images.float()


@dataclass(frozen=True)
class UserFunction:
    """What a word of the command line names.

    Attributes:
        word: The word.
        found: Class or callable object.
        source: Twelve digits of the file that it is written in.
    """

    word: str
    found: Any
    source: str

    @classmethod
    def of(cls, word: str) -> "UserFunction":
        """Import what a word names.

        Args:
            word: "module:name", with the module on the path of Python or in the current folder, or "file.py:name".

        Raises:
            LayoutError: No such file or module.
            BrainDataError: Another form, or nothing callable of that name.
        """
        place, colon, name = word.rpartition(":")
        if not (colon and place and name.isidentifier()):
            raise BrainDataError(f"expected module:name or file.py:name, got {word!r}")
        module = _module(place, word)
        found = getattr(module, name, None)
        if not callable(found):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            got = "nothing of that name" if found is None else type(found).__name__
            raise BrainDataError(
                f"expected a function or a class {name} in {place}, got {got}{near_names(name, known)}"
            )
        file = getattr(module, "__file__", None)
        source = hex_digest([Path(file).read_text()], 12) if file and file.endswith(".py") else "unknown"
        return cls(word, found, source)

    def made(self, tokens: np.ndarray, images: Callable[[int], np.ndarray], device: str) -> UserPictures:
        """The function, ready to draw.

        Args:
            tokens: Tokens of the train images (N, m, d), fp32, in the units of their extractor.
            images: Function from a side in pixels to the train images, uint8 (N, side, side, 3).
            device: Device of the tokens.

        Raises:
            BrainDataError: A class that cannot be made, or whose instance is no function.
            AxisError: Pictures of another shape or type.
            NormalizationError: Values outside [0, 1], or NaN.
        """
        given = torch.from_numpy(np.ascontiguousarray(tokens, np.float32)).to(device)
        draw = self.found
        if isinstance(draw, type):
            try:
                draw = draw(given, images, device)
            except TypeError as error:
                raise BrainDataError(f"expected {self.word}(tokens, images, device), got {error}") from error
            if not callable(draw):
                raise BrainDataError(
                    f"expected instances of {self.word} that draw pictures when called, got no __call__"
                )
        name = getattr(draw, "name", None) or self.word
        mark = getattr(draw, "fingerprint", None) or f"source:{self.source}"
        return UserPictures(draw, str(name), "_".join(str(mark).split()), given[:2])


def _module(place: str, word: str) -> Any:
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise LayoutError(f"expected a file of Python at {place} for {word!r}, got no such file")
        spec: Any = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(file.stem, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    here = str(Path.cwd())
    try:
        sys.path.insert(0, here)
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise LayoutError(
            f"expected a module {place} for {word!r}, got {error}; a file is named file.py:name"
        ) from error
    finally:
        sys.path.remove(here)
