"""A generator of drawn scenes and their captions, small enough to ship.

generator = load_generator()
latents = generator.latents(images, captions)  # four blocks of numbers for each picture
generator.write(latents.z_text)                # the captions again
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from veca.hashes import json_digest, weights_hash

from ...errors import AxisError, BrainDataError, check_choice
from ...features import Extractor, extractor
from ...nn import ConvDecoder, DecoderSize
from ...records import to_json
from .components import Components
from .generator import Latents
from .model import CaptionVAE, FlowSize, FourFlow, TextSize, TextTower
from .sampling import Sampling, denoise, row_generators
from .words import START, Vocabulary, clean

__all__ = ["GeneratorSize", "NanoGenerator", "averaged_tokens", "context_digest", "patches_of", "pictures_of"]

BATCH = 64  # rows that are computed together
DECODINGS = ("greedy", "sample")


@dataclass(frozen=True)
class GeneratorSize:
    """Sizes of a `NanoGenerator`.

    Attributes:
        pixels, patch: Side of a picture and of its patches, in pixels.
        components: Number of principal components of a patch.
        cell: Side in patches of what the denoiser sees as one token.
        context_side, context_width: Side of the grid of averaged VECA tokens, and their components.
        length: Number of tokens of a caption.
        text_width, text_layers, text_heads, text_latent: Sizes of the caption autoencoder and of the text tower.
        flow_width, flow_heads, flow_depth: Sizes of the denoiser.
        text_tokens: Number of tokens as which the denoiser sees a text latent.
    """

    pixels: int = 64
    patch: int = 8
    components: int = 8
    cell: int = 2
    context_side: int = 4
    context_width: int = 64
    length: int = 24
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_latent: int = 64
    flow_width: int = 96
    flow_heads: int = 4
    flow_depth: int = 3
    text_tokens: int = 4

    @property
    def grid(self) -> int:
        """Number of patches a side."""
        return self.pixels // self.patch

    def text(self, vocabulary: int) -> TextSize:
        """Sizes of the networks that read and write captions."""
        return TextSize(vocabulary, self.length, self.text_width, self.text_layers, self.text_heads, self.text_latent)

    def flow(self) -> FlowSize:
        """Sizes of the denoiser."""
        image = (self.grid // self.cell) ** 2, self.components * self.cell**2
        text = self.text_tokens, self.text_latent // self.text_tokens
        contexts = (1 + self.context_side**2, self.context_width), (self.length, self.text_latent)
        return FlowSize(image, text, *contexts, self.flow_width, self.flow_heads, self.flow_depth)


class NanoGenerator(nn.Module):
    """A generator of drawn scenes and their captions, small enough to ship and to run on one processor core.

    | block | shape | what it is |
    |---|---|---|
    | z_image | 8 x 8 x 8 | whitened principal components of 8 x 8-pixel patches; components first, then rows, columns |
    | z_text | 64 | posterior mean of the caption autoencoder, standardised |
    | c_image | 17 x 64 | VECA's global token, then 4 x 4 averaged patch tokens, as principal components |
    | c_text | 24 x 64 | tokens of the text tower, times the root of their width |

    Args:
        size: Sizes.
        vocabulary: Words of the captions.
        context: Extractor of the image context; None is the VECA that ships with the package.

    Attributes:
        meta: How it was trained, as JSON; empty for a new one.
        probe: Pictures and captions of the probe of its files; None for a new one.
    """

    name = "nano"
    outputs: tuple[str, ...] = ("images", "captions")
    parts: ClassVar[tuple[str, ...]] = ("patches", "global_token", "tokens", "vae", "tower", "flow", "drawer")
    text_mean: Tensor
    text_scale: Tensor

    def __init__(self, size: GeneratorSize, vocabulary: Vocabulary, context: Extractor | None = None):
        super().__init__()
        self.size, self.vocabulary = size, vocabulary
        context = context or extractor("veca_nano_patch8", pretrained=True)
        self._context = (context,)  # a tuple keeps its weights out of the state
        text, width = size.text(len(vocabulary)), size.context_width
        self.patches = Components(3 * size.patch**2, size.components)
        self.global_token = Components(_widths(context)[1], width)
        self.tokens = Components(_widths(context)[0], width)
        self.vae = CaptionVAE.small(text, vocabulary.end)
        self.tower = TextTower(text, vocabulary.end, 2 * width)
        self.flow = FourFlow(size.flow())
        self.drawer = ConvDecoder(DecoderSize.small(size.grid**2, size.components))
        self.register_buffer("text_mean", torch.zeros(size.text_latent))
        self.register_buffer("text_scale", torch.ones(()))
        self.meta: dict[str, Any] = {}
        self.probe: tuple[np.ndarray, list[str]] | None = None
        self._unconditional: tuple[Tensor, Tensor] | None = None

    @property
    def context(self) -> Extractor:
        """The extractor of the image context."""
        return self._context[0]

    @property
    def fingerprint(self) -> str:
        settings = [
            to_json(self.size),
            list(self.vocabulary.words),
            self.vocabulary.length,
            context_digest(self.context),
        ]
        return json_digest([*settings, weights_hash(self)])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        size, flow = self.size, self.size.flow()
        return {
            "z_image": (size.components, size.grid, size.grid),
            "z_text": (size.text_latent,),
            "c_image": flow.image_context,
            "c_text": flow.text_context,
        }

    @property
    def pixels(self) -> int:
        """Side of a picture, in pixels."""
        return self.size.pixels

    @property
    def unseen(self) -> str:
        return self.meta.get("unseen", "")

    @property
    def device(self) -> torch.device:
        return self.text_mean.device

    def train(self, mode: bool = True) -> "NanoGenerator":
        self._unconditional = None  # weights may change
        return super().train(mode)

    # into the latents

    @torch.no_grad()
    def latents(self, images: np.ndarray | None = None, captions: Sequence[str] | None = None) -> Latents:
        """The blocks of pictures, of captions, or of both.

        Args:
            images: (n, H, W, 3) uint8; other sides than `pixels` are resized.
            captions: n captions of words that the generator knows.

        Raises:
            BrainDataError: A caption is empty or has unknown words.
            AxisError: The pictures are not such an array, or the numbers differ.
        """
        found: dict[str, Any] = {}
        if images is not None and captions is not None and len(images) != len(captions):
            raise AxisError(f"expected a caption for each of {len(images)} pictures, got {len(captions)}")
        if images is not None:
            parts = [self._of_pictures(part) for part in pictures_of(images, self.pixels).split(BATCH)]
            found["z_image"], found["c_image"] = (torch.cat(x).cpu().numpy() for x in zip(*parts, strict=True))
        if captions is not None:
            rows = self.vocabulary.encode(captions).to(self.device)
            parts = [(self.text_latent(part), self.text_context(part)) for part in rows.split(BATCH)]
            found["z_text"], found["c_text"] = (torch.cat(x).cpu().numpy() for x in zip(*parts, strict=True))
        return Latents(**found, generator=self.fingerprint)

    def text_latent(self, rows: Tensor) -> Tensor:
        """Latents (n, d) of captions as rows (n, t) of `Vocabulary.encode`."""
        return (self.vae.encode(rows)[0] - self.text_mean) / self.text_scale

    def text_context(self, rows: Tensor) -> Tensor:
        """Contexts (n, t, d) of captions as rows (n, t)."""
        return self.tower(rows)[0] * self.size.text_latent**0.5

    def image_context(self, tokens: Tensor, pooled: Tensor) -> Tensor:
        """Contexts (n, 17, d) of VECA's patch tokens (n, m, width) and global token (n, width)."""
        side = round(tokens.shape[1] ** 0.5) // self.size.context_side
        averaged = averaged_tokens(tokens, side)
        return torch.cat([self.global_token(pooled)[:, None], self.tokens(averaged)], 1)

    def patch_latent(self, pictures: Tensor) -> Tensor:
        """Latents (n, components, grid, grid) of pictures (n, 3, pixels, pixels) in [0, 1]."""
        return rearrange(self.patches(patches_of(pictures, self.size.patch)), "n h w c -> n c h w")

    def _of_pictures(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        tokens, pooled = self.context.to(self.device).encode(pictures.to(self.device))
        assert tokens is not None and pooled is not None  # of VECA
        return self.patch_latent(pictures.to(self.device)), self.image_context(tokens, pooled)

    @torch.no_grad()
    def unconditional(self) -> Latents:
        """Contexts (1, tokens, d) of a mid-grey picture and of the empty caption."""
        if self._unconditional is None:
            grey = torch.full((1, 3, self.pixels, self.pixels), 0.5)
            empty = self.vocabulary.empty().to(self.device)
            self._unconditional = self._of_pictures(grey)[1], self.text_context(empty)
        image, text = self._unconditional
        return Latents(c_image=image.cpu().numpy(), c_text=text.cpu().numpy())

    # out of the latents

    @torch.no_grad()
    def denoise(
        self,
        kind: Literal["image", "text"],
        z: np.ndarray | None,
        c_image: np.ndarray | None,
        c_text: np.ndarray | None,
        *,
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> np.ndarray:
        """Latents that were noised part of the way and denoised under the contexts, shaped as z.

        Args:
            kind: "image" or "text".
            z: (n, ...) Latents; None starts from noise.
            c_image, c_text: Contexts; None takes the unconditional one.
            sampling: Settings.
            seeds: Seed of each row; see `image_seeds`.

        Raises:
            FloatingPointError: A step gives NaN or infinity.
        """
        check_choice("kind", kind, ("image", "text"))
        blocks: dict[str, Any] = {f"z_{kind}": z, "c_image": c_image, "c_text": c_text}
        Latents(**blocks).check(self.shapes)
        self.unconditional()
        out = []
        for at in range(0, len(seeds), BATCH):
            z_part, image, text = (None if x is None else x[at : at + BATCH] for x in (z, c_image, c_text))
            out.append(self._denoise(kind, z_part, image, text, sampling, seeds[at : at + BATCH]))
        return np.concatenate(out) if out else np.empty((0, *self.shapes[f"z_{kind}"]), np.float32)

    def _denoise(
        self,
        kind: str,
        z: np.ndarray | None,
        c_image: np.ndarray | None,
        c_text: np.ndarray | None,
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> np.ndarray:
        assert self._unconditional is not None
        free = [x.expand(len(seeds), -1, -1) for x in self._unconditional]
        given = zip((c_image, c_text), free, strict=True)
        held = [other if c is None else torch.from_numpy(c).to(self.device) for c, other in given]
        both, guided = [torch.cat(pair) for pair in zip(held, free, strict=True)], sampling.guidance != 1

        def predict(x: Tensor, time: Tensor) -> Tensor:
            if not guided:
                return self.flow(kind, x, time, *held, sampling.image_weight)
            told, untold = self.flow(kind, x.repeat(2, 1, 1), time.repeat(2), *both, sampling.image_weight).chunk(2)
            return untold + sampling.guidance * (told - untold)

        shape = self.size.flow().image if kind == "image" else self.size.flow().text
        start = None if z is None else self.as_tokens(kind, torch.from_numpy(z).to(self.device))
        return self.from_tokens(kind, denoise(predict, start, shape, sampling, seeds, self.device)).cpu().numpy()

    def as_tokens(self, kind: str, z: Tensor) -> Tensor:
        """Latents (n, ...) as the denoiser sees them, (n, tokens, width)."""
        if kind == "text":
            return z.unflatten(1, self.size.flow().text)
        return rearrange(z, "n c (h a) (w b) -> n (h w) (c a b)", a=self.size.cell, b=self.size.cell)

    def from_tokens(self, kind: str, tokens: Tensor) -> Tensor:
        """The inverse of `as_tokens`."""
        if kind == "text":
            return tokens.flatten(1)
        cell, side = self.size.cell, self.size.grid // self.size.cell
        return rearrange(tokens, "n (h w) (c a b) -> n c (h a) (w b)", a=cell, b=cell, h=side)

    @torch.no_grad()
    def draw(self, z: np.ndarray) -> np.ndarray:
        """Pictures (n, 3, pixels, pixels) fp32 in [0, 1] of image latents."""
        Latents(z_image=z).check(self.shapes)
        tokens = rearrange(torch.from_numpy(np.asarray(z, np.float32)), "n c h w -> n (h w) c")
        return self.drawer(tokens).cpu().numpy()

    def write(
        self,
        z: np.ndarray,
        *,
        sampling: str = "greedy",
        temperature: float = 1.0,
        seeds: Sequence[int] | None = None,
        cleaning: str = "repeats",
    ) -> list[str]:
        """Captions of text latents.

        Args:
            z: (n, d) Text latents.
            sampling: "greedy" takes the most likely word each time. "sample" draws words, with a seed for each row.
            temperature: Temperature of the draws.
            seeds: Seeds of the draws.
            cleaning: What is removed of repetitions; see `clean`.

        Raises:
            BrainDataError: Draws without seeds, or an unknown choice.
        """
        check_choice("sampling", sampling, DECODINGS)
        Latents(z_text=z).check(self.shapes)
        drawn = sampling == "sample"
        if drawn and (seeds is None or len(seeds) != len(z) or temperature <= 0):
            raise BrainDataError("expected a seed for each caption and a temperature above 0 to draw words, got others")
        latent = torch.from_numpy(np.asarray(z, np.float32)).to(self.device) * self.text_scale + self.text_mean
        texts = []
        for at in range(0, len(z), BATCH):
            generators = row_generators(seeds[at : at + BATCH]) if drawn and seeds is not None else None
            ends = START, self.vocabulary.end, self.vocabulary.length - 1
            rows = self.vae.write(latent[at : at + BATCH], *ends, temperature if drawn else 0.0, generators)
            texts += self.vocabulary.decode(rows)
        return [clean(text, cleaning) for text in texts]


def pictures_of(images: np.ndarray, pixels: int) -> Tensor:
    """Pictures (n, 3, pixels, pixels) in [0, 1] of arrays (n, H, W, 3) uint8.

    Raises:
        AxisError: Another shape or type.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise AxisError(f"expected images (n, height, width, 3) uint8, got {images.dtype} {tuple(images.shape)}")
    pictures = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    if pictures.shape[2:] != (pixels, pixels):
        pictures = F.interpolate(pictures, (pixels, pixels), mode="bicubic", antialias=True).clamp(0, 1)
    return pictures


def patches_of(pictures: Tensor, side: int) -> Tensor:
    """Pixels (n, h, w, 3 side side) of the patches of pictures (n, 3, H, W)."""
    return rearrange(pictures, "n c (h a) (w b) -> n h w (c a b)", a=side, b=side)


def averaged_tokens(tokens: Tensor, side: int) -> Tensor:
    """Means (n, m / side^2, d) over squares of side x side tokens (n, m, d) of a square grid."""
    grid = round(tokens.shape[1] ** 0.5) // side
    return tokens.unflatten(1, (grid, side, grid, side)).mean((2, 4)).flatten(1, 2)


def context_digest(context: Extractor) -> str:
    """Digest of weights and settings of an extractor, without versions of libraries, which the probe guards."""
    settings = json.loads(context.config())
    settings.pop("versions", None)
    settings.get("settings", {}).pop("veca", None)
    return json_digest(settings)


def _widths(context: Extractor) -> tuple[int, int]:
    """Widths of the tokens and of the pooled features of an extractor."""
    tokens, pooled = context.encode(torch.full((1, 3, 64, 64), 0.5))
    if tokens is None or pooled is None:
        raise BrainDataError(f"expected an extractor of tokens and pooled features, got {context.name}")
    return tokens.shape[-1], pooled.shape[-1]
