"""Partial denoising of latents under two contexts, with noise that depends on the image alone.

    latents = denoise(predict, z, (4, 16), Sampling(strength=0.5), image_seeds(ids, seed=0), device)

The schedule is that of Versatile Diffusion: 1,000 times, beta from .00085 to .012, linear in the square root. DDIM
visits `steps` of them. A latent is noised to the first time that its strength reaches, and denoised from there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from veca.train.batches import draw_seed

from ...errors import BrainDataError, check_choice, need

try:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
except ImportError as error:
    raise need("diffusers", "brainmodels.systems.unibrain") from error

__all__ = ["NOISE_AT", "Sampling", "denoise", "image_seeds", "new_scheduler", "row_generators"]

NOISE_AT = ("first_step", "brain_diffuser")


@dataclass(frozen=True)
class Sampling:
    """Settings of a denoising.

    Attributes:
        image_weight: Weight of the image context, 0 (captions alone guide) to 1 (pictures alone guide).
        strength: Share of the steps that are done, 0 (the latent stays) to 1.
        steps: Number of steps of the whole schedule.
        guidance: Factor of the step from the unconditional to the conditional prediction; 1 is no guidance.
        eta: 0 is DDIM, 1 adds the noise of DDPM.
        noise_at: "first_step" noises to the time of the first step. "brain_diffuser" noises to the time before, as the
            code of that system does.

    Raises:
        BrainDataError: A number is out of its range.
    """

    image_weight: float = 0.6
    strength: float = 0.75
    steps: int = 50
    guidance: float = 7.5
    eta: float = 0.0
    noise_at: str = "first_step"

    def __post_init__(self):
        for name in ("image_weight", "strength", "eta"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                ends = "; 0 is the text context alone, 1 the image context alone" if name == "image_weight" else ""
                raise BrainDataError(f"expected {name} from 0 to 1, got {value}{ends}")
        if not 1 <= self.steps <= 1000:
            raise BrainDataError(f"expected steps from 1 to 1000, got {self.steps}")
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise BrainDataError(f"expected guidance of at least 0, got {self.guidance}")
        check_choice("noise_at", self.noise_at, NOISE_AT)

    @property
    def todo(self) -> int:
        """Number of steps that are done."""
        return int(self.strength * self.steps)


def new_scheduler(steps: int) -> DDIMScheduler:
    """The schedule of Versatile Diffusion with so many DDIM steps: times 981, 961, .., 1 for 50."""
    scheduler = DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    return scheduler


def image_seeds(ids: Sequence[str], seed: int, sample: int = 0) -> list[int]:
    """A seed for each image, which depends on its id, the seed and the number of the sample alone."""
    hashed = (int.from_bytes(sha256(str(name).encode()).digest()[:8], "big") for name in ids)
    return [draw_seed(seed, sample, number) for number in hashed]


def row_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a generator on the CPU for each row, seeded by its seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    z: Tensor | None,
    shape: tuple[int, ...],
    sampling: Sampling,
    seeds: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Noise latents part of the way and denoise them: (n, *shape).

    Args:
        predict: Function (z_t, times (n,)) -> guided noise, shaped as z_t.
        z: (n, *shape) Latents; None starts from noise and does all steps.
        shape: Shape of one latent.
        sampling: Settings.
        seeds: Seed of each row. Noise is drawn on the CPU row by row, so that batches do not matter.
        device: Device of the network.

    Raises:
        FloatingPointError: A step gives NaN or infinity; the message has the step and the row.
    """
    scheduler: Any = new_scheduler(sampling.steps)  # its types are those of other versions of its methods
    generators = row_generators(seeds)
    times, count = scheduler.timesteps, len(seeds)
    start = 0 if z is None else len(times) - sampling.todo
    if z is not None and start == len(times):
        return z
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
    first = max(start - 1, 0) if sampling.noise_at == "brain_diffuser" else start
    x = noise if z is None else scheduler.add_noise(z.to(device), noise, times[first].expand(count))
    for step, time in enumerate(times[start:]):
        guess = predict(x, time.expand(count).to(device))
        fresh = None
        if sampling.eta:
            fresh = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
        x = scheduler.step(guess, int(time), x, eta=sampling.eta, variance_noise=fresh).prev_sample
        bad = ~x.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise FloatingPointError(
                f"expected finite latents, got others in step {step} (time {int(time)}), row {int(bad.int().argmax())}"
            )
    return x
