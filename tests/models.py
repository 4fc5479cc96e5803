"""Small models that several test files share."""

import timm
import torch

from veca.bench import models, run
from veca.bench.timing import Timing
from veca.model.backbone import VECA


def tiny_veca(seed=0, **options):
    """Two blocks in patches of 16 pixels, as they are initialised."""
    torch.manual_seed(seed)
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_cores": 16, "trained_budgets": [4, 8, 16]}
    return VECA(**(sizes | options))


def images(*size, batch=2, seed=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def assert_records_equal(a, b, **tolerance):
    for name, x, y in zip(a._fields, a, b, strict=True):
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        else:
            assert x == y, name


def small_veca(dtype=torch.float64, **options):
    """Three blocks in patches of 4 pixels, whose cores move visibly and whose weights are not the shy initial ones."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 4, "num_cores": 8}
    model = VECA(**(sizes | options)).to(dtype).eval()
    with torch.no_grad():
        for block in model.blocks:
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                linear.weight.normal_(0, 0.2)
        for step in model.core_steps:
            step.alpha.fill_(0.5)
            step.head.weight.normal_(0, 0.3)
    return model


def bench_tiny_models(monkeypatch):
    """Let `veca bench` build models of two blocks, on a machine whose rate is known: measuring it takes longer."""
    create_veca, create_timm = models.create_model, timm.create_model
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(models, "create_model", lambda name, **options: create_veca(name, **options, **sizes))
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create_timm(name, **options, **sizes))
    monkeypatch.setattr(run, "matmul_peak", lambda device, dtype: 1e11)
    monkeypatch.setattr(run, "measure_alone", lambda case, flops, budget: Timing(2.0, 2.0, 2.0, budget.screening))
