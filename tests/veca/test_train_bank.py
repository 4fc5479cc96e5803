import pytest
import torch

from veca import VECA
from veca.train import BudgetSampler, ElasticOptimizer, RowSlices

KINDS = ("adamw", "sgd", "normuon")


def tiny(num_cores=24):
    torch.manual_seed(0)
    return VECA(embed_dim=16, depth=2, num_heads=1, num_cores=num_cores, trained_budgets=range(1, 25))


def backward(model, num_cores, seed):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    record = model.forward_features(images, num_cores)
    (record.global_token.square().sum() + record.patches.square().sum()).backward()


def snapshot(model, optimizer):
    bank = {name: p.detach().clone() for name, p in model.core_bank.named_parameters()}
    return bank, {name: value.clone() for name, value in optimizer.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", ["default", "paper"])
def test_inactive_rows_and_their_state_stay_bit_identical(kind, decay):
    """With warm momentum and decay, steps at 8 and 16 of 24 cores leave the others as full steps made them."""
    model = tiny()
    optimizer = ElasticOptimizer(model, kind, lr=1e-2, weight_decay=0.3, decay=decay)
    for step, budget in enumerate((24, 24, 24, 8, 16, 8, 16)):
        backward(model, budget, step)
        before_bank, before = snapshot(model, optimizer)
        optimizer.step(budget)
        optimizer.zero_grad()
        bank, after = snapshot(model, optimizer)
        for name in ("tokens", "raw_xy"):
            assert torch.equal(bank[name][budget:], before_bank[name][budget:])
            moved = (bank[name][:budget] != before_bank[name][:budget]).any(-1)
            assert moved.all() if name == "tokens" else moved.any()
            for start in range(0, 24, 8):
                keys = [key for key in after if key.startswith(f"core_bank.{name}[{start}:{start + 8}].")]
                assert keys
                same = all(key in before and torch.equal(after[key], before[key]) for key in keys)
                assert same == (start >= budget)


def test_a_plain_optimiser_does_move_them():
    """What the slices are for: zero gradients, momentum and decay move rows that took no part."""
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)
    for step, budget in enumerate((24, 8)):
        before = model.core_bank.tokens.detach().clone()
        optimizer.zero_grad()
        backward(model, budget, step)
        optimizer.step()
    assert (model.core_bank.tokens[8:] != before[8:]).all()


def adamw_by_hand(rows, gradients, lr=1e-2, decay=0.3):
    """Textbook AdamW in fp64, for rows that are present in the steps whose gradient is not None."""
    rows = rows.double().clone()
    first, second, count = torch.zeros_like(rows), torch.zeros_like(rows), 0
    for gradient in gradients:
        if gradient is None:
            continue
        gradient, count = gradient.double(), count + 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        rows = rows - lr * decay * rows
        rows = rows - lr * (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    return rows


def test_a_row_counts_the_steps_it_took_part_in():
    model = tiny()
    optimizer = ElasticOptimizer(model, lr=1e-2, weight_decay=0.3, decay="paper")
    start = model.core_bank.tokens.detach().clone()
    budgets, gradients = (24, 8, 16, 8, 24, 16), []
    for step, budget in enumerate(budgets):
        backward(model, budget, step)
        gradients.append(model.core_bank.tokens.grad.clone())
        optimizer.step(budget)
        optimizer.zero_grad()
    close = {"rtol": 1e-5, "atol": 1e-6}
    for first in (0, 8, 16):
        rows = slice(first, first + 8)
        seen = [g[rows] if budget > first else None for g, budget in zip(gradients, budgets, strict=True)]
        torch.testing.assert_close(model.core_bank.tokens[rows].double(), adamw_by_hand(start[rows], seen), **close)


def test_any_budget_with_single_rows():
    model = tiny(6)
    optimizer = ElasticOptimizer(model, lr=1e-2, weight_decay=0.3, edges=BudgetSampler(6, "any").edges)
    for step, budget in enumerate((6, 5, 1, 3)):
        before = model.core_bank.tokens.detach().clone()
        backward(model, budget, step)
        optimizer.step(budget)
        optimizer.zero_grad()
        assert torch.equal(model.core_bank.tokens[budget:], before[budget:])
        assert (model.core_bank.tokens[:budget] != before[:budget]).any(-1).all()


def test_the_bank_stays_one_parameter_that_everyone_sees():
    model = tiny()
    names = set(model.state_dict())
    optimizer = ElasticOptimizer(model)
    assert set(model.state_dict()) == names and model.core_bank.tokens.shape == (24, 16)
    model.load_state_dict({name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()})
    assert all((rows == 0.5).all() for slices in optimizer.slices for rows in slices.slices)


def test_a_frozen_bank_stays_whole_and_still():
    model = tiny()
    model.core_bank.requires_grad_(False)
    optimizer = ElasticOptimizer(model, weight_decay=0.3)
    before = model.core_bank.tokens.clone()
    backward(model, 8, 0)
    optimizer.step(8)
    assert torch.equal(model.core_bank.tokens, before) and not optimizer.slices


def test_mistakes_are_named():
    model = tiny()
    with pytest.raises(ValueError, match=r"ascending edges from 0 to 24 rows of tokens, got \(0, 8\)"):
        RowSlices("tokens", model.core_bank.tokens, (0, 8))
    optimizer = ElasticOptimizer(model)
    backward(model, 13, 0)
    with pytest.raises(ValueError, match=r"among the edges \(0, 8, 16, 24\), got 13"):
        optimizer.step(13)
    model.core_bank.tokens.data = model.core_bank.tokens.data.clone()
    with pytest.raises(RuntimeError, match=r"core_bank.tokens has moved since the optimiser was built"):
        optimizer.step(8)
