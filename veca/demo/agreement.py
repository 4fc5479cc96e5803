"""Check that the implementations of the attention agree on the tokens of photographs.

We take q, k and v of every block from a forward pass, with the rotation tables of the patches. Each implementation is
compared with the reference in fp64. With untrained weights the softmax is nearly uniform, which hides errors. A second
comparison therefore multiplies the scores until their standard deviation is about 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from veca_kernels import IMPLEMENTATIONS, core_periphery_attention

from ..model.backbone import VECA

__all__ = ["TOLERANCES", "Agreement", "compare_implementations"]

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # largest relative RMS error
_SHARP_STD = 4.0


class Agreement(NamedTuple):
    """The errors of one implementation on one block of one photograph.

    Attributes:
        impl: Name of the implementation.
        size: Image side in pixels.
        block: Number of the block, from 0.
        sharpened: Whether the scores were multiplied.
        photograph: Name of the photograph.
        score_std: Standard deviation of the scores of the core read.
        max_abs: Largest absolute error; the values are of the order of `rms`.
        relative_rms: Root mean square of the error over that of the fp64 result.
        rms: Root mean square of the fp64 result.
        failure: Reason why there are no numbers, or None.
    """

    impl: str
    size: int
    block: int
    sharpened: bool
    photograph: str
    score_std: float
    max_abs: float | None
    relative_rms: float | None
    rms: float
    failure: str | None


class _Call(NamedTuple):
    q: Tensor  # (B, H, T, D), cores rotated
    k: Tensor
    v: Tensor
    num_cores: int
    patch_rope: tuple[Tensor, Tensor]


@torch.inference_mode()
def compare_implementations(
    model: VECA, names: Sequence[str], images: Tensor, num_cores: int, blocks: Sequence[int], sharpened: bool
) -> list[Agreement]:
    """Compare all implementations except "auto" with the reference.

    Args:
        model: VECA with the parallel update, which is the default.
        names: Names of the photographs.
        images: Normalised photographs, shape (len(names), 3, size, size).
        num_cores: Number C of active cores.
        blocks: Numbers of the blocks to compare, from 0.
        sharpened: Compare with multiplied scores.
    """
    calls = _attention_calls(model, images, num_cores)
    rows = []
    for block in blocks:
        for impl, errors in _compare(calls[block], sharpened).items():
            common = (impl, images.shape[-1], block, sharpened)
            rows += [Agreement(*common, name, **error) for name, error in zip(names, errors, strict=True)]
    return rows


def _attention_calls(model: VECA, images: Tensor, num_cores: int) -> list[_Call]:
    """Inputs of the attention op in each block of a forward pass."""
    calls = []

    def take(layer, arguments):
        x, count, core_rope, patch_rope, core_scale, *_ = arguments
        qkv = layer.project(x, count, core_rope, core_scale)  # (B, T, 3, H, D)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        calls.append(_Call(q, k, v, count, patch_rope))

    hooks = [block.attn.register_forward_pre_hook(take) for block in model.blocks]
    try:
        model.forward_features(images, num_cores)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _compare(call: _Call, sharpened: bool) -> dict[str, list[dict[str, Any]]]:
    """Errors of every implementation, with one entry for each image."""
    scale = call.q.shape[-1] ** -0.5
    scores = scale * call.q[:, :, : call.num_cores] @ call.k.transpose(-2, -1)  # of the core read, approximately
    std = scores.float().std().item()
    if sharpened:
        scale, std = scale * _SHARP_STD / std, _SHARP_STD

    def run(impl: str, dtype: torch.dtype) -> Tensor:
        q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
        return core_periphery_attention(
            q, k, v, call.num_cores, patch_rope=call.patch_rope, scale=scale, impl=impl
        ).flatten(1)

    truth = run("reference", torch.float64)  # (B, H T D)
    rms = _rms(truth)
    results = {}
    for impl in IMPLEMENTATIONS:
        if impl == "auto":
            continue
        common = {"score_std": std, "max_abs": None, "relative_rms": None, "failure": None}
        rows = [common | {"rms": value} for value in rms.tolist()]
        try:
            error = run(impl, call.q.dtype).double() - truth
        except (ValueError, RuntimeError) as reason:  # refused, out of memory, a kernel that does not build
            rows = [row | {"failure": str(reason).strip().splitlines()[0]} for row in rows]
        else:
            largest, relative = error.abs().amax(1).tolist(), (_rms(error) / rms).tolist()
            rows = [row | {"max_abs": a, "relative_rms": b} for row, a, b in zip(rows, largest, relative, strict=True)]
        results[impl] = rows
    return results


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(1).sqrt()
