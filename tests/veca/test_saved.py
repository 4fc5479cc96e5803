"""The fused parts of a block: the plain block's values and gradients, and no more kept for backward than stated."""

import copy

import pytest
import torch
from torch import nn

from veca import VECA
from veca.model.block import Block
from veca.model.rope import patch_coordinates, rope_periods, rope_tables

E, HIDDEN, H, D, C = 64, 168, 2, 32, 5


def make_block(**options):
    torch.manual_seed(0)
    block = Block(E, H, HIDDEN, **options)
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return block


def plain_twin(block):
    """The same block, all of whose modules are called one by one."""
    twin = copy.deepcopy(block)
    twin.fused_norm = twin.mlp.recompute = False
    return twin


def make_inputs(rows, cols, dtype=torch.float32, images=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, C + rows * cols, E, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    core_xy = (2 * torch.rand(images, C, 2, generator=generator) - 1).requires_grad_()
    periods = rope_periods(D)
    patch_rope = rope_tables(patch_coordinates(rows, cols), periods)
    return x, core_xy, lambda: (C, rope_tables(core_xy, periods), patch_rope)


def step(block, x, core_xy, arguments, *more):
    """Output and gradients of everything, drop path drawn from one seed."""
    torch.manual_seed(3)
    out = block(x, *arguments(), *more)
    leaves = [x, core_xy, *block.parameters()]
    return [out, *torch.autograd.grad(out.float().sin().sum() if out.dtype != x.dtype else out.sin().sum(), leaves)]


OPTIONS = [
    {},
    {"init_values": 0.3},
    {"init_values": 0.3, "drop_path": 0.5, "qk_norm": True},
    {"drop_path": 0.5},
    {"rope_layout": "half", "patch_self": True},
    {"update": "sequential"},
    {"impl": "reference"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
def test_a_fused_block_is_the_plain_one(options):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        block = make_block(**options).to(dtype)
        inputs = make_inputs(3, 5, dtype)
        ragged = (None, torch.tensor([5, 2], dtype=torch.int32), torch.tensor([15, 4], dtype=torch.int32))
        for more in ((), ragged):
            for a, b in zip(step(block, *inputs, *more), step(plain_twin(block), *inputs, *more), strict=True):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("options", OPTIONS[:3], ids=lambda options: "-".join(options) or "default")
def test_a_fused_block_is_the_plain_one_under_autocast(options):
    block = make_block(**options)
    inputs = make_inputs(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        results = [step(each, *inputs) for each in (block, plain_twin(block))]
    exact = step(block, *inputs)
    for a, b, truth in zip(*results, exact, strict=True):
        assert a.dtype == b.dtype == torch.float32
        error, usual = (torch.linalg.vector_norm(y - truth) for y in (a, b))
        assert error <= 1.2 * usual + 1e-3 * torch.linalg.vector_norm(truth)


def test_a_fused_model_is_the_plain_one():
    x = torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for options in ({}, {"init_values": 0.1, "drop_path_rate": 0.2}):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            gradients = []
            for fused in (True, False):
                torch.manual_seed(0)
                model = VECA(64, 3, 2, num_cores=8, fused_norm=fused, recompute=fused, **options).to(dtype)
                torch.manual_seed(1)
                model(x.to(dtype), 8).sin().sum().backward()
                gradients.append({name: p.grad for name, p in model.named_parameters()})
            for name, b in gradients[1].items():
                torch.testing.assert_close(gradients[0][name], b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_state_dicts_are_the_same():
    assert list(make_block().state_dict()) == list(make_block(fused_norm=False, recompute=False).state_dict())


def saved_bytes(block, rows, **autocast):
    """Bytes kept for backward by one call with one image; each storage once.

    Parameters are left out, and the rotation of the patches, which all blocks of a model share.
    """
    x, _, arguments = make_inputs(rows, 8, images=1)
    arguments = arguments()
    given = {t.untyped_storage().data_ptr() for t in (*block.parameters(), *arguments[2])}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", **autocast):
        out = block(x, *arguments)
    assert out.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def bytes_per_token(block, **autocast):
    """The share that grows with the image, exactly."""
    few, many = (saved_bytes(block, rows, **autocast) for rows in (4, 12))
    return (many - few) / 64


@pytest.mark.parametrize("scaled", [False, True])
def test_saved_for_backward_with_two_sdpa_calls(scaled):
    """The stated tensors and, in addition, rotated q and k, the write's own output and its log-sum-exp."""
    block = make_block(init_values=0.1 if scaled else None, impl="sdpa")
    stated = 4 * (9 * E + 2 * HIDDEN + H + 2 * E * scaled)
    tables = 4 * D  # cosine and sine of the patches, kept by each rotation
    assert stated + tables <= bytes_per_token(block, enabled=False) <= stated + 2 * tables
    more = 4 * (2 * E + 2 * HIDDEN + 4)  # normalised tokens and their statistics twice, silu(gate), the product
    twin = plain_twin(block)
    assert bytes_per_token(twin, enabled=False) == bytes_per_token(block, enabled=False) + more


@pytest.mark.parametrize("scaled", [False, True])
def test_saved_for_backward_with_the_kernels(scaled, monkeypatch):
    """x twice, qkv, the attention's output, the hidden layer: nothing else that grows with the image."""
    for name in ("api.triton_support", "layer.row_support"):  # the ops' CPU bodies stand for the kernels
        monkeypatch.setattr(f"veca_kernels.{name}", lambda *_: (True, ""))
    block = make_block(init_values=0.1 if scaled else None, impl="triton")
    for dtype in (torch.float32, torch.bfloat16):
        narrow = dtype.itemsize
        stated = 4 * 2 * E + narrow * (4 * E + 2 * HIDDEN + 2 * E * scaled)
        assert bytes_per_token(block, dtype=dtype, enabled=dtype != torch.float32) == stated


def test_hooks_and_other_modules_are_called():
    """A module that somebody watches or has replaced runs as itself."""
    x, _, arguments = make_inputs(3, 5)
    for name in ("norm1", "attn", "attn.qkv", "norm2", "mlp", "mlp.fc1", "mlp.fc2"):
        block = make_block()
        seen = []
        handle = block.get_submodule(name).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        block(x, *arguments())
        assert seen, name
        handle.remove()
        block.get_submodule(name).register_full_backward_hook(lambda *_, seen=seen: seen.append(2))
        block(x, *arguments()).sum().backward()
        assert 2 in seen, name

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for name in ("attn.qkv", "mlp.fc1", "mlp.fc2"):
        block = make_block()
        before = block(x, *arguments())
        block.get_submodule(name).__class__ = Doubled
        assert not torch.allclose(block(x, *arguments()), before)


def test_second_derivatives_with_a_differentiable_attention():
    block = make_block(impl="reference").double()
    x, core_xy, arguments = make_inputs(2, 2, torch.float64)
    penalties = []
    for each in (block, plain_twin(block)):
        (grad,) = torch.autograd.grad(each(x, *arguments()).sin().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum(), [x, core_xy, *each.parameters()], allow_unused=True))
    for a, b in zip(*penalties, strict=True):
        if b is None:  # a bias outside everything curved
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_per_image_gradients():
    """torch.func and vmap through a fused block: the gradients of one image at a time."""
    block = make_block(init_values=0.3, impl="reference").double()
    x, _, arguments = make_inputs(3, 5, torch.float64)
    C_, core_rope, patch_rope = arguments()
    core_rope = tuple(table[:1].detach() for table in core_rope)
    weights = {name: p.detach() for name, p in block.named_parameters()}

    def loss(weights, image):
        return torch.func.functional_call(block, weights, (image[None], C_, core_rope, patch_rope)).sin().sum()

    mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x.detach())
    for index, image in enumerate(x.detach()):
        for name, gradient in torch.func.grad(loss)(weights, image).items():
            torch.testing.assert_close(mapped[name][index], gradient, rtol=1e-10, atol=1e-10)
