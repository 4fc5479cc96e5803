"""Modules are called, also when they have hooks or other modules take their places, and what they return is kept."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn

import veca
from tests.models import images, tiny_veca


class Adapter(nn.Module):
    """A linear layer plus a low-rank one, which shows the weight of the first, as adapters do."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def linears(model):
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.endswith("base")]


def model_of(**options):
    return tiny_veca(**({"num_classes": 3, "core_logit_log_scale": 4, "init_values": 0.5} | options)).eval()


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_an_adapter_counts_as_its_merged_weights(layout):
    torch.manual_seed(0)
    model = model_of(rope_layout=layout)
    merged = copy.deepcopy(model)
    for name, layer in linears(model):
        adapter = Adapter(layer)
        model.set_submodule(name, adapter)
        with torch.no_grad():
            merged.get_submodule(name).weight += adapter.up.weight @ adapter.down.weight
    x = images(64, 64)
    assert (model_of(rope_layout=layout)(x) - merged(x)).abs().max() > 1e-3
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(x), merged(x), rtol=0, atol=1e-4)
    for ours, wanted in zip(model.attention_maps(x)[:3], merged.attention_maps(x)[:3], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    model(x).square().sum().backward()
    assert all(m.down.weight.grad.any() for m in model.modules() if isinstance(m, Adapter))


def test_an_adapted_vit_is_converted_with_its_adapters():
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_heads=3, num_classes=3).eval()
    merged, adapter = copy.deepcopy(vit), Adapter(vit.blocks[0].attn.qkv)
    vit.blocks[0].attn.qkv = adapter
    with torch.no_grad():
        merged.blocks[0].attn.qkv.weight += adapter.up.weight @ adapter.down.weight
        ours, wanted = (veca.convert_vit(x, 4)(images(224, 224)) for x in (vit, merged))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"rope_layout": "half"}, {"qk_norm": True}, {"update": "sequential"}], ids=str)
def test_hooks_see_every_module_and_change_no_gradient(options):
    """Backward hooks on all modules, or on all linear layers from outside, as loggers of gradients set them."""
    model = model_of(**options).train()
    x = images(64, 64)
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    modules = {m: name for name, m in model.named_modules() if not isinstance(m, nn.ModuleList)}
    for scope in ("each", "global"):
        model.zero_grad()
        seen, kept = set(), []

        def backward(module, given, grad, seen=seen):
            seen.add(modules[module])

        def forward(module, given, out, kept=kept):
            kept.extend([(out, out.detach().clone())] if isinstance(module, nn.Linear) else [])

        if scope == "each":
            handles = [m.register_full_backward_hook(backward) for m, name in modules.items() if name]
            handles += [m.register_forward_hook(forward) for m in modules]
        else:
            handles = [
                nn.modules.module.register_module_full_backward_hook(backward),
                nn.modules.module.register_module_forward_hook(forward),
            ]
        model(x).square().sum().backward()
        for handle in handles:
            handle.remove()
        assert seen >= {name for name, _ in linears(model)} | {"blocks.0.norm1", "blocks.0.norm2", "blocks.0.mlp"}
        assert len(kept) >= len(linears(model)) and all(torch.equal(out, before) for out, before in kept)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5)


def test_outputs_that_hooks_hold_are_kept_in_inference():
    model, kept = model_of(), []
    for _, layer in linears(model):
        layer.register_forward_hook(lambda module, given, out: kept.append((out, out.clone())))
    with torch.no_grad():
        model(images(64, 64))
    assert len(kept) == len(linears(model)) and all(torch.equal(out, before) for out, before in kept)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_takes_every_linear_layer():
    model, x = model_of(), images(64, 64)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not linears(small)
    with torch.no_grad():
        difference = (small(x) - model(x)).norm() / model(x).norm()
        assert 0 < difference < 0.1
        assert torch.isfinite(small.attention_maps(x).core_map).all()


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_traces_pass_torchs_check_and_take_other_sizes(grad):
    model = model_of(depth=2)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, images(64, 64))
        for size in ((64, 64), (96, 48)):
            torch.testing.assert_close(traced(images(*size)), model(images(*size)), rtol=0, atol=1e-5)
