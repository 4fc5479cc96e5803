"""Denoising diffusion by diffusers' schedulers: what is predicted, how noise is removed, and nested guidance.

    scheduler = new_scheduler("ddim", prediction="sample")
    noisy = scheduler.add_noise(clean, noise, time)
    value = target(clean, noise, "sample", levels(scheduler, time, clean.ndim))
    made = denoise(scheduler, predict, noise, steps=20)

With the signal a and the noise level s of a time, a^2 + s^2 = 1, a noisy x, its clean z and its noise n are

    x = a z + s n        v = a n - s z        z = a x - s v        n = s x + a v

A network predicts z ("sample"), v ("v_prediction") or n ("epsilon").
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import BrainDataError, check_choice, need

__all__ = [
    "PREDICTIONS",
    "SAMPLERS",
    "TIMES",
    "Levels",
    "convert",
    "denoise",
    "guided",
    "levels",
    "new_scheduler",
    "target",
]

PREDICTIONS = ("sample", "v_prediction", "epsilon")
SAMPLERS = ("ddpm", "ddim", "dpmsolver++")
TIMES = 1000  # number of noise levels in training


class Levels(NamedTuple):
    """Signal a and noise s of some times, with axes that broadcast against the values."""

    signal: Tensor
    noise: Tensor


def new_scheduler(
    sampler: str = "ddim", prediction: str = "sample", latent: bool = False, clip_sample: bool | None = None
) -> Any:
    """A scheduler of diffusers with cosine noise, every field of which is set.

    Its steps are spaced from the last time on, at which nothing of the signal is left. "epsilon" is the exception. A
    noise alone does not say what the signal was, so its last time keeps a trace of the signal.

    Args:
        sampler: "ddpm", "ddim" without new noise, or "dpmsolver++" of second order.
        prediction: What the network predicts: "sample", "v_prediction" or "epsilon".
        latent: Whether the data are latents, whose range is not known. Pixels lie in [-1, 1].
        clip_sample: Whether estimates are limited to [-1, 1]. Default: for pixels.

    Raises:
        BrainDataError: An unknown choice, or `clip_sample` for latents.
        ImportError: diffusers is not installed.
    """
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("prediction", prediction, PREDICTIONS)
    clip = not latent if clip_sample is None else clip_sample
    if latent and clip:
        raise BrainDataError("expected clip_sample=False for latents, which do not lie in [-1, 1], got True")
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    except ImportError as error:
        raise need("diffusers", "denoising") from error
    common: dict[str, Any] = {
        "num_train_timesteps": TIMES,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": prediction != "epsilon",
        "steps_offset": 0,
        "thresholding": clip,
        "dynamic_thresholding_ratio": 0.99,
        "sample_max_value": 1.0,
    }
    clipping = {"clip_sample": clip, "clip_sample_range": 1.0}
    if sampler == "ddpm":
        return DDPMScheduler(**common, **clipping, variance_type="fixed_small")
    if sampler == "ddim":
        return DDIMScheduler(**common, **clipping, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler(
        **common, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
    )


def levels(scheduler: Any, time: Tensor, ndim: int) -> Levels:
    """Signal and noise of times (B,), with shape (B, 1, ...) of `ndim` axes."""
    kept = scheduler.alphas_cumprod.to(time.device)[time].reshape(-1, *(1,) * (ndim - 1))
    return Levels(kept.sqrt(), (1 - kept).sqrt())


def target(clean: Tensor, noise: Tensor, prediction: str, level: Levels) -> Tensor:
    """What a network should predict."""
    check_choice("prediction", prediction, PREDICTIONS)
    if prediction == "sample":
        return clean
    return noise if prediction == "epsilon" else level.signal * noise - level.noise * clean


def convert(value: Tensor, noisy: Tensor, level: Levels, source: str, goal: str) -> Tensor:
    """Turn one prediction into another; from "epsilon" it needs a signal, and from "sample" a noise, above zero.

    Args:
        value: What was predicted, of the kind `source`.
        noisy: The noisy values.
        level: Their levels.
        source, goal: "sample", "v_prediction" or "epsilon".
    """
    check_choice("prediction", source, PREDICTIONS)
    check_choice("prediction", goal, PREDICTIONS)
    if source == goal:
        return value
    signal, noise = level
    if source == "sample":
        velocity = (signal * noisy - value) / noise
    else:
        velocity = value if source == "v_prediction" else (value - noise * noisy) / signal
    if goal == "sample":
        return signal * noisy - noise * velocity
    return velocity if goal == "v_prediction" else noise * noisy + signal * velocity


def guided(reference: Tensor, with_audio: Tensor, with_all: Tensor, audio_scale: float, emotion_scale: float) -> Tensor:
    """Nested guidance, p(r) + s_a [p(r, a) - p(r)] + s_e [p(r, a, e) - p(r, a)].

    Args:
        reference: Prediction p(r) from the reference alone.
        with_audio: Prediction p(r, a) from reference and audio.
        with_all: Prediction p(r, a, e) from reference, audio and expression.
        audio_scale, emotion_scale: The weights s_a and s_e. 1 and 1 give `with_all`.
    """
    return reference + audio_scale * (with_audio - reference) + emotion_scale * (with_all - with_audio)


def denoise(
    scheduler: Any,
    predict: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Remove the noise in some steps.

    Args:
        scheduler: From `new_scheduler`. Its times and its memory of earlier steps are set anew.
        predict: Returns the prediction for noisy values and a time, in fp32.
        noise: Standard normal noise, fp32.
        steps: Number of steps, 1 to 1,000.
        generator: Random generator of the noise that "ddpm" adds; a CPU one gives the same on every device.

    Raises:
        BrainDataError: `steps` out of range.
    """
    if not 1 <= steps <= TIMES:
        raise BrainDataError(f"expected 1 to {TIMES} steps, got {steps}")
    scheduler.set_timesteps(steps)
    known: dict[str, Any] = {"generator": generator}
    if type(scheduler).__name__ == "DDIMScheduler":  # else its noise is that of an estimate without limits
        known["use_clipped_model_output"] = True
    x = noise
    for time in scheduler.timesteps.tolist():
        x = scheduler.step(predict(x, time), time, x, **known).prev_sample
    return x
