"""The generator of the paper: Versatile Diffusion and Optimus, from local folders. It never ran on the real weights.

    generator = VersatileGenerator("versatile-diffusion", optimus="optimus")   # folders; nothing is downloaded

The first folder is in diffusers' layout, with `image_unet`, `text_unet`, `vae`, `image_encoder`, `text_encoder`,
`tokenizer` and `image_feature_extractor`. The second is what `veca brain convert-optimus` writes. Without `text_unet`
or `optimus` there are pictures and no captions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from veca.hashes import json_digest, weights_hash

from ...errors import BrainDataError, LayoutError, check_choice, need
from .dual import share_contexts
from .generator import Latents
from .model import CaptionVAE
from .nano import DECODINGS, pictures_of
from .optimus import CaptionTokens, load_optimus
from .sampling import Sampling, denoise, row_generators
from .words import clean

try:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection,
    )
except ImportError as error:
    raise need(error.name or "diffusers", "brainmodels.systems.unibrain") from error

__all__ = ["VersatileGenerator"]

COMPONENTS = ("image_unet", "vae", "image_encoder", "text_encoder", "tokenizer", "image_feature_extractor")
BATCH = 4  # images that are computed together
HARMLESS = "position_ids"  # a buffer that some releases save


class VersatileGenerator(nn.Module):
    """Versatile Diffusion, with Optimus for captions.

    | block | shape with the public weights |
    |---|---|
    | z_image | 4 x 64 x 64, the mean of the autoencoder, times its scaling factor |
    | z_text | 768, the posterior mean of Optimus |
    | c_image | 257 x 768, CLIP's tokens after norm and projection, divided by the norm of the class token |
    | c_text | 77 x 768, CLIP's tokens after projection, divided by the norm of the pooled vector |

    Args:
        folder: Folder in diffusers' layout.
        optimus: Folder that `convert-optimus` wrote; None looks for `optimus` in `folder`.
        dtype: "fp32", "bf16", or "fp16" for the UNets; all else stays fp32. fp16 gave other users black pictures.
        device: Device of the networks.

    Attributes:
        outputs: "images", and "captions" where all is there that they need.

    Raises:
        LayoutError: A component is missing, weights are missing or unknown, or the components do not fit each other.
    """

    name, unseen = "versatile_diffusion", ""
    types: ClassVar[dict[str, torch.dtype]] = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }
    optimus: CaptionVAE | None
    tokens: CaptionTokens | None

    def __init__(
        self,
        folder: str | Path,
        optimus: str | Path | None = None,
        dtype: str = "fp32",
        device: str | torch.device = "cpu",
    ):
        super().__init__()
        check_choice("dtype", dtype, tuple(self.types))
        self.folder, self.dtype = _checked_folder(folder), self.types[dtype]
        self.image_unet = _strict(UNet2DConditionModel, self.folder, "image_unet")
        self.vae = _strict(AutoencoderKL, self.folder, "vae")
        self.image_encoder = _strict(CLIPVisionModelWithProjection, self.folder, "image_encoder")
        self.text_encoder = _strict(CLIPTextModelWithProjection, self.folder, "text_encoder")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        place = self.folder / "image_feature_extractor"
        self.processor = CLIPImageProcessor.from_pretrained(place, local_files_only=True)
        vision = self.image_encoder.config
        self.image_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        self.text_unet, self.duals = None, []
        if (self.folder / "text_unet").is_dir():
            self.text_unet = _strict(_flat_unet(), self.folder, "text_unet")
            _check_fit(self.image_unet, self.text_unet)
            self.duals = share_contexts(self.image_unet, self.text_unet, self.image_tokens)
        place = self.folder / "optimus" if optimus is None else Path(optimus)
        has_optimus = optimus is not None or place.is_dir()
        self.optimus, self.tokens = load_optimus(place) if has_optimus else (None, None)
        captions = self.optimus is not None and self.text_unet is not None
        self.outputs: tuple[str, ...] = ("images", "captions") if captions else ("images",)
        self._check_widths()
        for unet in filter(None, (self.image_unet, self.text_unet)):
            unet.to(self.dtype)
        self.eval().requires_grad_(False).to(device)
        self._free: tuple[Tensor, Tensor] | None = None

    @property
    def fingerprint(self) -> str:
        return json_digest([self.name, str(self.dtype), list(self.outputs), self._weights])

    @property
    def _weights(self) -> str:
        if not hasattr(self, "_hash"):
            self._hash = weights_hash(self)
        return self._hash

    @property
    def pixels(self) -> int:
        """Side of a picture, in pixels."""
        return self.image_unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        side, width = self.image_unet.config.sample_size, self.image_encoder.config.projection_dim
        latent = 768 if self.optimus is None else self.optimus.latent
        return {
            "z_image": (self.image_unet.config.in_channels, side, side),
            "z_text": (latent,),
            "c_image": (self.image_tokens, width),
            "c_text": (self.tokenizer.model_max_length, width),
        }

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def latents(self, images: np.ndarray | None = None, captions: Sequence[str] | None = None) -> Latents:
        """The blocks of pictures (n, H, W, 3) uint8, of captions, or of both.

        Raises:
            BrainDataError: Captions without Optimus or the text stack.
        """
        found: dict[str, list[Tensor]] = {}
        if images is not None:
            for at in range(0, len(images), BATCH):
                part = images[at : at + BATCH]
                found.setdefault("z_image", []).append(self._z_image(part).cpu())
                found.setdefault("c_image", []).append(self._c_image(part).cpu())
        if captions is not None:
            if self.optimus is None or self.tokens is None:
                raise BrainDataError("expected Optimus for captions, got none: pass optimus= its folder")
            for at in range(0, len(captions), BATCH):
                texts = [text.lower() for text in captions[at : at + BATCH]]
                ids, mask = (x.to(self.device) for x in self.tokens.encode(texts))
                found.setdefault("z_text", []).append(self.optimus.encode(ids, mask)[0].cpu())
                found.setdefault("c_text", []).append(self._c_text(list(captions[at : at + BATCH])).cpu())
        arrays: dict[str, Any] = {name: torch.cat(parts).float().numpy() for name, parts in found.items()}
        return Latents(**arrays, generator=self.fingerprint)

    def _z_image(self, images: np.ndarray) -> Tensor:
        pictures = pictures_of(images, self.pixels).to(self.device)
        return self.vae.encode(2 * pictures - 1).latent_dist.mean * self.vae.config.scaling_factor

    def _c_image(self, images: np.ndarray) -> Tensor:
        prepared = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.device)
        encoder = self.image_encoder
        tokens = encoder.vision_model.post_layernorm(encoder(prepared).last_hidden_state)
        tokens = encoder.visual_projection(tokens)
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True)

    def _c_text(self, captions: list[str]) -> Tensor:
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer(captions, **options).input_ids.to(self.device)
        out = self.text_encoder(ids)
        tokens = self.text_encoder.text_projection(out.last_hidden_state)
        return tokens / out.text_embeds[:, None].norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def unconditional(self) -> Latents:
        """Contexts (1, tokens, d) of a mid-grey picture and of the empty caption."""
        if self._free is None:
            grey = np.full((1, self.pixels, self.pixels, 3), 128, np.uint8)
            self._free = self._c_image(grey), self._c_text([""])
        image, text = self._free
        return Latents(c_image=image.cpu().float().numpy(), c_text=text.cpu().float().numpy())

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
        """As `Generator.denoise`. Captions need the text stack, and so does an image weight below 1.

        Raises:
            BrainDataError: The text stack is missing.
            FloatingPointError: A step gives NaN or infinity.
        """
        check_choice("kind", kind, ("image", "text"))
        blocks: dict[str, Any] = {f"z_{kind}": z, "c_image": c_image, "c_text": c_text}
        Latents(**blocks).check(self.shapes)
        if self.text_unet is None and (kind == "text" or sampling.image_weight < 1):
            raise BrainDataError("expected text_unet for captions and for mixed contexts, got a folder without")
        self.unconditional()
        out = []
        for at in range(0, len(seeds), BATCH):
            z_part, image, text = (None if x is None else x[at : at + BATCH] for x in (z, c_image, c_text))
            out.append(self._denoise(kind, z_part, image, text, sampling, seeds[at : at + BATCH]))
        return np.concatenate(out)

    def _denoise(
        self,
        kind: str,
        z: np.ndarray | None,
        c_image: np.ndarray | None,
        c_text: np.ndarray | None,
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> np.ndarray:
        assert self._free is not None  # `denoise` has asked for it
        for dual in self.duals:
            dual.image_weight = sampling.image_weight
        unet = self.image_unet if kind == "image" else self.text_unet
        assert unet is not None  # checked by `denoise`
        free = [x.expand(len(seeds), -1, -1) for x in self._free]
        given = zip((c_image, c_text), free, strict=True)
        held = [other if c is None else torch.from_numpy(c).to(self.device) for c, other in given]
        used = slice(None) if self.duals else slice(1)  # without a text stack the blocks take the image context alone
        told, untold = (torch.cat(pair[used], 1).to(self.dtype) for pair in (held, free))
        contexts = told if sampling.guidance == 1 else torch.cat([told, untold])

        def predict(x: Tensor, time: Tensor) -> Tensor:
            if sampling.guidance == 1:
                return unet(x.to(self.dtype), time, contexts, return_dict=False)[0].float()
            twice = x.to(self.dtype).repeat(2, *[1] * (x.ndim - 1))
            both = unet(twice, time.repeat(2), contexts, return_dict=False)[0].float()
            yes, no = both.chunk(2)
            return no + sampling.guidance * (yes - no)

        shape = self.shapes[f"z_{kind}"]
        shape = tuple(unet.conv_in.in_features_multidim) if kind == "text" else shape  # (latent / 4, 4, 1)
        start = None if z is None else torch.from_numpy(z).to(self.device).reshape(-1, *shape)
        made = denoise(predict, start, shape, sampling, seeds, self.device)
        return made.reshape(-1, *self.shapes[f"z_{kind}"]).cpu().numpy()

    @torch.no_grad()
    def draw(self, z: np.ndarray) -> np.ndarray:
        """Pictures (n, 3, pixels, pixels) fp32 in [0, 1] of image latents."""
        Latents(z_image=z).check(self.shapes)
        parts = torch.from_numpy(np.asarray(z, np.float32)).split(BATCH)
        drawn = [self.vae.decode(part.to(self.device) / self.vae.config.scaling_factor).sample for part in parts]
        return (torch.cat(drawn) / 2 + 0.5).clamp(0, 1).float().cpu().numpy()

    def write(
        self,
        z: np.ndarray,
        *,
        sampling: str = "greedy",
        temperature: float = 1.0,
        seeds: Sequence[int] | None = None,
        cleaning: str = "repeats",
    ) -> list[str]:
        """Captions of text latents, of 30 tokens at most; a caption that reaches them keeps its last word.

        Raises:
            BrainDataError: There is no Optimus, or words are drawn without seeds.
        """
        check_choice("sampling", sampling, DECODINGS)
        Latents(z_text=z).check(self.shapes)
        if self.optimus is None or self.tokens is None:
            raise BrainDataError("expected Optimus for captions, got none: pass optimus= its folder")
        if sampling == "sample" and (seeds is None or len(seeds) != len(z)):
            raise BrainDataError("expected a seed for each caption to draw words, got others")
        latent, texts = torch.from_numpy(np.asarray(z, np.float32)).to(self.device), []
        for at in range(0, len(z), BATCH):
            drawn = sampling == "sample" and seeds is not None
            generators = row_generators(seeds[at : at + BATCH]) if drawn and seeds is not None else None
            ends = self.tokens.start, self.tokens.end, self.tokens.length
            rows = self.optimus.write(latent[at : at + BATCH], *ends, temperature if drawn else 0.0, generators)
            texts += self.tokens.decode(rows)
        return [clean(text, cleaning) for text in texts]

    def _check_widths(self) -> None:
        """Refuse components that do not fit each other."""
        widths = {
            "image_encoder": self.image_encoder.config.projection_dim,
            "text_encoder": self.text_encoder.config.projection_dim,
            "image_unet": self.image_unet.config.cross_attention_dim,
        }
        if self.text_unet is not None:
            widths["text_unet"] = self.text_unet.config.cross_attention_dim
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise LayoutError(f"expected contexts of one width in {self.folder}, got {told}")
        channels = self.vae.config.latent_channels, self.image_unet.config.in_channels
        if channels[0] != channels[1]:
            raise LayoutError(f"expected as many channels of vae as of image_unet, got {channels[0]} and {channels[1]}")
        if self.optimus is not None and self.text_unet is not None:
            width, wanted = self.optimus.latent, self.text_unet.conv_in.in_features
            if width != wanted:
                raise LayoutError(f"expected a latent of Optimus as wide as text_unet takes, {wanted}, got {width}")


def _checked_folder(folder: str | Path) -> Path:
    """The folder with the components, or an error that says where they are."""
    folder = Path(folder)
    if not folder.is_dir():
        raise LayoutError(f"expected a local folder in diffusers' layout, got {folder}; nothing is downloaded")
    missing = [name for name in COMPONENTS if not (folder / name).is_dir()]
    if missing:
        snapshots = sorted((folder / "snapshots").glob("*")) if (folder / "snapshots").is_dir() else []
        hint = f"; the folder of a hub cache is {snapshots[-1]}" if snapshots else ""
        raise LayoutError(f"expected {', '.join(missing)} in {folder}, got none{hint}")
    return folder


def _strict(kind: Any, folder: Path, name: str) -> Any:
    """A component with all of its weights and no others; the libraries only warn."""
    options = {"local_files_only": True, "output_loading_info": True}
    try:
        model, told = kind.from_pretrained(folder / name, **options)
    except (OSError, RuntimeError) as error:
        raise LayoutError(f"expected {name} in {folder}, got what {kind.__name__} cannot load: {error}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = [str(key) for key in told.get(what, ()) if HARMLESS not in str(key)]
        if wrong:
            raise LayoutError(f"expected the weights of {name} in {folder}, got {what.replace('_', ' ')}: {wrong[:4]}")
    return model


def _flat_unet() -> Any:
    """The class of the text stack, which diffusers keeps among its deprecated pipelines."""
    try:
        from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
    except ImportError as error:
        raise ImportError(
            "captions by Versatile Diffusion need UNetFlatConditionModel of diffusers.pipelines.deprecated, which "
            "diffusers 0.42.1 has; install that release"
        ) from error
    return UNetFlatConditionModel


def _check_fit(image: nn.Module, text: nn.Module) -> None:
    """Both UNets must have one time embedding, as they had in training."""
    states = [dict(unet.get_submodule("time_embedding").state_dict()) for unet in (image, text)]
    for name, value in states[0].items():
        other: Tensor | None = states[1].get(name)
        if other is None or value.shape != other.shape or not torch.equal(value, other):
            raise LayoutError(f"expected one time embedding in image_unet and text_unet, got two that differ in {name}")
