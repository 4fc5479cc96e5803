import numpy as np
import pytest
import timm
import torch
from torch import nn

from veca import VECA
from veca.train import ElasticOptimizer, NorMuon, normuon, parameter_groups
from veca.train.normuon import orthogonalize


def tiny():
    torch.manual_seed(0)
    return VECA(embed_dim=16, depth=2, num_heads=1, num_cores=16, output_dim=12, num_classes=3)


def decays(module, **options):
    groups = parameter_groups(module, 0.1, **options)
    return {name: group["weight_decay"] for group in groups for name in group["names"]}


def test_groups_default_and_paper():
    model = nn.ModuleDict({"backbone": tiny(), "head": nn.Linear(12, 3)})
    by_name = decays(model)
    assert set(by_name) == set(dict(model.named_parameters()))
    exempt = {name for name, decay in by_name.items() if decay == 0}
    one_dimensional = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert exempt == one_dimensional | {"backbone.core_bank.tokens", "backbone.core_bank.raw_xy"}
    assert "backbone.core_steps.0.alpha" in exempt
    assert set(decays(model, decay="paper").values()) == {0.1}


def test_what_muon_takes():
    groups = parameter_groups(tiny(), 0.1, muon=True)
    muon = {name: group["splits"] for group in groups if group["muon"] for name in group["names"]}
    assert muon == {
        "blocks.0.attn.qkv.weight": 3,
        "blocks.0.attn.proj.weight": 1,
        "blocks.0.mlp.fc1.weight": 1,
        "blocks.0.mlp.fc2.weight": 1,
        "blocks.1.attn.qkv.weight": 3,
        "blocks.1.attn.proj.weight": 1,
        "blocks.1.mlp.fc1.weight": 1,
        "output.weight": 1,
    }


def test_muon_takes_the_same_of_a_vit():
    vit = timm.create_model("vit_tiny_patch16_224", depth=2)
    groups = parameter_groups(vit, 0.1, muon=True)
    muon = {name: group["splits"] for group in groups if group["muon"] for name in group["names"]}
    blocks = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}
    wanted = {f"blocks.{block}.{name}.weight": splits for block in (0, 1) for name, splits in blocks.items()}
    del wanted["blocks.1.mlp.fc2.weight"]
    assert muon == wanted


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40), (3, 8, 20)])
def test_orthogonalize_is_near_the_polar_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    out = orthogonalize(matrix, torch.float64)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.75 and values.max() < 1.25
    cosine = (out * (u @ vh)).sum((-2, -1)) / (out.norm(dim=(-2, -1)) * (u @ vh).norm(dim=(-2, -1)))
    assert cosine.min() > 0.98
    torch.testing.assert_close(orthogonalize(matrix, torch.bfloat16).double(), out, rtol=0, atol=0.15)
    assert orthogonalize(matrix).dtype == torch.float32  # on a CPU, where products in bf16 take up to 14 times as long
    torch.testing.assert_close(orthogonalize(matrix).double(), out, rtol=0, atol=1e-4)


def best_quintic(low, high):
    """The odd polynomial of degree five that is nearest to 1 on [low, high], by exchange of the four extremes."""
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(40):
        rows = [[x, x**3, x**5, sign] for x, sign in ((low, 1), (q, -1), (r, 1), (high, -1))]
        a, b, c, _ = np.linalg.solve(rows, np.ones(4))
        q, r = np.sqrt((-3 * b + np.array([-1, 1]) * np.sqrt(9 * b * b - 20 * a * c)) / (10 * c))
    return np.array((a, b, c))


def test_polynomials_are_those_of_the_published_recursion():
    """arXiv 2505.16932, cushion 0.02, from singular values of 0.001. The last one leaves no margin for rounding."""
    low, high, powers = 1e-3, 1.0, np.array((1, 3, 5))
    for index, polynomial in enumerate(normuon._POLYNOMIALS):
        wanted = best_quintic(max(low, 0.02 * high), high)
        if low < 0.02 * high:
            wanted = wanted * 2 / (wanted @ low**powers + wanted @ high**powers)
        wanted = wanted / 1.01**powers if index < 4 else wanted
        np.testing.assert_allclose(polynomial, wanted, rtol=0, atol=2e-6)
        low = wanted @ low**powers
        high = 2 - low


def normuon_by_hand(weight, gradients, lr, decay):
    """The formulas of the module, in fp64, with the exact polar factor."""
    weight, momentum, second = weight.double(), 0.0, 0.0
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient.double()
        u, _, vh = torch.linalg.svd(0.05 * gradient.double() + 0.95 * momentum, full_matrices=False)
        update = u @ vh
        second = 0.95 * second + 0.05 * update.square().mean(1, keepdim=True)
        update = update / second.sqrt()
        update = 0.2 * update / update.square().mean().sqrt()
        weight = weight - lr * (update + decay * weight * (update * weight > 0))
    return weight


def test_normuon_follows_its_definition():
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(12, 20, generator=generator)
    gradients = [torch.randn(12, 20, generator=generator) for _ in range(4)]
    weight = nn.Parameter(start.clone())
    optimizer = NorMuon([weight], lr=0.1, weight_decay=0.5)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    moved, wanted = weight.detach().double() - start, normuon_by_hand(start, gradients, 0.1, 0.5) - start
    assert (moved - wanted).norm() < 0.15 * wanted.norm()


def test_an_update_has_the_size_of_adamw_and_rows_of_one_size():
    weight = nn.Parameter(torch.zeros(12, 20))
    weight.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 3, 12)[:, None]
    NorMuon([weight], lr=0.5).step()
    rows = weight.detach().square().mean(1).sqrt() / 0.5
    torch.testing.assert_close(rows, torch.full((12,), 0.2), rtol=1e-3, atol=0)


def test_decay_reaches_only_weights_that_the_update_shrinks():
    start = torch.randn(8, 8, generator=torch.Generator().manual_seed(4))
    moved = []
    for decay in (0.0, 0.5):
        weight = nn.Parameter(start.clone())
        weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
        NorMuon([weight], lr=0.1, weight_decay=decay).step()
        moved.append(weight.detach() - start)
    shrinks = moved[0] * start < 0
    torch.testing.assert_close(moved[1] - moved[0], torch.where(shrinks, -0.05 * start, 0.0))


def test_fused_qkv_is_three_matrices():
    generator = torch.Generator().manual_seed(6)
    gradient = torch.randn(24, 8, generator=generator)
    fused = nn.Parameter(torch.zeros(24, 8))
    fused.grad = gradient
    NorMuon([{"params": [fused], "splits": 3}], lr=1.0).step()
    for index, part in enumerate(gradient.chunk(3)):
        single = nn.Parameter(torch.zeros(8, 8))
        single.grad = part.clone()
        NorMuon([single], lr=1.0).step()
        torch.testing.assert_close(fused.detach().chunk(3)[index], single.detach(), rtol=0.02, atol=0.01)
    whole = nn.Parameter(torch.zeros(24, 8))
    whole.grad = gradient
    NorMuon([whole], lr=1.0).step()
    assert (whole - fused).norm() > 0.1 * fused.norm()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "normuon"])
def test_state_goes_out_and_in(kind):
    """Two more steps after a round trip through the state dict end in the same bits."""

    def steps(model, optimizer, numbers):
        for number in numbers:
            images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(number))
            model(images, 8 if number % 2 else 16).square().sum().backward()
            optimizer.step(8 if number % 2 else 16)
            optimizer.zero_grad()

    straight = tiny()
    optimizer = ElasticOptimizer(straight, kind, lr=1e-2)
    steps(straight, optimizer, range(3))
    copy = tiny()
    copy.load_state_dict(straight.state_dict())
    resumed = ElasticOptimizer(copy, kind, lr=1e-2)
    resumed.load_state_dict({name: value.clone() for name, value in optimizer.state_dict().items()})
    steps(straight, optimizer, range(3, 5))
    steps(copy, resumed, range(3, 5))
    for a, b in zip(straight.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="kind to be one of adamw, sgd, normuon, got 'lion'"):
        ElasticOptimizer(tiny(), "lion")
    with pytest.raises(ValueError, match="decay to be one of default, paper, got 'none'"):
        ElasticOptimizer(tiny(), decay="none")
    with pytest.raises(ValueError, match="a module that holds a VECA or a ViT of timm for 'normuon', got none"):
        ElasticOptimizer(nn.Linear(3, 3), "normuon")
    with pytest.raises(ValueError, match=r"matrices of 3 n rows, got a parameter \(8, 8\)"):
        NorMuon([{"params": [nn.Parameter(torch.zeros(8, 8))], "splits": 3}])
    with pytest.raises(ValueError, match=r"the state of this optimizer's parameters, got one of other"):
        ElasticOptimizer(tiny()).load_state_dict({"other.exp_avg": torch.zeros(1)})
