"""Paths against finite differences, solvers against an equation whose solution is known."""

import math

import pytest
import torch

from brainmodels.errors import AxisError, BrainDataError
from brainmodels.nn.flow import PATHS, SOLVERS, FlowPath, flow_matching_loss, function_evaluations, integrate

ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}


def pairs(count: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    return *torch.randn(2, count, 3, 4, dtype=torch.float64, generator=generator), generator


@pytest.mark.parametrize("name", PATHS)
def test_path_begins_and_ends_at_its_pair(name):
    z_0, z_1, _ = pairs()
    path = FlowPath(name)
    torch.testing.assert_close(path.point(z_0, z_1, torch.zeros(5).double()), z_0, rtol=0, atol=1e-15)
    torch.testing.assert_close(path.point(z_0, z_1, torch.ones(5).double()), z_1, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative_of_the_point(name):
    z_0, z_1, generator = pairs()
    path, step = FlowPath(name), 1e-5
    time = 0.1 + 0.8 * torch.rand(5, dtype=torch.float64, generator=generator)
    measured = (path.point(z_0, z_1, time + step) - path.point(z_0, z_1, time - step)) / (2 * step)
    torch.testing.assert_close(path.velocity(z_0, z_1, time), measured, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
def test_endpoints_from_point_and_velocity(name):
    z_0, z_1, generator = pairs()
    path = FlowPath(name)
    time = 0.05 + 0.9 * torch.rand(5, dtype=torch.float64, generator=generator)
    found = path.endpoints(path.point(z_0, z_1, time), path.velocity(z_0, z_1, time), time)
    torch.testing.assert_close(found, (z_0, z_1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "det"),
    [("linear", 1.0), ("cos_sin", math.pi / 2), ("cos2_sin2", math.pi / 2 * math.sin(0.3 * math.pi))],
)
def test_determinants_are_those_of_the_table(name, det):
    assert float(FlowPath(name).coefficients(torch.tensor(0.3, dtype=torch.float64)).det) == pytest.approx(det, 1e-14)


@pytest.mark.parametrize("time", [0.0, 1.0])
def test_endpoints_where_the_path_rests_are_refused(time):
    z_0, z_1, _ = pairs()
    with pytest.raises(BrainDataError, match="'cos2_sin2' moves"):
        FlowPath("cos2_sin2").endpoints(z_0, z_1, torch.full((5,), time))


def test_arc_is_longer_than_its_aligned_ends():
    z_0, _, _ = pairs()
    middle = FlowPath("cos_sin").point(z_0, z_0, torch.full((5,), 0.5))
    assert float(middle.norm() / z_0.norm()) == pytest.approx(math.sqrt(2))


def test_paths_refuse_other_names_and_shapes():
    z_0, z_1, _ = pairs()
    with pytest.raises(BrainDataError, match="linear, cos_sin, cos2_sin2, got 'straight'"):
        FlowPath("straight")
    with pytest.raises(AxisError, match=r"times \(B,\)"):
        FlowPath("linear").point(z_0, z_1, torch.zeros(4))
    with pytest.raises(AxisError, match=r"\(5, 3, 4\)"):
        FlowPath("linear").velocity(z_0, z_1[:1], torch.zeros(5))


def test_flow_matching_loss_is_the_mean_over_pairs_and_numbers():
    z_0, z_1, _ = pairs()
    seen = []

    def field(points, time):
        seen.append((points, time))
        return 2 * points + time[:, None, None]

    loss = float(flow_matching_loss(field, FlowPath("cos_sin"), z_0, z_1, torch.Generator().manual_seed(1)))
    (points, time) = seen[0]
    total = 0.0
    for i in range(5):
        angle = math.pi / 2 * float(time[i])
        torch.testing.assert_close(points[i], math.cos(angle) * z_0[i] + math.sin(angle) * z_1[i])
        target = math.pi / 2 * (math.cos(angle) * z_1[i] - math.sin(angle) * z_0[i])
        total += float(((2 * points[i] + time[i] - target) ** 2).sum())
    assert loss == pytest.approx(total / z_0.numel(), rel=1e-12)
    assert time.unique().numel() == 5 and 0 <= time.min() and time.max() <= 1


def spiral(points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """dz/dt = cos(t) R z with R a rotation and growth: z(t) = exp(sin(t) R) z(0)."""
    return time.cos()[:, None] * (points @ R.T)


R = torch.tensor([[0.5, -2.0], [2.0, 0.5]], dtype=torch.float64)
Z = torch.tensor([[1.0, 0.0], [-0.3, 0.7], [2.0, 2.0]], dtype=torch.float64)


def solution(start: float, end: float) -> torch.Tensor:
    return Z @ torch.linalg.matrix_exp((math.sin(end) - math.sin(start)) * R).T


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9)])
@pytest.mark.parametrize("solver", ORDERS)
def test_error_of_a_solver_falls_with_its_order(solver, start, end):
    def error(steps: int) -> float:
        found = integrate(spiral, Z, start=start, end=end, steps=steps, solver=solver)
        return float((found - solution(start, end)).norm())

    orders = [math.log2(error(steps) / error(2 * steps)) for steps in (40, 80)]
    assert orders == pytest.approx([ORDERS[solver]] * 2, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_constant_field_is_exact_and_comes_back(solver):
    velocity = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    there = integrate(lambda z, t: velocity.expand_as(z), Z, steps=3, solver=solver)
    torch.testing.assert_close(there, Z + velocity, rtol=0, atol=1e-15)
    back = integrate(lambda z, t: velocity.expand_as(z), there, start=1, end=0, steps=3, solver=solver)
    torch.testing.assert_close(back, Z, rtol=0, atol=1e-15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_function_evaluations_are_counted(solver):
    calls = []
    integrate(lambda z, t: calls.append(t) or z, Z, steps=7, solver=solver)
    assert len(calls) == function_evaluations(solver, 7)
    assert function_evaluations(solver, 7) == {"euler": 7, "heun_euler_last": 13, "rk4": 28}.get(solver, 14)


def test_last_step_of_heun_may_be_that_of_euler():
    almost = integrate(spiral, Z, start=0, end=0.75, steps=3, solver="heun")
    last = integrate(spiral, almost, start=0.75, end=1, steps=1, solver="euler")
    torch.testing.assert_close(integrate(spiral, Z, steps=4, solver="heun_euler_last"), last, rtol=0, atol=1e-15)


def test_state_is_kept_in_double_and_times_are_not_accumulated():
    # 1000 steps of 0.0001 added to 4096 vanish in fp32, where numbers lie 0.0005 apart there
    start, times = torch.full((2, 3), 4096.0), []

    def field(points, time):
        assert points.dtype == time.dtype == torch.float32
        times.append(float(time[0]))
        return torch.full_like(points, 0.1)

    found = integrate(field, start, steps=1000, solver="euler")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, start + 0.1, rtol=0, atol=3e-4)
    assert times == [float(torch.tensor(step / 1000)) for step in range(1000)]


def test_solvers_refuse_other_names_and_no_steps():
    with pytest.raises(BrainDataError, match="got 'dopri5'"):
        integrate(spiral, Z, solver="dopri5")
    with pytest.raises(BrainDataError, match="at least one step, got 0"):
        integrate(spiral, Z, steps=0)


def test_euler_on_the_line_is_the_scheduler_of_diffusers():
    """Their scheduler walks the line from noise level 1 to 0 as we do from time 1 to 0, with levels in fp32."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    generator = torch.Generator().manual_seed(0)
    mixing, start = (torch.randn(6, 6, dtype=torch.float64, generator=generator) for _ in range(2))

    def field(points, time):
        return torch.tanh(points @ mixing / 2) + time[:, None]

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[1 - step / 20 for step in range(20)])
    points = start
    for timestep, level in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        time = torch.full((len(points),), float(level), dtype=torch.float64)
        points = scheduler.step(field(points, time), timestep, points).prev_sample
    found = integrate(field, start, start=1.0, end=0.0, steps=20, solver="euler")
    torch.testing.assert_close(found, points, rtol=0, atol=1e-5)
    assert (found - start).norm() > 1
