import math
from collections import Counter

import pytest
import torch

from veca.train import ResolutionSchedule, paper_stage1, paper_stage2, warmup_cosine
from veca.train.losses import cross_entropy, distillation_terms
from veca.train.schedules import lr_factor


def test_learning_rate_ends_and_middle():
    def lr(step):
        return warmup_cosine(step, steps=1001, warmup_steps=100, lr_max=4e-4, lr_min=5e-5)

    assert lr(0) == pytest.approx(5e-5) and lr(100) == pytest.approx(4e-4) and lr(1000) == pytest.approx(5e-5)
    assert lr(50) == pytest.approx(2.25e-4) and lr(550) == pytest.approx(2.25e-4)
    assert lr(325) == pytest.approx(5e-5 + 3.5e-4 * (1 + math.sqrt(0.5)) / 2)
    assert warmup_cosine(0, 10, 0, 1.0, 0.1) == 1.0


def test_factors_are_those_of_torch_s_schedulers():
    def torch_s(make, steps):
        optimizer = torch.optim.SGD([torch.zeros(())], lr=1.0)
        scheduler, found = make(optimizer), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    makers = {
        "constant": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        "one_cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, 20, cycle_momentum=False),
    }
    for schedule, make in makers.items():
        assert [lr_factor(schedule, step, 20) for step in range(20)] == pytest.approx(torch_s(make, 20))
    assert max(lr_factor("one_cycle", step, 20) for step in range(20)) == 1.0
    rising = [lr_factor("constant", step, 20, warmup=4) for step in range(6)]
    assert rising == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert lr_factor("cosine", 1, 20, warmup=4) == pytest.approx(0.5 * lr_factor("cosine", 1, 20))


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps from 0 to 10, the steps, got 11"):
        warmup_cosine(0, 10, 11, 1.0, 0.1)


def test_resolutions_of_the_second_stage():
    schedule = paper_stage2().resolution_schedule()
    early = Counter(schedule(step) for step in range(7000))
    late = Counter(schedule(step) for step in range(7000, 14000))
    for size, share in {256: 0.35, 384: 0.35, 512: 0.30}.items():
        assert early[size] / 7000 == pytest.approx(share, abs=0.02)
    for size, share in {256: 0.15, 384: 0.25, 512: 0.30, 768: 0.30}.items():
        assert late[size] / 7000 == pytest.approx(share, abs=0.02)
    assert early[768] == 0 and schedule(9000) == paper_stage2().resolution_schedule()(9000)


def test_stage_one_has_the_paper_s_epochs():
    recipe = paper_stage1(num_images=768_000)
    assert (recipe.steps, recipe.warmup_steps) == (135_000, 25_000)
    assert {paper_stage1().resolution_schedule()(step) for step in range(20)} == {256}


def test_resolution_phases_are_checked():
    with pytest.raises(ValueError, match=r"start with step 0 and ascend, got starts \[5\]"):
        ResolutionSchedule(((5, (64,), (1.0,)),))
    with pytest.raises(ValueError, match="a probability a size, with sum 1, from step 0"):
        ResolutionSchedule(((0, (64, 96), (0.5, 0.4)),))


def test_distillation_golden():
    """By hand: cos = 0.6; patches cos = 1 and -1; squared differences 1 and 4 over four numbers."""
    terms = distillation_terms(
        torch.tensor([[3.0, 4.0]]),
        torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
        torch.tensor([[2.0, 0.0]]),
        torch.tensor([[[2.0, 0.0], [0.0, -1.0]]]),
        patch_weight=2.0,
        mse_weight=3.0,
    )
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"global": 0.4, "patch": 2 * 1.0, "mse": 2 * 3 * 5 / 4}
    )


def test_identical_features_cost_nothing():
    g, f = torch.randn(3, 8), torch.randn(3, 5, 8)
    assert all(term.abs() < 1e-6 for term in distillation_terms(g, f, g, f).values())


def test_losses_are_fp32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    g, f, g_t, f_t = (torch.randn(2, *shape, 8, generator=generator) for shape in ((), (5,), (), (5,)))
    exact = distillation_terms(g, f, g_t, f_t)
    logits, labels = torch.randn(2, 5, 8, generator=generator), torch.randint(8, (2, 5), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distillation_terms(g, f, g_t, f_t)
        entropy = cross_entropy(logits, labels)
        half = distillation_terms(g.bfloat16(), f.bfloat16(), g_t, f_t)
    assert all(torch.equal(inside[name], exact[name]) for name in exact)
    assert torch.equal(entropy, cross_entropy(logits, labels))
    assert all(term.dtype == torch.float32 for term in half.values())


def test_cross_entropy_leaves_out_what_has_no_label():
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, 5.0]]])
    assert cross_entropy(logits, torch.tensor([[1, -100]])).item() == pytest.approx(-math.log(0.75))


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"patches of student and teacher in one shape, got \(1, 4, 8\) and \(1, 9"):
        distillation_terms(torch.zeros(1, 8), torch.zeros(1, 4, 8), torch.zeros(1, 8), torch.zeros(1, 9, 8))
