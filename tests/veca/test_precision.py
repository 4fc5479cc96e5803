"""Autocast and low-precision weights: where fp32 is kept, and how far from fp32 the features are."""

import pytest
import torch

from veca import VECA

# relative RMS error of the features of a random two-block model against fp32, measured 3e-3 and 4e-4
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["bf16", "fp16"])


def setup():
    torch.manual_seed(0)
    return VECA(embed_dim=64, depth=2, num_heads=2, num_cores=8, num_classes=4), torch.randn(2, 3, 48, 64)


def relative_error(a, b):
    return ((a.float() - b).norm() / b.norm()).item()


@dtypes
def test_autocast(dtype):
    model, x = setup()
    expected = model.forward_features(x)
    streams, tables = [], []
    model.blocks[0].register_forward_hook(lambda module, args, out: streams.extend((args[0], out)))
    model.blocks[0].attn.register_forward_pre_hook(lambda module, args: tables.extend((*args[2], *args[3])))
    with torch.autocast("cpu", dtype):
        record = model.forward_features(x)
        logits = model.forward_head(record)
    assert logits.dtype == dtype and record.patches.dtype == torch.float32
    assert {t.dtype for t in streams + tables} == {torch.float32}  # residual stream, norms, positions
    for name in ("global_token", "patches", "cores"):
        assert 0 < relative_error(getattr(record, name), getattr(expected, name)) < TOLERANCE[dtype]
    with torch.autocast("cpu", dtype), torch.no_grad():
        maps = model.attention_maps(x)
    wanted = model.attention_maps(x)
    for got, exact in zip(maps[:3], wanted[:3], strict=True):
        assert got.dtype == torch.float32 and relative_error(got, exact) < TOLERANCE[dtype]
    (logits.float().square().sum() + record.patches.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.grad.isfinite().all(), name


@dtypes
def test_low_precision_weights_keep_exact_positions(dtype):
    model, x = setup()
    expected = model.forward_features(x)
    tables = []
    model.to(dtype)
    model.blocks[0].attn.register_forward_pre_hook(lambda module, args: tables.extend((*args[2], *args[3])))
    record = model.forward_features(x.to(dtype))
    assert record.patches.dtype == dtype and record.core_xy.dtype == torch.float32
    assert {t.dtype for t in tables} == {torch.float32}
    assert relative_error(record.patches, expected.patches) < 2 * TOLERANCE[dtype]
