from collections import Counter

import pytest

from veca.train import BudgetSampler


def test_probabilities_are_those_of_the_paper():
    sampler = BudgetSampler()
    assert sampler.budgets == (8, 16, 24, 32, 40, 48, 56, 64)
    assert sampler.probabilities == pytest.approx((0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2))
    assert sampler.edges == (0, 8, 16, 24, 32, 40, 48, 56, 64)


def test_long_run_frequencies_and_mean():
    drawn = [budgets[0] for budgets in map(BudgetSampler(), range(8000))]
    counts = Counter(drawn)
    for budget, share in zip(range(8, 65, 8), (0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2), strict=True):
        assert counts[budget] / 8000 == pytest.approx(share, abs=0.015)
    assert sum(drawn) / 8000 == pytest.approx(44, abs=0.6)


def test_a_step_needs_no_history():
    """Another rank, or a run that resumes, asks for a step that it has not come to by itself."""
    whole = [BudgetSampler(seed=3)(step) for step in range(50)]
    assert [BudgetSampler(seed=3)(step) for step in range(20, 50)] == whole[20:]
    assert [BudgetSampler(seed=4)(step) for step in range(50)] != whole


def test_uniform_and_any():
    counts = Counter(BudgetSampler(kind="uniform")(step)[0] for step in range(4000))
    assert set(counts) == set(range(8, 65, 8)) and max(counts.values()) < 1.3 * min(counts.values())
    counts = Counter(BudgetSampler(20, kind="any")(step)[0] for step in range(4000))
    assert set(counts) == set(range(1, 21)) and max(counts.values()) < 1.6 * min(counts.values())


def test_several_budgets_a_step():
    sampler = BudgetSampler(per_step=3)
    for step in range(200):
        budgets = sampler(step)
        assert len(budgets) == 3 and list(budgets) == sorted(set(budgets))
    assert BudgetSampler(kind="sandwich")(7) == (8, 64) and BudgetSampler(kind="sandwich").edges == (0, 8, 64)
    assert BudgetSampler(8, kind="sandwich")(7) == (8,)
    assert BudgetSampler(kind="full")(7) == (64,)


def test_banks_of_other_sizes():
    assert BudgetSampler(20).budgets == (8, 16, 20) and BudgetSampler(5).budgets == (5,)
    assert BudgetSampler(24).probabilities == pytest.approx((0.25, 0.25, 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "random"}, "kind to be one of weighted, uniform, any, sandwich, full, got 'random'"),
        ({"num_cores": 0}, "num_cores of at least 1, got 0"),
        ({"per_step": 9}, "per_step from 1 to 8, the budgets, got 9"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BudgetSampler(**options)
