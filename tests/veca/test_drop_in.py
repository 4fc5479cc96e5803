import copy
import inspect
import io

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn

import veca
from tests.veca import dense

RECIPE = dict(class_token=False, global_pool="avg", no_embed_class=True)
SMALL = dict(RECIPE, reg_tokens=8, depth=2, img_size=64, num_classes=5)


def pair(**options):
    """A stock ViT and ours with its weights."""
    torch.manual_seed(0)
    stock = timm.create_model("vit_tiny_patch16_224", **(SMALL | options)).eval()
    ours = timm.create_model("vit_tiny_patch16_224", **(SMALL | options), attn_layer=veca.core_attention(8)).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def test_the_recipe_as_printed():
    model = timm.create_model(
        "vit_small_patch16_224", class_token=False, global_pool="avg", reg_tokens=64,
        no_embed_class=True, attn_layer=veca.core_attention(64), depth=1,
    ).eval()  # fmt: skip
    assert model.num_prefix_tokens == 64
    assert "num_cores=64, num_heads=6, impl='auto'" in repr(model.blocks[0].attn)
    x = torch.randn(1, 3, 224, 224)
    base = model.forward_features(x)
    patches = model.blocks[0].attn(torch.randn(1, 64 + 196, 384))
    assert base.shape == (1, 260, 384) and patches.isfinite().all()
    changed = x.clone()
    changed[..., :16, :16] += 1
    moved = (model.forward_features(changed) - base).abs().amax((0, 2)) > 1e-6
    assert moved[:65].all() and not moved[65:].any()  # one block: all cores, the patch itself, no other patch


def test_state_dict_keys_equal_the_stock_models():
    stock, ours = pair(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True)
    assert list(stock.state_dict()) == list(ours.state_dict())


@pytest.mark.parametrize("options", [dict(), dict(qk_norm=True, scale_attn_norm=True)], ids=["plain", "norms"])
def test_equals_the_stock_model_under_the_dense_mask(options):
    stock, ours = pair(**options)
    x = torch.randn(2, 3, 64, 64)
    mask = dense.block_mask(8, 8 + 16)
    expected = stock.forward_features(x, attn_mask=mask)
    out = ours.forward_features(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert (stock.forward_features(x) - expected).abs().max() > 1e-2
    probe = torch.randn_like(out)
    (expected * probe).sum().backward()
    (out * probe).sum().backward()
    for (name, a), b in zip(ours.blocks.named_parameters(), stock.blocks.parameters(), strict=True):
        # at least 0.1, since the gradient of a key's bias is zero but for rounding
        worst = (a.grad - b.grad).abs().max() / b.grad.abs().max().clamp_min(0.1)
        assert worst < 1e-4, f"{name}: {worst}"


@pytest.mark.parametrize("core_self", [True, False])
@pytest.mark.parametrize("patch_self", [True, False])
def test_layer_options_equal_timms_attention_under_a_mask(core_self, patch_self):
    torch.manual_seed(0)
    stock = Attention(32, 2, qkv_bias=True).double()
    layer = veca.core_attention(3, core_self=core_self, patch_self=patch_self)(32, 2, qkv_bias=True).double()
    layer.load_state_dict(stock.state_dict())
    x = torch.randn(2, 10, 32, dtype=torch.float64)
    mask = dense.block_mask(3, 10, core_self, patch_self)
    torch.testing.assert_close(layer(x), stock(x, attn_mask=mask), rtol=0, atol=1e-10)


def test_intermediates_and_features_only_at_another_size():
    _, ours = pair(dynamic_img_size=True)
    x = torch.randn(1, 3, 112, 80)
    final, pairs = ours.forward_intermediates(x, indices=[0, 1], return_prefix_tokens=True)
    blocks = []
    for block in ours.blocks:
        block.register_forward_hook(lambda module, args, out: blocks.append(out))
    assert torch.equal(ours.forward_features(x), final)
    for tokens, (image_map, cores) in zip(blocks, pairs, strict=True):
        assert torch.equal(cores, tokens[:, :8])
        assert torch.equal(image_map, tokens[:, 8:].transpose(1, 2).unflatten(2, (7, 5)))

    torch.manual_seed(0)
    pyramid = timm.create_model(
        "vit_tiny_patch16_224",
        **(SMALL | dict(num_classes=0)),
        dynamic_img_size=True,
        features_only=True,
        out_indices=(0, 1),
        attn_layer=veca.core_attention(8),
    ).eval()
    pyramid.model.load_state_dict(ours.state_dict(), strict=False)
    for image_map, (expected, _) in zip(pyramid(x), pairs, strict=True):
        torch.testing.assert_close(image_map, expected)


def test_signature_is_timms():
    ours = inspect.signature(veca.core_attention(4)).parameters
    assert list(ours) == [
        "dim", "num_heads", "qkv_bias", "qk_norm", "scale_norm", "proj_bias", "attn_drop", "proj_drop",
        "norm_layer", "device", "dtype",
    ]  # fmt: skip
    timms = inspect.signature(Attention).parameters
    assert {name: p.default for name, p in ours.items()} == {name: timms[name].default for name in ours}
    layer = veca.core_attention(4)(16, 2, device="meta", dtype=torch.float16)
    assert layer.qkv.weight.is_meta and layer.proj.bias.dtype == torch.float16 and layer.qkv.bias is None


def test_proj_drop_acts_in_training_only():
    torch.manual_seed(0)
    layer, x = veca.core_attention(4)(16, 2, proj_drop=0.5), torch.randn(1, 40, 16)
    share = (layer(x) == 0).float().mean().item()
    assert 0.4 < share < 0.6
    assert (layer.eval()(x) == 0).sum() == 0


def test_refusals():
    layer = veca.core_attention(4)(16, 2)
    x = torch.randn(1, 9, 16)
    with pytest.raises(ValueError, match=r"attn_mask=None, got a mask of shape \(9, 9\)"):
        layer(x, attn_mask=torch.ones(9, 9))
    with pytest.raises(ValueError, match="is_causal=False, got True"):
        layer(x, is_causal=True)
    with pytest.raises(ValueError, match="num_cores=4 exceeds the 3 tokens"):
        layer(x[:, :3])
    with pytest.raises(ValueError, match=r"attn_drop=0.*got 0.1"):
        veca.core_attention(4)(16, 2, attn_drop=0.1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        veca.core_attention(0)
    with pytest.raises(TypeError, match="int, got str"):
        veca.core_attention("64")


def test_same_arguments_give_the_same_class():
    assert veca.core_attention(4) is veca.core_attention(4)
    assert veca.core_attention(4) is not veca.core_attention(4, patch_self=True)
    assert issubclass(veca.core_attention(4), nn.Module)


def test_layers_are_copied_and_pickled_whole():
    layer, x = veca.core_attention(4, patch_self=True)(16, 2), torch.randn(1, 9, 16)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded, copied = torch.load(buffer, weights_only=False), copy.deepcopy(layer)
    for other in (loaded, copied):
        assert type(other) is type(layer) and torch.equal(other(x), layer(x))
    with torch.no_grad():
        copied.proj.bias += 1
    assert not torch.equal(copied(x), layer(x))
