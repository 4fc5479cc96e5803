"""Nano generators in folders: weights as safetensors, all else as JSON, and a probe that notices other libraries.

    save_generator(generator, "out/generator")
    generator = load_generator("out/generator")  # or load_generator(), the one that ships with the package

The probe is what the generator makes of two fixed pictures and captions. It is computed again at each load. A library
that changes a number by more than .02 standard deviations is refused.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from veca.files import read_json, read_tensors, whole_folder
from veca.hashes import file_digest

from ...errors import LayoutError, NormalizationError
from ...features import Extractor
from ...records import from_json, to_json
from ...versions import library_versions
from .generator import BLOCKS
from .nano import GeneratorSize, NanoGenerator, context_digest
from .words import Vocabulary

__all__ = ["SHIPPED", "load_generator", "probe_deviations", "save_generator"]

FORMAT, KIND = 1, "nano_generator"
SHIPPED = Path(__file__).with_name("weights")
PROBE = ("probe.images", *(f"probe.{name}" for name in BLOCKS))
MOST = 0.02  # standard deviations of a block by which the probe may differ
PACKAGES = ("diffusers", "transformers", "timm")


def save_generator(
    generator: NanoGenerator,
    folder: str | Path,
    images: np.ndarray,
    captions: list[str],
    half: bool = False,
    name: str = "generator",
) -> Path:
    """Write `name.safetensors` and `name.json` into a folder, which appears whole or not at all.

    Args:
        generator: The generator; `half` changes its weights.
        folder: Folder to write; an older one is replaced if it holds a generator.
        images: (2 or more, H, W, 3) uint8 pictures of the probe.
        captions: Their captions.
        half: Round all weights to fp16 first, and store them so.
        name: Name of the files.

    Raises:
        LayoutError: The folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / f"{name}.json").is_file():
        raise LayoutError(f"expected no folder {folder}, or one with a generator to replace, got another")
    generator.eval().requires_grad_(False)
    generator.probe = images, captions
    if half:
        with torch.no_grad():
            for value in generator.state_dict().values():
                if value.is_floating_point():
                    value.copy_(value.half().float())
    probe = generator.eval().latents(images, captions)
    kept = {
        key: value.half() if half and value.is_floating_point() else value for key, value in _state(generator).items()
    }
    kept["probe.images"] = torch.from_numpy(np.ascontiguousarray(images))
    kept |= {f"probe.{key}": torch.from_numpy(np.ascontiguousarray(block)) for key, block in probe.blocks().items()}
    with whole_folder(folder, replace=True) as partial:
        save_file(kept, partial / f"{name}.safetensors")
        content = {
            "format": FORMAT,
            "kind": KIND,
            "size": to_json(generator.size),
            "words": list(generator.vocabulary.words),
            "context": context_digest(generator.context),
            "context_name": generator.context.name,
            "fingerprint": generator.fingerprint,
            "probe": captions,
            "versions": dict(library_versions(*PACKAGES)),
            "sha256": file_digest(partial / f"{name}.safetensors"),
            "trained": generator.meta,
        }
        (partial / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return folder


def load_generator(
    folder: str | Path | None = None, context: Extractor | None = None, device: str | torch.device = "cpu"
) -> NanoGenerator:
    """A generator that `save_generator` wrote, or the one that ships with the package.

    Args:
        folder: Folder of the generator; None is the shipped one.
        context: Extractor of the image context; None is the shipped VECA.
        device: Device of the networks.

    Raises:
        LayoutError: A file is missing, broken or of another kind, weights are missing, unknown or of another shape, or
            the generator was trained with another extractor.
        NormalizationError: The probe deviates: installed libraries compute other numbers than those of the training.
    """
    name, place = ("nano", SHIPPED) if folder is None else ("generator", Path(folder))
    path = place / f"{name}.json"
    if not path.is_file():
        raise LayoutError(
            f"expected a generator in {place}, got no {path.name}; `veca brain pretrain` trains one, and None takes "
            "the shipped one"
        )
    content = read_json(path, LayoutError)
    if (content.get("format"), content.get("kind")) != (FORMAT, KIND):
        got = f"{content.get('kind')} of format {content.get('format')}"
        raise LayoutError(f"expected {KIND} of format {FORMAT} in {path}, got {got}")
    size = from_json(GeneratorSize, content["size"], f"size in {path}")
    generator = NanoGenerator(size, Vocabulary(content["words"], size.length), context)
    given = context_digest(generator.context)
    if given != content["context"]:
        raise LayoutError(
            f"expected the extractor {content['context_name']} {content['context']} of the image context, got "
            f"{generator.context.name} {given}: other weights or settings"
        )
    weights = read_tensors(place / f"{name}.safetensors", LayoutError)
    missing = [key for key in PROBE if key not in weights]
    if missing:
        raise LayoutError(f"expected {', '.join(missing)} in {place / name}.safetensors, got none")
    probe = {key.removeprefix("probe."): weights.pop(key) for key in PROBE}
    _fill(generator, weights, f"{place / name}.safetensors")
    generator.meta = content["trained"]
    generator.probe = probe["images"].numpy(), list(content["probe"])
    generator.to(device).eval().requires_grad_(False)
    if generator.fingerprint != content["fingerprint"]:
        raise LayoutError(f"expected the weights {content['fingerprint']} beside {path}, got {generator.fingerprint}")
    _check_probe(generator, probe, content)
    return generator


def probe_deviations(generator: NanoGenerator, probe: dict[str, Tensor], captions: list[str]) -> dict[str, float]:
    """Largest difference of each block from its probe, in standard deviations of the block."""
    found = generator.latents(probe["images"].numpy(), captions).blocks()
    return {
        name: float(np.abs(found[name] - probe[name].numpy()).max() / max(float(probe[name].std()), 1e-12))
        for name in BLOCKS
    }


def _check_probe(generator: NanoGenerator, probe: dict[str, Tensor], content: dict[str, Any]) -> None:
    found = probe_deviations(generator, probe, content["probe"])
    name = max(found, key=lambda key: found[key])
    if not found[name] <= MOST:
        now, then = dict(library_versions(*PACKAGES)), content["versions"]
        told = ", ".join(f"{key} {then.get(key)} then and {now[key]} now" for key in now if then.get(key) != now[key])
        raise NormalizationError(
            f"expected {name} of the probe within {MOST} standard deviations, got {found[name]:.3g}; libraries or "
            f"hardware compute other numbers than in training ({told or f'the same versions, {now}'})"
        )


def _state(generator: NanoGenerator) -> dict[str, Tensor]:
    """Weights by name, each in its own memory; GPT-2 ties two of them."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in generator.state_dict().items()}


def _fill(generator: NanoGenerator, weights: dict[str, Tensor], where: str) -> None:
    wanted = generator.state_dict()
    for key in sorted(wanted.keys() | weights.keys()):
        want = tuple(wanted[key].shape) if key in wanted else "no such weight"
        got = tuple(weights[key].shape) if key in weights else "none"
        if want != got:
            raise LayoutError(f"expected {key} {want} in {where}, got {got}")
    generator.load_state_dict({key: value.to(wanted[key].dtype) for key, value in weights.items()})
