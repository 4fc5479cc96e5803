"""Do the implementations of the attention agree on the tokens of a photograph?

Every block's q, k and v are taken from a forward pass, with the rotation tables of its patches, and each
implementation is compared with the reference in fp64. With untrained weights the softmax is nearly uniform, a
lenient test, so a second comparison multiplies the scores until their standard deviation is about 4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from veca_kernels import IMPLEMENTATIONS, core_periphery_attention

from ..model.backbone import VECA

__all__ = ["TOLERANCES", "Agreement", "compare_implementations"]

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative RMS error
_SHARP_STD = 4.0


class Agreement(NamedTuple):
    """One implementation on one block of one photograph.

    Attributes:
        impl, size, block: what was compared; `size` in pixels.
        sharpened: whether the scores were multiplied.
        photograph: its name.
        score_std: standard deviation of the scores of the core read.
        max_abs: largest absolute error, where values are of the order of `rms`.
        relative_rms: root mean square of the error over that of the fp64 result.
        rms: root mean square of the fp64 result.
        failure: why there are no numbers, or None.
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
    """All implementations but "auto".

    Args:
        model: parallel update, as by default.
        names: of the photographs.
        images: normalised, (len(names), 3, size, size).
        num_cores: C.
        blocks: which blocks, from 0.
        sharpened: compare with multiplied scores.
    """
    calls = _attention_calls(model, images, num_cores)
    rows = []
    for block in blocks:
        for impl, errors in _compare(calls[block], sharpened).items():
            common = (impl, images.shape[-1], block, sharpened)
            rows += [Agreement(*common, name, **error) for name, error in zip(names, errors, strict=True)]
    return rows


def _attention_calls(model: VECA, images: Tensor, num_cores: int) -> list[_Call]:
    """What the attention op receives in each block of a forward pass."""
    calls = []

    def take(layer, arguments):
        x, count, core_rope, patch_rope, core_scale, *_ = arguments
        qkv = layer.project(x, count, core_rope, core_scale)  # (B, T, 3, H, D)
        calls.append(_Call(*(part.transpose(1, 2) for part in qkv.unbind(2)), count, patch_rope))

    hooks = [block.attn.register_forward_pre_hook(take) for block in model.blocks]
    try:
        model.forward_features(images, num_cores)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _compare(call: _Call, sharpened: bool) -> dict[str, list[dict[str, object]]]:
    """Errors of every implementation, one entry an image."""
    scale = call.q.shape[-1] ** -0.5
    scores = scale * call.q[:, :, : call.num_cores] @ call.k.transpose(-2, -1)  # of the core read, near enough
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
