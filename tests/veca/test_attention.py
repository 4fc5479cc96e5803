import pytest
import torch
from torch import nn

from tests.veca import dense
from veca.model.attention import CoreAttention
from veca.model.rope import interleave_halves, patch_coordinates, rope_periods, rope_tables, rotate

C, ROWS, COLS, H, D = 5, 2, 3, 2, 16
P = ROWS * COLS
E = H * D


def setup(dtype=torch.float64, batch=2, **options):
    """A layer, tokens, core positions (B, C, 2) and patch positions."""
    torch.manual_seed(0)
    layer = CoreAttention(E, H, **options).to(dtype)
    x = torch.randn(batch, C + P, E, dtype=dtype, requires_grad=True)
    core_xy = (torch.rand(batch, C, 2, dtype=dtype) * 2 - 1).requires_grad_()
    return layer, x, core_xy, patch_coordinates(ROWS, COLS)


def tables(core_xy, patch_xy):
    periods = rope_periods(D)
    return rope_tables(core_xy, periods), rope_tables(patch_xy, periods)


def dense_attention(layer, x, core_xy, patch_xy, **mask):
    """The definition, one image at a time, with the layer's weights."""
    weights = dict(layer.named_parameters())
    mask = dense.block_mask(C, C + P, **mask)
    outputs = []
    for image, xy in zip(x, core_xy, strict=True):
        rotations = dense.rotation_matrices(torch.cat((xy, patch_xy.to(xy.dtype))), D, disabled=0)
        outputs.append(dense.attention(image[None], weights, H, mask, rotations, prefix="")[0])
    return torch.cat(outputs)


@pytest.mark.parametrize("core_self", [True, False], ids=["core_self", "no_core_self"])
@pytest.mark.parametrize("patch_self", [True, False], ids=["patch_self", "no_patch_self"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_equals_the_dense_definition(core_self, patch_self, impl):
    layer, x, core_xy, patch_xy = setup(core_self=core_self, patch_self=patch_self, impl=impl)
    probe = torch.randn(2, C + P, E, dtype=torch.float64)
    inputs = [x, core_xy, *layer.parameters()]
    out = layer(x, C, *tables(core_xy, patch_xy))
    expected = dense_attention(layer, x, core_xy, patch_xy, core_self=core_self, patch_self=patch_self)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)  # the patches' tables are fp32
    for got, wanted in zip(
        torch.autograd.grad((out * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


def test_core_rotation_in_place_passes_gradcheck():
    layer, x, core_xy, patch_xy = setup(batch=1)
    periods = rope_periods(D)
    patch_rope = rope_tables(patch_xy, periods)

    def outputs(x, core_xy):
        return layer(x, C, rope_tables(core_xy, periods), patch_rope).square().sum(-1)

    assert torch.autograd.gradcheck(outputs, (x, core_xy))


def test_patch_rotation_in_the_op_equals_rotation_by_the_caller():
    layer, x, core_xy, patch_xy = setup(dtype=torch.float32)
    patch_rope = rope_tables(patch_xy, rope_periods(D))

    def rotate_patches(module, args, qkv):
        q, k, v = qkv.unflatten(-1, (3, H, D)).unbind(2)
        q, k = (torch.cat((y[:, :C], rotate(y[:, C:], *patch_rope)), 1) for y in (q, k))
        return torch.stack((q, k, v), 2).flatten(2)

    def run(rope):
        out = layer(x, C, rope_tables(core_xy, rope_periods(D)), rope)
        return [out, *torch.autograd.grad(out.square().sum(), [x, core_xy, layer.qkv.weight])]

    inside = run(patch_rope)
    unrotated = run(None)
    layer.qkv.register_forward_hook(rotate_patches)
    for a, b, c in zip(inside, run(None), unrotated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert (a - c).abs().max() > 1e-3


def test_inference_equals_training():
    layer, x, core_xy, patch_xy = setup(dtype=torch.float32)
    ropes = tables(core_xy, patch_xy)
    with torch.no_grad():
        silent = layer(x, C, *ropes)
    torch.testing.assert_close(silent, layer(x, C, *ropes))
    with torch.inference_mode():
        assert torch.equal(layer(x, C, *ropes), silent)


def test_patch_output_ignores_its_own_key_and_value_unless_patch_self():
    own_gradient = {}
    for patch_self in (False, True):
        layer, x, _, patch_xy = setup(patch_self=patch_self)
        seen = []
        layer.qkv.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        out = layer(x, C, None, rope_tables(patch_xy, rope_periods(D)))
        gradient = torch.autograd.grad(out[:, C + 2].square().sum(), seen[0])[0].unflatten(-1, (3, E))
        assert gradient[:, C + 2, 0].abs().max() > 1e-6  # its query
        others = torch.cat((gradient[:, C : C + 2], gradient[:, C + 3 :]), 1)
        assert others.count_nonzero() == 0
        own_gradient[patch_self] = gradient[:, C + 2, 1:]
    assert own_gradient[False].count_nonzero() == 0
    assert own_gradient[True].abs().amax((0, 2)).min() > 1e-6


def test_permuted_patches_permute_the_output_and_leave_the_cores():
    layer, x, core_xy, patch_xy = setup()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = torch.cat((x[:, :C], x[:, C:][:, order]), 1)
    out = layer(x, C, *tables(core_xy, patch_xy))
    out_shuffled = layer(shuffled, C, *tables(core_xy, patch_xy[order]))
    torch.testing.assert_close(out_shuffled[:, :C], out[:, :C], rtol=0, atol=1e-12)
    torch.testing.assert_close(out_shuffled[:, C:], out[:, C:][:, order], rtol=0, atol=1e-12)
    unmoved = layer(shuffled, C, *tables(core_xy, patch_xy))  # coordinates stay behind
    assert (unmoved[:, :C] - out[:, :C]).abs().max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "norm_layer": nn.LayerNorm}], ids=["", "qk_norm"])
def test_half_layout_equals_interleaved_with_permuted_rows(options):
    layer, x, core_xy, patch_xy = setup(**options)
    half, *_ = setup(rope_layout="half", **options)
    for norm in (layer.q_norm, layer.k_norm) if options else ():
        nn.init.normal_(norm.weight)
    half.load_state_dict(layer.state_dict())
    rows = interleave_halves(torch.arange(3 * H * D).view(3, H, D)).flatten()
    with torch.no_grad():
        half.qkv.weight[rows] = layer.qkv.weight.clone()
        half.qkv.bias[rows] = layer.qkv.bias.clone()
        for name in ("q_norm", "k_norm") if options else ():
            half.get_submodule(name).weight[rows[:D]] = layer.get_submodule(name).weight.clone()
    ropes = tables(core_xy, patch_xy)
    torch.testing.assert_close(half(x, C, *ropes), layer(x, C, *ropes), rtol=0, atol=1e-12)
    half.load_state_dict(layer.state_dict())
    assert (half(x, C, *ropes) - layer(x, C, *ropes)).abs().max() > 1e-3


def test_core_scale_multiplies_the_scores_of_the_core_read_only():
    layer, x, core_xy, patch_xy = setup()
    ropes = tables(core_xy, patch_xy)
    plain, scaled = layer.maps(x, C, *ropes), layer.maps(x, C, *ropes, torch.tensor(1.7))
    logits, scaled_logits = (reads.log().diff(dim=-1) for reads in (plain[0], scaled[0]))
    torch.testing.assert_close(scaled_logits, 1.7 * logits, rtol=0, atol=1e-6)
    assert torch.equal(plain[1], scaled[1])
    out, out_scaled = layer(x, C, *ropes), layer(x, C, *ropes, torch.tensor(1.7))
    assert torch.equal(out[:, C:], out_scaled[:, C:])
    assert (out[:, :C] - out_scaled[:, :C]).abs().max() > 1e-4


def test_core_scale_counts_without_a_rotation_too():
    layer, x, *_ = setup()
    still = [torch.ones(n, D // 2) for n in (C, P)], [torch.zeros(n, D // 2) for n in (C, P)]
    wanted = layer(x, C, *zip(*still, strict=True), torch.tensor(1.7))
    torch.testing.assert_close(layer(x, C, core_scale=torch.tensor(1.7)), wanted, rtol=0, atol=1e-12)
    assert (layer(x, C) - wanted)[:, :C].abs().max() > 1e-4


def test_scores_of_maps_are_not_rounded_to_16_bits():
    layer, x, *_ = setup(torch.bfloat16)
    still = [(torch.ones(n, D // 2), torch.zeros(n, D // 2)) for n in (C, P)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer.qkv.weight *= 8
        core_read, patch_read, _ = layer.maps(x, C, *still)
        q, k, _ = layer.project(x, C).double().transpose(1, 3).unbind(2)  # (B, H, T, D)
    scores = q @ k.transpose(-2, -1) * D**-0.5
    for got, wanted in ((core_read, scores[:, :, :C]), (patch_read, scores[:, :, C:, :C])):
        torch.testing.assert_close(got.double(), wanted.softmax(-1), rtol=1e-4, atol=1e-6)


def test_qk_norm_and_scale_norm_against_plain_formula():
    layer, x, *_ = setup(qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm)
    with torch.no_grad():
        for norm in (layer.q_norm, layer.k_norm, layer.norm):
            norm.weight.uniform_(0.5, 1.5)
    w = dict(layer.named_parameters())
    q, k, v = (x @ w["qkv.weight"].T + w["qkv.bias"]).unflatten(-1, (3, H, D)).unbind(2)
    q = dense.layer_norm(q, w["q_norm.weight"], w["q_norm.bias"], 1e-5)
    k = dense.layer_norm(k, w["k_norm.weight"], w["k_norm.bias"], 1e-5)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * D**-0.5
    weights = scores.masked_fill(~dense.block_mask(C, C + P), float("-inf")).softmax(-1)
    out = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
    out = dense.layer_norm(out, w["norm.weight"], w["norm.bias"], 1e-5)
    expected = out @ w["proj.weight"].T + w["proj.bias"]
    torch.testing.assert_close(layer(x, C), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("core_self", [True, False], ids=["core_self", "no_core_self"])
@pytest.mark.parametrize("patch_self", [True, False], ids=["patch_self", "no_patch_self"])
def test_maps_rebuild_the_output(core_self, patch_self):
    layer, x, core_xy, patch_xy = setup(core_self=core_self, patch_self=patch_self)
    ropes = tables(core_xy, patch_xy)
    core_read, patch_read, core_map = layer.maps(x, C, *ropes)
    v = layer.qkv(x).unflatten(-1, (3, H, D))[:, :, 2].transpose(1, 2)  # (B, H, T, D)
    patches = patch_read @ v[:, :, :C]
    torch.testing.assert_close(core_read.sum(-1), torch.ones(2, H, C, dtype=torch.float64))
    own = 1 - patch_read.sum(-1, keepdim=True)
    if patch_self:
        assert own.min() > 1e-3
        patches = patches + own * v[:, :, C:]
    else:
        assert own.abs().max() < 1e-12
    assert (core_read[..., :C].sum() == 0) == (not core_self)
    rebuilt = torch.cat((core_read @ v, patches), 2).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.proj(rebuilt), layer(x, C, *ropes), rtol=0, atol=1e-6)

    out_weight = layer.proj.weight.unflatten(1, (H, D))  # (E, H, D)
    moves = torch.einsum("bhcp,bhpd,ehd->bcpe", core_read[..., C:], v[:, :, C:], out_weight).norm(dim=-1)
    torch.testing.assert_close(core_map, moves / moves.sum(-1, keepdim=True))
    torch.testing.assert_close(core_map.sum(-1), torch.ones(2, C, dtype=torch.float64))


def test_map_in_chunks_equals_map_at_once(monkeypatch):
    layer, x, core_xy, patch_xy = setup()
    whole = layer.maps(x, C, *tables(core_xy, patch_xy))[2]
    monkeypatch.setattr("veca.model.attention._MAP_CHUNK", 4)
    torch.testing.assert_close(layer.maps(x, C, *tables(core_xy, patch_xy))[2], whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=3), "dim .* multiple of num_heads, got 32 and 3"),
        (dict(attn_drop=0.1), "attn_drop=0.*got 0.1"),
        (dict(qk_norm=True), "norm_layer"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CoreAttention(E, **options)


def test_impl_is_handed_to_the_op():
    layer, x, *_ = setup(impl="fastest")
    with pytest.raises(ValueError, match="auto, reference, sdpa, triton, got 'fastest'"):
        layer(x, C)
    assert "impl='fastest'" in repr(layer)
