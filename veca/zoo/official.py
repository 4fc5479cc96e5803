"""Checkpoints of the authors' code for VECA (arXiv 2605.12491), which names and groups the same weights otherwise.

    model, transform = veca.load("checkpoint.pt")
    model.save_pretrained("folder")  # an ordinary folder from now on; `veca import` does both

The numbers do not change. The authors keep the cores in chunks, and q, k and v in three layers. Here each
is one tensor.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.backbone import VECA
from ..model.hub import plain_name, put_weights, read_content, weights_in, with_fewer_cores

__all__ = ["is_official", "load_official", "official_arguments", "renamed"]

_HEAD_DIM = 64  # of all published sizes; the shapes of the weights do not tell it
_SIZE, _SHORTER_SIDE = 256, 288  # pixels in the authors' training and notebooks
_FIRST_CHUNK = "query_token_chunks.0"
_PARTS = {  # of a block
    "norm_attn": "norm1",
    "norm_ffn": "norm2",
    "attn.out_proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_WHOLE = {"final_norm": "norm", "output_proj": "output", "patch_embed.proj": "patch_embed.proj"}


def load_official(file: str | Path, **options: Any) -> VECA:
    """Load a checkpoint of the authors' code, of which no code is run.

    Args:
        file: file of `torch.save` or safetensors, with the weights under "student" or alone. The sizes follow from
            the weights. If the file has the authors' settings under "config", they must agree.
        options: arguments of `VECA` that replace those of the file.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, settings that disagree, or options that this package does not have.
    """
    content = read_content(file)
    weights = weights_in(content)
    if not is_official(weights):
        first = next(iter(weights), None)
        raise ValueError(
            f"expected {file} to be a checkpoint of the authors' VECA, got weights such as {first}; "
            "veca.load takes the folder of other models, veca.create_model their weights as checkpoint_path"
        )
    saved = official_arguments(weights, content.get("config"), str(file))
    model = VECA(**with_fewer_cores(saved, options))
    put_weights(model, renamed(weights), file)
    return model.eval()


def is_official(weights: dict[str, Tensor]) -> bool:
    """Whether weights have the names of the authors' code."""
    return any(_plain(name) == _FIRST_CHUNK for name in weights)


def official_arguments(weights: dict[str, Tensor], config: dict[str, Any] | None, file: str) -> dict[str, Any]:
    """Arguments of `VECA` for weights of the authors' code.

    Args:
        weights: the weights, by the authors' names.
        config: the authors' settings, if the file has them.
        file: name for errors.

    Raises:
        ValueError: settings that disagree with the weights, or options that this package does not have.
    """
    config = config or {}
    weights = {_plain(name): value for name, value in weights.items()}
    chunks = _chunks(weights, "query_token_chunks")
    width, channels, patch_size, _ = weights["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    hidden = weights["blocks.0.fc2.weight"].shape[1]
    output = weights["output_proj.weight"].shape[0] if "output_proj.weight" in weights else None
    chunk, cores = chunks[0].shape[1], sum(part.shape[1] for part in chunks)
    _refuse_options(weights, config, file)
    for name, found in (
        ("hidden_dim", width),
        ("num_layers", depth),
        ("num_query_tokens", cores),
        ("patch_size", patch_size),
        ("in_channels", channels),
        ("nested_chunk_size", chunk),
        ("matryoshka_chunk_size", chunk),
        ("distill_output_dim", output or width),
    ):
        said = config.get(name)
        if said is not None and said != found:
            raise ValueError(f"expected {name} of the config in {file} to be {found}, as in its weights, got {said!r}")
    size = config.get("image_size", _SIZE)
    return dict(
        embed_dim=width,
        depth=depth,
        num_heads=config.get("num_heads", width // _HEAD_DIM),
        mlp_ratio=math.ceil(1e5 * hidden / width) / 1e5,  # the model takes int(E * mlp_ratio)
        patch_size=patch_size,
        in_chans=channels,
        img_size=size,
        crop_pct=size / config.get("resize_short", size * _SHORTER_SIDE / _SIZE),
        num_cores=cores,
        trained_budgets=list(config.get("nested_budgets", range(chunk, cores + 1, chunk))),
        output_dim=output,
        on_odd="crop",
        rope_zero_low=config.get("rope_p_zero_freqs", 0.125),
        rope_shift=_or(config.get("rope_shift_coords", 0.08), 0.0),
        rope_scale=_or(config.get("rope_rescale_coords", 2.0), 1.0),
    )


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by the names of this package."""
    weights = {_plain(name): value for name, value in weights.items()}
    new = {}
    for chunks, name in (("query_token_chunks", "tokens"), ("qcoord_chunks", "raw_xy")):
        new[f"core_bank.{name}"] = torch.cat(_chunks(weights, chunks), 1).squeeze(0)
    for name, value in weights.items():
        part, _, kind = name.rpartition(".")
        room, _, rest = part.partition(".")
        index, _, rest = rest.partition(".")
        if name == "pos_alpha":
            new |= {f"core_steps.{i}.alpha": alpha.reshape(1) for i, alpha in enumerate(value)}
        elif room == "pos_linears":
            new[f"core_steps.{index}.head.{kind}"] = value
        elif rest == "attn.q_proj":
            rows = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            new[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(rows)
        elif rest in _PARTS:
            new[f"blocks.{index}.{_PARTS[rest]}.{kind}"] = value
        elif part in _WHOLE:
            new[f"{_WHOLE[part]}.{kind}"] = value
        elif room not in ("query_token_chunks", "qcoord_chunks") and rest not in ("attn.k_proj", "attn.v_proj"):
            new[name] = value  # loading names it as unknown
    return new


def _refuse_options(weights: dict[str, Tensor], config: dict[str, Any], file: str) -> None:
    refused = []
    if config.get("patch_embed_use_ln") or "patch_embed.norm.weight" in weights:
        refused.append("patch_embed_use_ln, a LayerNorm in the patch embedding")
    if config.get("dropout"):
        refused.append(f"dropout={config['dropout']}")
    if config.get("rope_jitter_coords") is not None:
        refused.append(f"rope_jitter_coords={config['rope_jitter_coords']}")
    if config.get("rope_zero_freqs_from", "low") != "low" and config.get("rope_p_zero_freqs"):
        refused.append(f"rope_zero_freqs_from={config['rope_zero_freqs_from']!r}")
    if refused:
        raise ValueError(f"expected {file} to use options that this package has, got {', '.join(refused)}")


def _chunks(weights: dict[str, Tensor], name: str) -> list[Tensor]:
    """Chunks (1, n, ...) of the cores, in order."""
    numbers = sorted(int(key.rpartition(".")[2]) for key in weights if key.startswith(f"{name}."))
    return [weights[f"{name}.{number}"] for number in numbers]


def _plain(name: str) -> str:
    return plain_name(name).removeprefix("student.")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
