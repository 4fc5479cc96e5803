import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from tests.models import assert_records_equal, images, tiny_veca
from tests.veca import dense


def cells_reached(model, patch, rows=2, cols=3):
    """Which cells of the image move the output of one patch: (rows, cols), bool."""
    x = images(16 * rows, 16 * cols, batch=1).requires_grad_()
    out = model.forward_features(x).patches[0, patch]
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    gradient = torch.autograd.grad((out * probe).sum(), x)[0]
    return gradient.abs().amax((0, 1)).unfold(0, 16, 16).unfold(1, 16, 16).amax((2, 3)) > 0


def test_patches_reach_themselves_in_one_block_and_all_others_in_two():
    for patch in (1, 5):
        only_itself = torch.zeros(2, 3, dtype=torch.bool)
        only_itself.view(-1)[patch] = True
        assert torch.equal(cells_reached(tiny_veca(depth=1), patch), only_itself)
        assert cells_reached(tiny_veca(depth=2), patch).all()
        assert cells_reached(tiny_veca(depth=1, update="sequential"), patch).all()


def test_equals_dense_blocks_with_moving_cores():
    """The whole model against the definition: embedding, positions, moves, blocks, final norm."""
    model = tiny_veca(num_cores=4, num_heads=1, embed_dim=32).double().eval()
    x = images(32, 48, batch=1).double()
    w = dict(model.named_parameters())
    cells = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    patches = cells @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    tokens = torch.cat((w["core_bank.tokens"][None], patches), 1)
    grid = [(-2 / 3, -0.5), (0, -0.5), (2 / 3, -0.5), (-2 / 3, 0.5), (0, 0.5), (2 / 3, 0.5)]
    raw = w["core_bank.raw_xy"]
    for index in range(2):
        if index:
            step = tokens[0, :4] @ w["core_steps.0.head.weight"].T + w["core_steps.0.head.bias"]
            raw = raw + w["core_steps.0.alpha"] * step
        rotations = dense.rotation_matrices(
            torch.cat((raw.tanh(), torch.tensor(grid, dtype=torch.float64))), 32, disabled=1
        )
        block = {k.removeprefix(f"blocks.{index}."): v for k, v in w.items()}
        tokens = dense.block(tokens, block, 1, dense.block_mask(4, 10), rotations)
    tokens = dense.layer_norm(tokens, w["norm.weight"], w["norm.bias"], 1e-5)
    record = model.forward_features(x)
    torch.testing.assert_close(record.global_token, tokens[:, 0], rtol=0, atol=5e-6)
    torch.testing.assert_close(record.cores, tokens[:, :4], rtol=0, atol=5e-6)
    torch.testing.assert_close(record.patches, tokens[:, 4:], rtol=0, atol=5e-6)
    torch.testing.assert_close(record.core_xy[0], raw.tanh(), rtol=0, atol=1e-7)
    assert record.grid_size == (2, 3) and record.num_cores == 4


def test_every_parameter_gets_a_gradient():
    model = tiny_veca(num_classes=3)
    record = model.forward_features(images(32, 48), 8)
    (record.patches.square().sum() + model.forward_head(record).square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert model.core_bank.tokens.grad[:8].abs().amax(1).min() > 0
    assert model.core_bank.tokens.grad[8:].count_nonzero() == 0
    assert model.core_bank.raw_xy.grad[8:].count_nonzero() == 0


@pytest.mark.parametrize("budget", [1, 4, 7, 16])
def test_budget_equals_a_model_whose_bank_was_cut(budget):
    model = tiny_veca()
    cut = tiny_veca(num_cores=budget, trained_budgets=[budget])
    weights = model.state_dict()
    for name in ("core_bank.tokens", "core_bank.raw_xy"):
        weights[name] = weights[name][:budget]
    cut.load_state_dict(weights)
    x = images(48, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = model.forward_features(x, budget)
    assert_records_equal(record, cut.forward_features(x))
    assert record.num_cores == budget
    if budget < 16:
        assert (record.patches - model.forward_features(x).patches).abs().max() > 1e-3


def test_budgets_outside_the_trained_set_warn_and_outside_the_bank_raise():
    model, x = tiny_veca(), images(16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x, 8)
    with pytest.warns(UserWarning, match="num_cores=5 .* trained budgets 4, 8, 16") as caught:
        model.forward_features(x, 5)
    assert caught[0].filename == __file__
    for wrong in (0, 17):
        with pytest.raises(ValueError, match=f"from 1 to 16.*got {wrong}"):
            model(x, wrong)
    with pytest.raises(TypeError, match="num_cores to be an int, got float"):
        model(x, 8.0)
    assert tiny_veca(num_cores=20, trained_budgets=None).trained_budgets == (8, 16, 20)


def test_model_default_budget():
    model, x = tiny_veca(), images(32, 32)
    assert model.num_prefix_tokens == 16
    model.budget = 8
    assert model.num_prefix_tokens == 8
    assert_records_equal(model.forward_features(x), model.forward_features(x, 8))


def test_active_cores_equal_each_image_alone():
    model, x = tiny_veca(global_from="core_mean"), images(32, 48, batch=3)
    budgets = torch.tensor([4, 16, 8], dtype=torch.int32)
    record = model.forward_features(x, active_cores=budgets)
    together = torch.autograd.grad(record.patches[:, 0].square().sum(), model.parameters(), allow_unused=True)
    alone = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for i, budget in enumerate(budgets.tolist()):
        single = model.forward_features(x[i : i + 1], budget)
        for name in ("global_token", "patches"):
            torch.testing.assert_close(getattr(record, name)[i], getattr(single, name)[0])
        torch.testing.assert_close(record.cores[i, :budget], single.cores[0])
        torch.testing.assert_close(record.core_xy[i, :budget], single.core_xy[0])
        assert record.cores[i, budget:].count_nonzero() == 0
        loss = single.patches[:, 0].square().sum()
        gradients = torch.autograd.grad(loss, model.parameters(), allow_unused=True)
        alone = [a if g is None else a + g for a, g in zip(alone, gradients, strict=True)]
    for got, wanted in zip(together, alone, strict=True):
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "padded", "cropped"),
    [
        ((224, 320), (14, 20), (14, 20)),
        ((17, 33), (2, 3), (1, 2)),
        ((16, 16), (1, 1), (1, 1)),
        ((250, 250), (16, 16), (15, 15)),
    ],
    ids=lambda value: "x".join(map(str, value)),
)
def test_sizes(size, padded, cropped):
    x = images(*size, batch=1)
    multiple = padded == cropped
    with torch.no_grad():
        by_hand = torch.zeros(1, 3, 16 * padded[0], 16 * padded[1])
        by_hand[:, :, : size[0], : size[1]] = x
        pad = tiny_veca(on_odd="pad").forward_features(x)
        assert pad.grid_size == padded and pad.patches.shape[1] == padded[0] * padded[1]
        assert_records_equal(pad, tiny_veca(on_odd="error").forward_features(by_hand))

        by_hand = x[:, :, : 16 * cropped[0], : 16 * cropped[1]]
        crop = tiny_veca(on_odd="crop").forward_features(x)
        assert crop.grid_size == cropped
        assert_records_equal(crop, tiny_veca(on_odd="error").forward_features(by_hand))

        if multiple:
            assert_records_equal(tiny_veca(on_odd="error").forward_features(x), pad)
        else:
            with pytest.raises(ValueError, match=f"multiples of the patch 16 x 16, got {size[0]} x {size[1]}"):
                tiny_veca(on_odd="error")(x)


def test_padding_leaves_a_real_pixel_in_every_patch():
    x = images(33, 17, batch=1)
    changed = x.clone()
    changed[:, :, -1, -1] += 1  # the only real pixels of the last patch
    model = tiny_veca(depth=1)
    difference = model.forward_features(changed).patches - model.forward_features(x).patches
    assert difference[0].abs().amax(1).nonzero().flatten().tolist() == [5]


def test_crop_needs_one_whole_patch():
    with pytest.raises(ValueError, match="got 15 x 40 with on_odd='crop'"):
        tiny_veca(on_odd="crop")(images(15, 40))


@pytest.mark.parametrize("global_from", ["core0", "core_mean", "patch_mean", "core0+patch_mean"])
def test_global_token(global_from):
    record = tiny_veca(global_from=global_from).forward_features(images(32, 48), 8)
    expected = {
        "core0": record.cores[:, 0],
        "core_mean": record.cores.mean(1),
        "patch_mean": record.patches.mean(1),
        "core0+patch_mean": record.cores[:, 0] + record.patches.mean(1),
    }
    torch.testing.assert_close(record.global_token, expected[global_from])
    others = [value for name, value in expected.items() if name != global_from]
    assert min((record.global_token - other).abs().max() for other in others) > 1e-3


def test_forward_is_the_head_on_the_global_token():
    model, x = tiny_veca(num_classes=5), images(32, 48)
    record = model.forward_features(x, 8)
    torch.testing.assert_close(model(x, 8), record.global_token @ model.head.weight.T + model.head.bias)
    assert torch.equal(model.forward_head(record, pre_logits=True), record.global_token)
    model.reset_classifier(0)
    assert torch.equal(model(x, 8), record.global_token)
    model.reset_classifier(7)
    assert model.get_classifier().weight.shape == (7, 64) and model(x).shape == (2, 7)


def test_output_linear_only_where_the_width_differs():
    same, wider = tiny_veca(output_dim=64), tiny_veca(output_dim=96)
    assert not any(name.startswith("output") for name in same.state_dict())
    assert wider.num_features == 96 and wider.embed_dim == 64
    x = images(32, 32)
    (normed,) = wider.forward_intermediates(x, [-1], norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(wider.forward_features(x).patches, wider.output(normed))


def test_augmentation_moves_patches_once_a_batch_in_training_only():
    options = dict(rope_shift=0.08, rope_scale=2.0)
    model, plain = tiny_veca(**options), tiny_veca()
    x = images(32, 48, batch=1).expand(2, -1, -1, -1)

    def run(seed):
        torch.manual_seed(seed)
        return model.forward_features(x)

    first = run(0)
    assert_records_equal(run(0), first)
    assert (run(1).patches - first.patches).abs().max() > 1e-4
    torch.testing.assert_close(first.patches[0], first.patches[1])  # one draw for both images
    assert (first.patches - plain.forward_features(x).patches).abs().max() > 1e-4
    model.eval()
    assert_records_equal(model.forward_features(x), plain.forward_features(x))
    core_only = tiny_veca(depth=1, **options).forward_features(x)
    assert torch.equal(core_only.core_xy[0], model.core_bank.xy)


def test_core_logit_log_scale_is_one_at_its_patch_count_and_grows_with_log_p():
    x = images(32, 64)
    plain = tiny_veca().attention_maps(x, block=0)
    at_reference = tiny_veca(core_logit_log_scale=8).attention_maps(x, block=0)
    torch.testing.assert_close(at_reference.core_read, plain.core_read)
    grown = tiny_veca(core_logit_log_scale=2).attention_maps(x, block=0)  # log 8 / log 2 = 3
    logits, grown_logits = plain.core_read.log().diff(dim=-1), grown.core_read.log().diff(dim=-1)
    torch.testing.assert_close(grown_logits, 3 * logits, rtol=0, atol=1e-4)
    assert logits.abs().max() > 1e-2
    torch.testing.assert_close(grown.patch_read, plain.patch_read)
    with pytest.raises(ValueError, match=r"core_logit_log_scale from 2 to \d+, got 1"):
        tiny_veca(core_logit_log_scale=1)


@pytest.mark.parametrize(
    "option",
    [
        dict(core_self=False),
        dict(patch_self=True),
        dict(coord_norm="max"),
        dict(coord_norm="min"),
        dict(rope_base=10.0),
        dict(rope_zero_low=0.5),
        dict(rope_axis_order="yx"),
        dict(rope_layout="half"),
        dict(update="sequential"),
        dict(norm_eps=1e-2),
        dict(core_step_max=1e-6),
    ],
    ids=lambda option: "-".join(f"{k}={v}" for k, v in option.items()),
)
def test_option_changes_the_features_but_no_parameter(option):
    plain, other = tiny_veca(depth=3), tiny_veca(depth=3, **option)
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.core_steps[0].alpha.fill_(10.0)
        other.core_steps[0].alpha.fill_(10.0)
    x = images(32, 64)
    difference = (plain.forward_features(x).patches - other.forward_features(x).patches).abs().max()
    assert difference > 1e-4


def test_options_that_add_modules():
    names = set(tiny_veca().state_dict())
    assert {n.rsplit(".", 2)[-2] for n in set(tiny_veca(qk_norm=True).state_dict()) - names} == {
        "q_norm",
        "k_norm",
    }
    assert {n.rsplit(".", 2)[-2] for n in set(tiny_veca(init_values=0.1).state_dict()) - names} == {"ls1", "ls2"}
    extra = set(tiny_veca(core_step_norm=True).state_dict()) - names
    assert extra == {"core_steps.0.norm.weight", "core_steps.0.norm.bias"}
    rates = [block.drop_path1.drop_prob for block in tiny_veca(depth=3, drop_path_rate=0.2).blocks[1:]]
    assert rates == [0.1, 0.2] and isinstance(tiny_veca(drop_path_rate=0.2).blocks[0].drop_path1, nn.Identity)


def test_state_dict_has_no_position_table():
    names = {name.split(".")[0] for name in tiny_veca().state_dict()}
    assert names == {"patch_embed", "core_bank", "core_steps", "blocks", "norm"}
    assert not list(tiny_veca().buffers())


def test_initialisation():
    model = tiny_veca(embed_dim=128, num_classes=200)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if module.weight.numel() > 1000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias.count_nonzero() == 0, name


def test_checkpointing_changes_nothing():
    model, x = tiny_veca(rope_shift=0.08), images(32, 48)

    def run():
        torch.manual_seed(0)
        record, maps = model.forward_intermediates(x, [0])
        loss = record.global_token.square().sum() + maps[0].square().sum()
        return [loss, *torch.autograd.grad(loss, model.parameters(), allow_unused=True)]

    plain = run()
    recomputed = []
    model.set_grad_checkpointing()
    model.blocks[0].register_forward_pre_hook(lambda *args: recomputed.append(1))
    for a, b in zip(plain, run(), strict=True):
        torch.testing.assert_close(a, b)
    assert len(recomputed) == 2


def test_every_impl_gives_the_same_features():
    x = images(32, 48)
    records = [tiny_veca(impl=impl).forward_features(x) for impl in ("auto", "reference", "sdpa")]
    assert_records_equal(records[0], records[1], rtol=0, atol=1e-5)
    assert_records_equal(records[0], records[2])


def test_timm_attributes():
    model = tiny_veca(img_size=(64, 96), patch_size=8)
    assert (model.num_features, model.embed_dim, model.num_classes) == (64, 64, 0)
    assert model.patch_embed.grid_size == (8, 12)
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    assert len(model.no_weight_decay()) == 3


def test_every_tensor_is_made_on_the_device_of_the_images():
    """On fake CUDA tensors, which refuse to meet the CPU; the options bring in every table there is."""
    tables = dict(rope_shift=0.1, core_logit_log_scale=4, rope_layout="half", global_from="core_mean")

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = tiny_veca(impl="reference", **tables)

        def forward(self, x, active_cores):
            features = self.model.forward_features(x, active_cores=active_cores)
            return features[:4] + self.model.attention_maps(x)[:4]

    wrapper = Wrapper()
    with FakeTensorMode():
        weights = {name: torch.empty(p.shape, device="cuda") for name, p in wrapper.named_parameters()}
        inputs = torch.empty(2, 3, 50, 70, device="cuda"), torch.ones(2, dtype=torch.int32, device="cuda")
        outputs = functional_call(wrapper, weights, inputs)
    assert {out.device.type for out in outputs} == {"cuda"}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(3, 32, 32), ValueError, r"\(B, 3, height, width\), got \(3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), ValueError, r"got \(1, 4, 32, 32\)"),
        (torch.zeros(1, 3, 0, 32), ValueError, r"got \(1, 3, 0, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "got torch.uint8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), TypeError, "torch.float32 .* got torch.float64"),
        ([[0.0]], TypeError, "got list"),
    ],
    ids=["ndim", "channels", "empty", "uint8", "fp64", "list"],
)
def test_bad_images(bad, error, message):
    with pytest.raises(error, match=message):
        tiny_veca()(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(global_from="cls"), "global_from to be one of core0, .* got 'cls'"),
        (dict(on_odd="stretch"), "on_odd to be one of pad, crop, error, got 'stretch'"),
        (dict(num_heads=3), "embed_dim=64 and num_heads=3"),
        (dict(num_cores=0), "num_cores from 1 to 4096, got 0"),
        (dict(num_cores=20000), "num_cores from 1 to 4096, got 20000"),  # its points would take many minutes
        (dict(depth=100_000), "depth from 1 to 1024, got 100000"),
        (dict(depth=0), "depth from 1 to 1024, got 0"),
        (dict(embed_dim=-8), "embed_dim from 4 to 65536, got -8"),
        (dict(num_heads=0), "num_heads from 1 to 4096, got 0"),
        (dict(patch_size=0), "patch_size from 1 to 1024, got 0"),
        (dict(in_chans=0), "in_chans from 1 to 4096, got 0"),
        (dict(multiple_of=0), "multiple_of from 1 to 4096, got 0"),
        (dict(output_dim=0), "output_dim from 1 to 65536, got 0"),
        (dict(num_classes=-1), "num_classes from 0 to 10000000, got -1"),
        (dict(img_size=(32, 0)), "img_size from 1 to 16777216, got 0"),
        (dict(trained_budgets=[0, 99]), "trained_budgets from 1 to 16777216, got 0"),
        (dict(mlp_ratio=0), "mlp_ratio above 0 and at most 64, got 0"),
        (dict(norm_eps=-1), "norm_eps above 0 and at most 1, got -1"),
        (dict(drop_path_rate=2.0), "drop_path_rate from 0 to below 1, got 2.0"),
        (dict(rope_base=0), "rope_base above 0, got 0"),
        (dict(rope_zero_low=math.nan), "rope_zero_low from 0 to 1, got nan"),
        (dict(init_values=math.inf), "init_values that is finite, got inf"),
        (dict(std=[0, 0, 0]), "std above 0, got 0"),
        (dict(mean=[0, 0, math.nan]), "mean that is finite, got nan"),
        (dict(impl="cuda"), "impl to be one of auto, triton, sdpa, reference, got 'cuda'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_veca(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_cores=2.0), "num_cores to be an int, got float"),
        (dict(num_cores="4"), "num_cores to be an int, got str"),
        (dict(num_cores=True), "num_cores to be an int, got bool"),
        (dict(patch_size=(16, 8)), "patch_size to be an int, got tuple"),
        (dict(norm_eps="a"), "norm_eps to be a number, got str"),
        (dict(mean=0.5), "mean to be a sequence of numbers, got float"),
    ],
)
def test_numbers_of_another_kind(options, message):
    with pytest.raises(TypeError, match=message):
        tiny_veca(**options)


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    """json has no numbers of NumPy: such a model once lost its number of cores in its folder."""
    given = dict(num_cores=np.int64(8), depth=np.int32(2), norm_eps=np.float32(2**-10), img_size=np.array([32, 48]))
    model = tiny_veca(**given, trained_budgets=np.array([4, 8]), std=np.array([0.5, 0.5, 0.25])).eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config == model.config and (again.num_cores, again.norm.eps) == (8, 2**-10)
    x = images(32, 48)
    for count in (8, np.int64(4)):
        assert torch.equal(again.forward_features(x, count).cores, model.forward_features(x, int(count)).cores)
    with pytest.raises(TypeError, match=r"active_cores to be a tensor \(B,\) or None, got int"):
        model.forward_features(x, active_cores=4)
