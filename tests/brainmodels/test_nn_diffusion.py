"""Noise, what is predicted, samplers and guidance, against their definitions."""

import pytest
import torch

from brainmodels.errors import BrainDataError
from brainmodels.nn.diffusion import (
    PREDICTIONS,
    SAMPLERS,
    TIMES,
    Levels,
    convert,
    denoise,
    guided,
    levels,
    new_scheduler,
    target,
)


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_scheduler_has_the_fields_that_are_wanted(prediction, latent):
    for sampler in SAMPLERS:
        found = new_scheduler(sampler, prediction, latent).config
        assert found.beta_schedule == "squaredcos_cap_v2"
        assert found.prediction_type == prediction
        assert found.timestep_spacing == "trailing"
        assert found.num_train_timesteps == TIMES
        assert found.rescale_betas_zero_snr == (prediction != "epsilon")
        assert found.thresholding == (not latent)
        assert found.dynamic_thresholding_ratio == 0.99
        assert found.get("clip_sample", not latent) == (not latent)


def test_latents_are_not_limited():
    with pytest.raises(BrainDataError, match="clip_sample=False for latents"):
        new_scheduler("ddim", latent=True, clip_sample=True)
    assert new_scheduler("ddpm", clip_sample=False).config.thresholding is False


@pytest.mark.parametrize(("field", "value"), [("sampler", "euler"), ("prediction", "x0")])
def test_unknown_choices_are_refused(field, value):
    with pytest.raises(BrainDataError, match=value):
        new_scheduler(**{field: value})


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("goal", PREDICTIONS)
def test_predictions_turn_into_each_other(source, goal):
    generator = torch.Generator().manual_seed(0)
    time = torch.tensor([0, 1, 400, 998])
    clean, noise = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    level = levels(new_scheduler("ddim"), time, 3)
    level = Levels(level.signal.double(), (1 - level.signal.double().square()).sqrt())
    noisy = level.signal * clean + level.noise * noise
    found = convert(target(clean, noise, source, level), noisy, level, source, goal)
    torch.testing.assert_close(found, target(clean, noise, goal, level), atol=1e-5, rtol=0)


def test_velocity_is_the_turn_from_clean_to_noise():
    angle = torch.tensor([0.3], dtype=torch.float64)
    clean, noise = torch.tensor([2.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    step = 1e-6
    ahead, behind = [(angle + x).cos() * clean + (angle + x).sin() * noise for x in (step, -step)]
    found = target(clean, noise, "v_prediction", Levels(angle.cos(), angle.sin()))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), atol=1e-8, rtol=0)


def test_levels_are_those_of_the_noise_that_is_added():
    scheduler, time = new_scheduler("ddpm"), torch.tensor([0, 500, 999])
    clean, noise = torch.rand(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    level = levels(scheduler, time, 3)
    torch.testing.assert_close(level.signal * clean + level.noise * noise, scheduler.add_noise(clean, noise, time))
    assert level.signal[-1] == 0  # the last time is noise alone
    assert levels(new_scheduler("ddpm", "epsilon"), time, 3).signal[-1] > 0


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_oracle_gives_the_true_values_with_every_sampler(prediction, sampler, latent):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    scheduler = new_scheduler(sampler, prediction, latent)
    seen = []

    def oracle(noisy, time):
        seen.append(time)
        level = levels(scheduler, torch.tensor([time]), noisy.ndim)
        return convert(truth, noisy, level, "sample", prediction)

    noise = torch.randn(truth.shape, generator=generator)
    found = denoise(scheduler, oracle, noise, 12, generator)
    assert seen[0] == TIMES - 1  # "trailing" begins with noise alone
    assert len(seen) == 12
    # The signal of the first time of "epsilon" is 5e-5, by which an error of single precision is divided.
    torch.testing.assert_close(found, truth, atol=2e-2 if prediction == "epsilon" else 1e-4, rtol=0)


def test_a_second_run_of_a_scheduler_remembers_nothing():
    scheduler = new_scheduler("dpmsolver++")
    noise = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    runs = [denoise(scheduler, lambda x, time: 0.5 * x.tanh(), noise, 6) for _ in range(2)]
    assert torch.equal(*runs)


def test_pixels_stay_in_range_and_latents_need_not():
    noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for latent, largest in ((False, 1.0), (True, 3.0)):
        found = denoise(new_scheduler("ddim", latent=latent), lambda x, time: torch.full_like(x, 3.0), noise, 5)
        torch.testing.assert_close(found, torch.full_like(found, largest))


@pytest.mark.parametrize("steps", [0, 1001])
def test_numbers_of_steps_out_of_range_are_refused(steps):
    with pytest.raises(BrainDataError, match="1 to 1000"):
        denoise(new_scheduler(), lambda x, time: x, torch.zeros(1, 1), steps)


def test_guidance_of_three_fixed_arrays():
    r, a, e = torch.tensor([[1.0, 0.0], [2.0, -1.0], [4.0, 3.0]]).unbind()
    assert guided(r, a, e, 2.0, 0.5).tolist() == [1 + 2 * 1 + 0.5 * 2, 0 + 2 * -1 + 0.5 * 4]
    assert guided(r, a, e, 1.0, 1.0).tolist() == [4.0, 3.0]
    assert guided(r, a, e, 0.0, 0.0).tolist() == [1.0, 0.0]
