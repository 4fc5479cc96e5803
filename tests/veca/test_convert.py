import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import veca
from tests.veca import dense
from veca.model.cores import spread_points
from veca.train.optimizers import ElasticOptimizer

SMALL = dict(depth=2, img_size=64, num_classes=5)


def vit(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    model = timm.create_model(name, **(SMALL | options)).eval()
    with torch.no_grad():  # timm starts prefix tokens at nearly nothing, and biases at zero
        for token in (model.cls_token, model.reg_token, model.patch_embed.proj.bias):
            if token is not None:
                token.normal_()
        if model.pos_embed is not None:
            model.pos_embed.normal_()
    return model


def images(height=64, width=64):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(reg_tokens=3),
        dict(reg_tokens=3, class_token=False, global_pool="avg", no_embed_class=True),
        dict(class_token=False, global_pool="avg", qk_norm=True, init_values=0.5, qkv_bias=False),
        dict(class_token=False, global_pool="map", pos_embed="none", scale_attn_norm=True),
    ],
    ids=["class token", "registers", "registers alone", "norms", "no position"],
)
def test_equals_the_stock_model_with_the_cores_as_registers_under_the_dense_mask(options):
    """The stock model of the same tokens, and the definition of the attention as a mask."""
    teacher = vit(**options)
    student = veca.convert_vit(teacher, 8)
    has_class = teacher.cls_token is not None
    stock = vit(**(options | dict(reg_tokens=8 - has_class, no_embed_class=True)))
    stock.load_state_dict(student.state_dict(), strict=True)
    x = images()
    mask = dense.block_mask(8, 8 + 16)
    expected = stock.forward_features(x, attn_mask=mask)
    torch.testing.assert_close(student.forward_features(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(student(x), stock.forward_head(expected), rtol=1e-4, atol=1e-4)
    assert (stock.forward_features(x) - expected).abs().max() > 1e-2
    assert student.num_prefix_tokens == 8 and student.num_reg_tokens == 8 - has_class


def eva(name, **options):
    """Two narrow blocks of an Eva model with attention that can be seen: LayerScale starts at nearly nothing."""
    torch.manual_seed(0)
    sizes = dict(embed_dim=96, num_heads=2, depth=2, num_classes=5, dynamic_img_size=True)
    model = timm.create_model(name, **(sizes | options)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim < 2 or "token" in key or "pos_embed" in key:
                parameter.normal_(0.3, 0.3)
            elif "qkv" in key or "_proj" in key:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("vit_small_patch16_dinov3", 0),
        ("vit_small_patch16_dinov3", 7),
        ("vit_small_patch16_dinov3_qkvb", 0),
        ("eva02_tiny_patch14_224", 0),
        ("eva02_base_patch14_224", 0),  # q, k and v in three layers, with a norm of the attention's output
        ("vit_pe_core_tiny_patch16_384", 0),
        ("eva_giant_patch14_224", 0),  # not rotated
    ],
)
def test_eva_models_equal_the_stock_model_under_the_dense_mask(name, extra):
    """Rotary positions, register tokens, and every way timm has to store q, k and v."""
    teacher = eva(name).double()
    count = teacher.num_prefix_tokens + extra
    student = veca.convert_vit(teacher, count)
    stock = teacher
    if extra:
        stock = eva(name, num_reg_tokens=count - 1, no_embed_class=True).double()
        stock.load_state_dict(student.state_dict(), strict=True)
    patch = teacher.patch_embed.patch_size[0]
    x = images(4 * patch, 6 * patch).double()
    mask = dense.block_mask(count, count + 24)
    expected = stock.forward_features(x, attn_mask=mask)
    torch.testing.assert_close(student.forward_features(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student(x), stock.forward_head(expected), rtol=1e-5, atol=1e-5)
    assert (stock.forward_features(x) - expected).abs().max() > 1e-2
    assert student.num_prefix_tokens == count
    again = veca.drop_in(name, count, embed_dim=96, num_heads=2, depth=2, num_classes=5).double().eval()
    again.load_state_dict(student.state_dict(), strict=True)
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)


def test_eva_models_train_with_dropped_patches():
    student = veca.convert_vit(eva("vit_small_patch16_dinov3", patch_drop_rate=0.5), 8).train()
    student(images()).sum().backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if not name.startswith("norm"))
    assert student.reg_token.grad.abs().amax(2).min() > 0
    muon, _ = ElasticOptimizer(student, "normuon").optimizers  # all matrices of the blocks but the last one
    shapes = sorted(tuple(p.shape) for group in muon.param_groups for p in group["params"])
    assert shapes == sorted([(288, 96), (96, 96), (384, 96), (96, 384), (288, 96), (96, 96), (384, 96)])


def test_drop_in_loads_a_stock_checkpoint(tmp_path):
    teacher, x = vit(), images()
    torch.save(teacher.state_dict(), tmp_path / "stock.pth")
    options = dict(core_self=False, impl="reference")
    model = veca.drop_in("vit_tiny_patch16_224", 8, checkpoint_path=tmp_path / "stock.pth", **options, **SMALL)
    assert model.training and model.dynamic_img_size
    assert torch.equal(model.eval()(x), veca.convert_vit(teacher, 8, **options)(x))
    assert model(images(48, 80)).shape == (2, 5)
    deit = veca.drop_in("deit_tiny_patch16_224", 8, **SMALL)
    assert {type(block.attn).__name__ for block in deit.blocks} == {"TimmCoreAttention"}


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("vit_base_patch16_xp_224", {}, TypeError, "Attention in block 0, got ParallelScalingBlock"),
        ("vit_dwee_patch16_reg1_gap_256", {}, TypeError, "got Block with DiffAttention"),
        ("resnet18", {}, TypeError, "VisionTransformer or Eva, whose attention can be swapped, got ResNet"),
        ("vit_small_patch16_dinov3", dict(num_cores=4), ValueError, "at least 5, the prefix tokens"),
        ("vit_tiny_patch16_224", dict(pretrained=True, checkpoint_path="x.pth"), ValueError, "got both, x.pth"),
    ],
)
def test_drop_in_refuses_names_before_it_loads_weights(name, options, error, message):
    with pytest.raises(error, match=message):
        veca.drop_in(name, **(dict(num_cores=8) | options))


@pytest.mark.parametrize("options", [dict(reg_tokens=3), dict(class_token=False, global_pool="avg")], ids=str)
def test_the_prefix_and_the_patches_enter_as_in_the_teacher(options):
    teacher = vit(**options)
    old, x = teacher.num_prefix_tokens, images()
    student = veca.convert_vit(teacher, 10)
    given, kept = (m._pos_embed(m.patch_embed(x)) for m in (teacher, student))
    torch.testing.assert_close(kept[:, :old], given[:, :old])
    torch.testing.assert_close(kept[:, 10:], given[:, old:])


def test_new_cores_are_grey_patches_spread_over_the_image():
    teacher = vit()
    cores = veca.convert_vit(teacher, 40).reg_token[0]
    grey = teacher.patch_embed(torch.zeros(1, 3, 64, 64))[0] + teacher.pos_embed[0, 1:]  # (16, E), row by row
    xy = spread_points(40)[1:]  # the class token has the first
    for core, (x, y) in zip(cores, xy.tolist(), strict=True):
        col, row = ((u + 1) / 2 * 4 - 0.5 for u in (x, y))
        expected = 0.0
        for i in range(4):
            for j in range(4):
                near = max(1 - abs(min(max(row, 0), 3) - i), 0) * max(1 - abs(min(max(col, 0), 3) - j), 0)
                expected = expected + near * grey[4 * i + j]
        noise = core - expected
        assert noise.abs().max() < 0.1 and 0.015 < noise.std() < 0.025
    apart = torch.cdist(cores, cores) + 9 * torch.eye(39)
    assert apart.min() > 0.1
    assert torch.equal(cores, veca.convert_vit(teacher, 40).reg_token[0])  # repeats


def test_every_weight_is_kept_and_the_teacher_untouched():
    teacher = vit(reg_tokens=3).train()
    teacher.blocks[0].attn.qkv.weight.requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    x = images()
    output = teacher.eval()(x)
    teacher.train()
    student = veca.convert_vit(teacher, 16)
    for name, weight in student.state_dict().items():
        if name not in ("cls_token", "reg_token", "pos_embed"):
            assert torch.equal(weight, before[name]), name
    assert student.training and student.blocks[0].attn.training
    assert not student.blocks[0].attn.qkv.weight.requires_grad and student.blocks[1].attn.qkv.weight.requires_grad
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert torch.equal(teacher.eval()(x), output)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_intermediates_and_other_sizes_work_afterwards():
    student, x = veca.convert_vit(vit(dynamic_img_size=True), 8), images(48, 80)
    _, pairs = student.forward_intermediates(x, indices=[0, 1], return_prefix_tokens=True)
    seen = []
    for block in student.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    student(x)
    for (image_map, cores), tokens in zip(pairs, seen, strict=True):
        assert torch.equal(cores, tokens[:, :8])
        assert torch.equal(image_map, tokens[:, 8:].transpose(1, 2).unflatten(2, (3, 5)))
    pyramid = timm.models._features.FeatureGetterNet(copy.deepcopy(student), out_indices=[0])
    assert torch.equal(pyramid(x)[0], pairs[0][0])


def test_options_reach_the_layers_and_bf16_stays():
    student = veca.convert_vit(vit().bfloat16(), 8, core_self=False, patch_self=True, impl="reference")
    layer = student.blocks[1].attn
    assert (layer.core_self, layer.patch_self, layer.impl, layer.num_cores) == (False, True, "reference", 8)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


def test_a_student_learns_its_teachers_patches():
    teacher = vit()
    with torch.no_grad():  # at timm's first weights attention does next to nothing
        for block in teacher.blocks:
            block.attn.qkv.weight.mul_(6)
            block.attn.proj.weight.mul_(12)
    student = veca.convert_vit(teacher, 8).train()
    x = images()
    with torch.no_grad():
        wanted = teacher.forward_features(x)[:, 1:]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(student.forward_features(x)[:, 8:], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 1e-3 < losses[0] < 0.5 * wanted.var().item()  # not the teacher, and better than a constant
    assert losses[-1] < 0.4 * losses[0]
    assert student.reg_token.grad.abs().amax(2).min() > 0 and student.cls_token.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), TypeError, "got SwinTransformer"),
        (
            lambda: eva("vit_small_patch16_rope_mixed_224"),
            TypeError,
            "rotary positions of .*, got RotaryEmbeddingMixed",
        ),
        (lambda: eva("vit_small_patch16_dinov3", qk_norm=True), TypeError, "no norm of q and k beside rotated halves"),
        (lambda: timm.create_model("vit_tiny_r_s16_p8_224"), TypeError, "PatchEmbed as the stem, got HybridEmbed with"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), TypeError, "got VisionTransformerDistilled"),
        (lambda: vit(attn_layer=veca.core_attention(1)), TypeError, "block 0, got Block with TimmCoreAttention"),
        (lambda: vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock), TypeError, "ParallelScalingBlock"),
        (lambda: vit(attn_drop_rate=0.1), ValueError, "attn_drop=0, core attention has no dropout, got 0.1"),
        (lambda: vit(reg_tokens=8), ValueError, "at least 9, the prefix tokens of this model, got 8"),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", features_only=True),
            TypeError,
            "got FeatureGetterNet; convert its `.model`",
        ),
        (lambda: nn.Linear(1, 1), TypeError, "got Linear"),
    ],
)
def test_what_cannot_be_converted_is_named(build, error, message):
    with pytest.raises(error, match=message):
        veca.convert_vit(build(), 8)
