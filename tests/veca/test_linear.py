"""The inference shortcuts of the linear layers: equal to torch's own, and taken only where they may be."""

import pytest
import torch
from timm.layers import SwiGLUPacked
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from veca.model import linear as module
from veca.model.linear import SwiGLU, apply_linear, linear

onednn = pytest.mark.skipif(not module._ONEDNN, reason="the shortcut exists on x86 with oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 96), (2, 150, 96), (3, 1, 400, 96)])
def test_both_ways_equal_the_definition(monkeypatch, shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(96, 640, bias=bias)
    x = torch.randn(shape)
    truth = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    with torch.no_grad():
        torch.testing.assert_close(apply_linear(layer, x).double(), truth, rtol=0, atol=2e-5)
        monkeypatch.setattr(module, "_WORTHWHILE", 1)
        torch.testing.assert_close(apply_linear(layer, x).double(), truth, rtol=0, atol=2e-5)
    torch.testing.assert_close(apply_linear(layer, x).double(), truth, rtol=0, atol=2e-5)


@onednn
def test_the_shortcut_is_taken_for_large_fp32_inference_only():
    layer, x = nn.Linear(384, 384), torch.randn(200, 384)

    def takes(x=x, weight=layer.weight, bias=layer.bias):
        return module._takes_onednn(x, weight, bias)

    assert not takes()  # gradients are on
    with torch.no_grad():
        assert takes()
        assert not takes(x[:10])
        assert not takes(bias=torch.stack((layer.bias, layer.bias), 1)[:, 0])  # it would be read as if contiguous
        assert not takes(weight=torch.Tensor.as_subclass(layer.weight, type("Quantised", (torch.Tensor,), {})))
        assert not takes(x.double(), layer.weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not takes()
        with torch.backends.mkldnn.flags(enabled=False):
            assert not takes()


def test_flops_are_counted_with_and_without_gradients():
    layer, x = nn.Linear(384, 512), torch.randn(2, 100, 384)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            apply_linear(layer, x)
        assert counter.get_total_flops() == 2 * 200 * 384 * 512


def test_swiglu_is_timms_and_changes_no_input():
    torch.manual_seed(0)
    ours, timms = SwiGLU(24, 40), SwiGLUPacked(24, 80)
    timms.load_state_dict(ours.state_dict())
    x = torch.randn(5, 24)
    before = x.clone()
    expected = timms(x)
    torch.testing.assert_close(ours(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)
    assert torch.equal(x, before)


def test_a_wrong_width_gets_torchs_message_with_both_shapes():
    layer, x = nn.Linear(384, 384), torch.randn(200, 380)
    with torch.no_grad(), pytest.raises(RuntimeError, match="200x380 and 384x384"):
        apply_linear(layer, x)


def test_gradients_are_torchs():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, 5), torch.randn(3, 5, requires_grad=True), torch.randn(3)
    linear(x, weight, bias).square().sum().backward()
    out = x @ weight.detach().T + bias
    torch.testing.assert_close(weight.grad, 2 * out.T @ x)
