import pytest
import torch
from timm.layers import DropPath, LayerScale
from torch import nn

from tests.veca import dense
from veca.model import block as module
from veca.model.block import Block
from veca.model.rope import patch_coordinates, rope_periods, rope_tables

C, ROWS, COLS, H, D = 7, 3, 5, 2, 32
P = ROWS * COLS
E, HIDDEN = H * D, 80


def setup(**options):
    torch.manual_seed(0)
    block = Block(E, H, HIDDEN, **options).double()
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    x = torch.randn(2, C + P, E, dtype=torch.float64, requires_grad=True)
    core_xy = (torch.rand(C, 2, dtype=torch.float64) * 2 - 1).requires_grad_()
    return block, x, core_xy, patch_coordinates(ROWS, COLS)


def ropes(core_xy, patch_xy):
    periods = rope_periods(D)
    return rope_tables(core_xy, periods), rope_tables(patch_xy, periods)


def test_equals_the_dense_mask_definition_forward_and_backward():
    block, x, core_xy, patch_xy = setup()
    weights = dict(block.named_parameters())
    rotations = dense.rotation_matrices(torch.cat((core_xy, patch_xy.double())), D, disabled=1)
    expected = dense.block(x, weights, H, dense.block_mask(C, C + P), rotations)
    out = block(x, C, *ropes(core_xy, patch_xy))
    torch.testing.assert_close(out, expected, rtol=0, atol=5e-6)  # the patches' tables are fp32
    inputs = [x, core_xy, *weights.values()]
    probe = torch.randn_like(out)
    got = torch.autograd.grad((out * probe).sum(), inputs)
    wanted = torch.autograd.grad((expected * probe).sum(), inputs)
    for name, a, b in zip(["x", "core_xy", *weights], got, wanted, strict=True):
        assert b.abs().max() > 1e-3, name
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_sequential_patches_read_cores_that_have_read():
    block, x, core_xy, patch_xy = setup(update="sequential")
    weights = dict(block.named_parameters())
    rotations = dense.rotation_matrices(torch.cat((core_xy, patch_xy.double())), D, disabled=1)
    mask = dense.block_mask(C, C + P)

    def branch(x):
        normed = dense.layer_norm(x, weights["norm1.weight"], weights["norm1.bias"], 1e-5)
        return dense.attention(normed, weights, H, mask, rotations)[0]

    cores = x[:, :C] + branch(x)[:, :C]
    patches = x[:, C:] + branch(torch.cat((cores, x[:, C:]), 1))[:, C:]
    y = torch.cat((cores, patches), 1)
    y = y + dense.swiglu(dense.layer_norm(y, weights["norm2.weight"], weights["norm2.bias"], 1e-5), weights)
    torch.testing.assert_close(block(x, C, *ropes(core_xy, patch_xy)), y, rtol=0, atol=5e-6)
    parallel, *_ = setup()
    assert (parallel(x, C, *ropes(core_xy, patch_xy)) - y).abs().max() > 1e-3


def test_swiglu_half_order_golden():
    block = Block(4, 1, 1)
    with torch.no_grad():
        block.mlp.fc1.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        block.mlp.fc1.bias.copy_(torch.tensor([0.0, 1.0]))
        block.mlp.fc2.weight.copy_(torch.tensor([[1.0], [0], [0], [2.0]]))
        block.mlp.fc2.bias.zero_()
    out = block.mlp(torch.tensor([2.0, 3.0, 0, 0]))
    # silu(2) = 1.761594 from the first half, times 3 + 1 from the second
    torch.testing.assert_close(out, torch.tensor([7.046377, 0, 0, 14.092754]), rtol=0, atol=1e-5)


def test_norm_eps_golden():
    x = torch.tensor([1e-3, -1e-3, 1e-3, -1e-3])  # variance 1e-6, so that eps decides
    assert Block(4, 1, 1).norm1(x)[0].item() == pytest.approx(1e-3 / (1e-6 + 1e-5) ** 0.5, rel=1e-4)
    block = Block(4, 1, 1, norm_eps=1e-6, qk_norm=True)
    for norm in (block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm):
        assert norm(x)[0].item() == pytest.approx(1e-3 / (2e-6) ** 0.5, rel=1e-4)


def test_cores_and_patches_share_all_modules_and_nothing_absent_is_there():
    block, *_ = setup()
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    assert set(linears) == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert set(block.state_dict()) == {
        f"{module}.{kind}" for module in (*linears, "norm1", "norm2") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("branch", ["1", "2"])
def test_layer_scale_and_drop_path(branch):
    block, x, core_xy, patch_xy = setup(init_values=0.0, drop_path=0.5)
    scale, drop = getattr(block, f"ls{branch}"), getattr(block, f"drop_path{branch}")
    assert isinstance(scale, LayerScale) and isinstance(drop, DropPath)
    assert torch.equal(block(x, C, *ropes(core_xy, patch_xy)), x)
    with torch.no_grad():
        scale.gamma.fill_(0.25)
    many = x.repeat(32, 1, 1)
    changed = (block(many, C, *ropes(core_xy, patch_xy)) - many).abs().amax((1, 2)) > 0
    assert 16 < changed.sum() < 48  # each image is dropped as a whole, half of 64 on average

    block.eval()
    full, *_ = setup()
    with torch.no_grad():
        for parameter in (full.mlp.fc2 if branch == "1" else full.attn.proj).parameters():
            parameter.zero_()
    step, full_step = (model(x, C, *ropes(core_xy, patch_xy)) - x for model in (block, full))
    torch.testing.assert_close(step, 0.25 * full_step)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"core_self": False}, {"patch_self": True}, {"rope_layout": "half"}, {"qk_norm": True, "init_values": 0.3}],
    ids=lambda options: "-".join(options) or "default",
)
def test_pieces_of_the_patches_give_the_whole(monkeypatch, images, options):
    torch.manual_seed(0)
    rows, cols = 17, 31  # 527 patches: nine pieces, the last one short
    block = Block(E, H, HIDDEN, **options).double().eval()
    x = torch.randn(images, C + rows * cols, E, dtype=torch.float64)
    core_xy = torch.rand(images, C, 2, dtype=torch.float64) * 2 - 1
    arguments = (C, *ropes(core_xy, patch_coordinates(rows, cols)))
    budgets = torch.tensor([7, 3, 1], dtype=torch.int32)[:images]
    lengths = torch.tensor([527, 60, 0], dtype=torch.int32)[:images]
    for more in ((None, None, None), (torch.tensor(1.3), budgets, None), (None, None, lengths)):
        with torch.no_grad():
            assert not block._takes_pieces(x[:, C:])
            whole = block(x, *arguments, *more)
            monkeypatch.setattr(module, "_PIECE", 64)
            assert block._takes_pieces(x[:, C:])
            pieces = block(x, *arguments, *more)
            monkeypatch.undo()
        if more[2] is not None:  # what padding becomes is nobody's business
            for image, length in enumerate(lengths):
                whole[image, C + length :] = pieces[image, C + length :] = 0
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)


def test_patches_may_be_advanced_in_place(monkeypatch):
    block, x, core_xy, patch_xy = setup()
    core_rope, patch_rope = ropes(core_xy, patch_xy)
    with torch.no_grad():
        core_qkv = block.eval().project_cores(x[:, :C], core_rope)
        wanted, wanted_read = block.advance_patches(x[:, C:], core_qkv, patch_rope)
        for piece in (4, 1024):
            monkeypatch.setattr(module, "_PIECE", piece)
            patches = x[:, C:].clone()
            out, read = block.advance_patches(patches, core_qkv, patch_rope, out=patches)
            assert out is patches
            for got, expected in zip((patches, *read), (wanted, *wanted_read), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_join_of_many_parts_rounds_no_more_than_one():
    torch.manual_seed(0)
    parts = [(torch.randn(1, 2, 3, 16).bfloat16() + 1, torch.randn(1, 2, 3)) for _ in range(300)]
    read = None
    for part in parts:
        read = module.join(read, part)
    outs, lses = (torch.stack(x).double() for x in zip(*parts, strict=True))
    truth = (lses.softmax(0)[..., None] * outs).sum(0)
    torch.testing.assert_close(read[0].double(), truth, rtol=0, atol=1e-5)
    torch.testing.assert_close(read[1].double(), lses.logsumexp(0), rtol=0, atol=1e-5)


def test_pieces_are_taken_only_where_nobody_could_tell(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 4)
    block, x, core_xy, patch_xy = setup()
    assert not block.eval()._takes_pieces(x[:, C:])  # gradients are on
    with torch.no_grad():
        assert block._takes_pieces(x[:, C:])
        assert not block._takes_pieces(x[:, C : C + 7])
        assert not block.train()._takes_pieces(x[:, C:])
        block.eval()
        seen = []
        handle = block.mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
        block(x, C, *ropes(core_xy, patch_xy))
        assert seen == [C + P]
        handle.remove()
        assert block._takes_pieces(x[:, C:])
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert not block._takes_pieces(x[:, C:])
        handle.remove()
        assert not setup(update="sequential")[0].eval()._takes_pieces(x[:, C:])
