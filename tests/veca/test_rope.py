from types import SimpleNamespace

import pytest
import torch

from veca.model.rope import (
    augment_coordinates,
    interleave_halves,
    patch_coordinates,
    rope_periods,
    rope_tables,
    rotate,
    tables_for,
)

PERIODS_64 = [1, 1.334, 1.778, 2.371, 3.162, 4.217, 5.623, 7.499, 10, 13.34, 17.78, 23.71, 31.62, 42.17]


def rotated(channel, xy=(0.5, -0.25), dtype=torch.float32, **options):
    """The unit vector on `channel` of one token at `xy`, D = 64, after the rotation."""
    x = torch.zeros(1, 1, 1, 64, dtype=dtype)
    x[..., channel] = 1
    return rotate(x, *rope_tables(torch.tensor([xy]), rope_periods(64), **options)).flatten()


def test_periods_golden():
    periods = rope_periods(64)
    torch.testing.assert_close(periods[:14], torch.tensor(PERIODS_64), rtol=4e-4, atol=0)
    assert periods[14:].tolist() == [float("inf")] * 2


@pytest.mark.parametrize(("head_dim", "zero_low", "disabled"), [(32, 0.125, 1), (16, 0.125, 0), (64, 0.0, 0)])
def test_number_of_disabled_pairs_rounds_half_to_even(head_dim, zero_low, disabled):
    assert rope_periods(head_dim, zero_low=zero_low).isinf().sum() == disabled


@pytest.mark.parametrize("channel", [28, 29, 30, 31, 60, 61, 62, 63])
def test_lowest_frequencies_never_turn(channel):
    x = torch.zeros(64)
    x[channel] = 1
    assert torch.equal(rotated(channel, xy=(0.9, -0.7)), x)


@pytest.mark.parametrize(
    ("channel", "expected"),
    [(0, (-1.0, 0.0)), (16, (0.951057, 0.309017)), (32, (0.0, -1.0)), (33, (1.0, 0.0))],
)
def test_layout_golden(channel, expected):
    pair = channel // 2 * 2
    x = torch.zeros(64)
    x[pair : pair + 2] = torch.tensor(expected)
    torch.testing.assert_close(rotated(channel), x, rtol=0, atol=1e-6)


def rotate_half_layout(x, cos, sin):
    """DINOv3's rotation, channel k with k + D/2."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def test_half_layout_differs_and_has_equal_scores_after_the_row_permutation():
    torch.manual_seed(0)
    heads, head_dim, tokens = 2, 16, 5
    weight = torch.randn(3 * heads * head_dim, 8, dtype=torch.float64)
    x = torch.randn(tokens, 8, dtype=torch.float64)
    cos, sin = rope_tables(torch.rand(tokens, 2) * 2 - 1, rope_periods(head_dim))

    def scores(q, k):
        return torch.einsum("ihd,jhd->hij", q, k)

    qkv = (x @ weight.T).unflatten(-1, (3, heads, head_dim))
    q, k, v = qkv.unbind(1)
    half = [rotate_half_layout(y, cos[:, None], sin[:, None]) for y in (q, k)]
    q2, k2, v2 = interleave_halves(qkv).unbind(1)
    ours = [rotate(y[None], cos, sin)[0] for y in (q2, k2)]
    torch.testing.assert_close(scores(*ours), scores(*half), rtol=0, atol=1e-10)
    assert torch.equal(v2, v)
    wrong = [rotate(y[None], cos, sin)[0] for y in (q, k)]
    assert (scores(*wrong) - scores(*half)).abs().max() > 0.1


def test_axis_order():
    at, moved_x = rotated(slice(None)), rotated(slice(None), xy=(0.3, -0.25))
    changed = (at != moved_x).nonzero().flatten()
    assert changed.min() == 0 and changed.max() == 27
    assert torch.equal(rotated(5, xy=(0.3, -0.6), axis_order="yx"), rotated(5, xy=(-0.6, 0.3), axis_order="xy"))
    assert not torch.equal(rotated(5, xy=(0.3, -0.6), axis_order="yx"), rotated(5, xy=(0.3, -0.6)))


def test_patch_coordinates_golden():
    expected = [[-2 / 3, -0.5], [0, -0.5], [2 / 3, -0.5], [-2 / 3, 0.5], [0, 0.5], [2 / 3, 0.5]]
    torch.testing.assert_close(patch_coordinates(2, 3), torch.tensor(expected))
    assert patch_coordinates(16, 16)[0].tolist() == [-0.9375, -0.9375]
    assert patch_coordinates(1, 1).tolist() == [[0, 0]]


def test_transposed_grid_transposes_coordinates():
    transposed = patch_coordinates(3, 2).unflatten(0, (3, 2)).transpose(0, 1).flatten(0, 1).flip(-1)
    assert torch.equal(transposed, patch_coordinates(2, 3))


@pytest.mark.parametrize(
    ("coord_norm", "corner"), [("separate", (-0.75, -0.5)), ("max", (-0.75, -0.25)), ("min", (-1.5, -0.5))]
)
def test_coord_norm(coord_norm, corner):
    xy = patch_coordinates(2, 4, coord_norm).unflatten(0, (2, 4))
    assert xy[0, 0].tolist() == list(corner)
    step_x, step_y = (xy[0, 1, 0] - xy[0, 0, 0]).item(), (xy[1, 0, 1] - xy[0, 0, 1]).item()
    assert (step_x == step_y) == (coord_norm != "separate")


def test_scores_depend_on_differences_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64)
    periods = rope_periods(64)

    def score(at_q, at_k):
        return (rotate(q, *rope_tables(at_q, periods)) * rotate(k, *rope_tables(at_k, periods))).sum()

    at_q, at_k = torch.rand(2, 1, 2, dtype=torch.float64) - 0.5
    shift = torch.tensor([[0.21, -0.37]], dtype=torch.float64)
    torch.testing.assert_close(score(at_q + shift, at_k + shift), score(at_q, at_k), rtol=0, atol=1e-6)
    assert (score(at_q + shift, at_k) - score(at_q, at_k)).abs() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_rounds_once(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 50, 3, 64).to(dtype)
    tables = rope_tables(torch.rand(50, 2) * 2 - 1, rope_periods(64))
    assert torch.equal(rotate(x, *tables), rotate(x.float(), *tables).to(dtype))


def test_rotate_takes_one_table_per_image():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 2, 3, 16)
    tables = rope_tables(torch.rand(2, 5, 2), rope_periods(16))
    alone = torch.cat([rotate(x[i : i + 1], *(table[i] for table in tables)) for i in range(2)])
    assert torch.equal(rotate(x, *tables), alone)
    assert not torch.equal(rotate(x[:1], *(table[1] for table in tables)), alone[:1])


def test_augmentation_shifts_then_scales_within_its_bounds():
    torch.manual_seed(0)
    xy = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    shifts, scales = [], []
    for _ in range(400):
        out = augment_coordinates(xy, shift=0.08, scale=2.0)
        scale = (out[1] - out[0])[0]
        torch.testing.assert_close((out[2] - out[0])[1], scale)  # one factor for both axes
        scales.append(scale)
        shifts.append(out[0] / scale)
    shifts, log_scales = torch.stack(shifts), torch.stack(scales).log2()
    assert shifts.abs().max() <= 0.08 + 1e-6 and shifts.abs().max() > 0.075
    assert log_scales.abs().max() <= 1 + 1e-6 and log_scales.min() < -0.95 and log_scales.max() > 0.95
    assert log_scales.mean().abs() < 0.1 and shifts.mean(0).abs().max() < 0.01
    draws = torch.cat((shifts, log_scales[:, None]), 1)
    assert (torch.corrcoef(draws.T) - torch.eye(3)).abs().max() < 0.15  # independent of each other


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.bfloat16, torch.float16),
        ("cuda", torch.float16, torch.float16),
        ("cuda", torch.float32, torch.float32),
        ("cpu", torch.bfloat16, torch.float32),
    ],
)
def test_tables_are_halved_for_16_bit_attention_on_a_gpu(device, dtype, expected):
    tables = rope_tables(patch_coordinates(3, 5), rope_periods(32))
    x = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert {table.dtype for table in tables_for(tables, x)} == {expected}


def test_autocast_decides_the_precision_of_tables(monkeypatch):
    tables = rope_tables(patch_coordinates(3, 5), rope_periods(32))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert tables_for(tables, x)[0].dtype == torch.float16


def test_half_tables_round_an_eighth_of_what_bf16_rounds():
    cos, sin = rope_tables(patch_coordinates(16, 16), rope_periods(64))
    x = torch.randn(1, 256, 2, 64, generator=torch.Generator().manual_seed(0))
    exact = rotate(x.double(), cos.double(), sin.double())
    with_tables = rotate(x, cos.half(), sin.half()).double()
    rounded = exact.to(torch.bfloat16).double()
    assert (with_tables - exact).norm() <= (rounded - exact).norm() / 4
