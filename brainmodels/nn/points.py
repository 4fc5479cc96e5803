"""A denoiser of point clouds whose points meet in few cores, its losses, and sampling.

    net = PointTransformer(width=64, depth=4, num_heads=4, num_latents=16, cond_width=24)
    loss = points_loss(net, clouds, condition)               # clouds (B, N, 3) of unit variance, condition (B, 24)
    made = sample_points(net, condition, num_points=2048)    # (B, 2048, 3)

Points are the patches of core-periphery attention (VECA, arXiv 2605.12491). Cores are a time token, tokens of the
condition, and learned latents. Each block computes, for cores and points alike,

    x <- x + g1 * attention((1 + s1) * norm(x) + b1)      cores attend to all tokens, points to the cores only
    x <- x + g2 * mlp((1 + s2) * norm(x) + b2)            (b1, s1, g1, b2, s2, g2) = linear(silu(c))

where c is the sum of the embeddings of time and condition. The linear begins at zero (adaLN-zero; DiT, arXiv
2212.09748). Points with a stream of their own that only latents join are the idea of PointInfinity (arXiv 2404.03566).
Its latents go through blocks of their own. Here cores and points share all weights.

The cost is linear in the number of points, which may change after training. The order of points does not matter.

Shapes: B clouds, N points, C cores, W width, K width of the condition.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from veca.model.attention import CoreAttention, Read
from veca.model.block import join
from veca.model.modules import Modules

from ..errors import AxisError, BrainDataError, check_choice, need
from .flow import FlowPath, flow_matching_loss, integrate
from .sit import TimeEmbedding

__all__ = ["OBJECTIVES", "PointTransformer", "points_loss", "sample_points"]

OBJECTIVES = ("flow", "ddpm")
DDPM_STEPS = 1000
_TIMES = 1000.0  # factor of times from 0 to 1, since the frequencies of the embedding run from 1 down
PATH = FlowPath("linear")


class PointTransformer(nn.Module):
    """Transformer from points (B, N, in) of a cloud, a time and a condition to one vector (B, N, out) for each point.

    Args:
        width: Model width W, even and divisible by `num_heads`.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        num_latents: Number of learned latents.
        cond_width: Width K of the condition.
        in_features: Number of values of a point.
        out_features: Number of values that are returned for a point.
        timed: Whether the network depends on a time. One without it makes its answer in one step.
        octaves: Number of frequencies of sines and cosines of each value of a point: pi/4, pi/2, pi, ...
        cond_tokens: Number of cores that are made from the condition.
        mlp_ratio: Hidden width of the MLPs divided by W.

    Attributes:
        grad_checkpointing: Whether to recompute each block in the backward pass instead of keeping its activations.
            Default: False.

    Raises:
        BrainDataError: W is odd or not divisible by the number of heads, or a number is less than 1.
    """

    frequencies: Tensor

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        num_latents: int,
        cond_width: int,
        in_features: int = 3,
        out_features: int = 3,
        timed: bool = True,
        octaves: int = 6,
        cond_tokens: int = 4,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        if width % 2 or width % num_heads:
            raise BrainDataError(f"expected an even width divisible by num_heads={num_heads}, got {width}")
        for name, count in {"num_latents": num_latents, "cond_width": cond_width, "cond_tokens": cond_tokens}.items():
            if count < 1:
                raise BrainDataError(f"expected {name} of at least 1, got {count}")
        self.in_features, self.num_latents, self.cond_width = in_features, num_latents, cond_width
        self.grad_checkpointing = False
        self.register_buffer("frequencies", math.pi / 4 * 2.0 ** torch.arange(octaves), persistent=False)
        self.embed = nn.Linear(in_features * (1 + 2 * octaves), width)
        self.time = TimeEmbedding(width) if timed else None
        self.null = nn.Parameter(torch.zeros(cond_width))
        self.condition = nn.Linear(cond_width, width)
        self.tokens = nn.Linear(cond_width, cond_tokens * width)
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        self.blocks = Modules(_Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, out_features)
        self._initialise()

    def forward(
        self,
        points: Tensor,
        time: Tensor | None = None,
        condition: Tensor | None = None,
        drop: Tensor | None = None,
        num_latents: int | None = None,
        chunk_points: int | None = None,
    ) -> Tensor:
        """Transform the points of each cloud.

        Args:
            points: (B, N, in) Points in any order, about of unit variance.
            time: (B,) Times from 0 to 1. None only for a network without time.
            condition: (B, K) Conditions, about of length 1. None takes the learned null condition for all clouds.
            drop: (B,) bool, clouds whose condition is replaced by the null condition. None drops nothing.
            num_latents: Number of latents to use, the first ones. Default: all.
            chunk_points: Most points that go through a block at a time. Besides W numbers for each point, memory then
                does not grow with N. The result differs only in the order of sums. Default: all.

        Returns:
            (B, N, out).

        Raises:
            AxisError: Points, times, conditions or `drop` have another shape.
            BrainDataError: A time for a network without one, or none for one with it; `num_latents` or `chunk_points`
                out of range.
        """
        signal, cores = self._conditioned(points, time, condition, drop, num_latents)
        if chunk_points is not None and chunk_points < 1:
            raise BrainDataError(f"expected chunk_points of at least 1, got {chunk_points}")
        if chunk_points is None or chunk_points >= points.shape[1]:
            num_cores = cores.shape[1]
            x = torch.cat((cores, self._embedded(points)), 1)  # (B, C + N, W)
            for block in self.blocks:
                x = self._recomputed(block, x, num_cores, signal)
            return self._finished(x[:, num_cores:], signal)
        pieces = [self._embedded(piece) for piece in points.split(chunk_points, 1)]
        for block in self.blocks:
            cores = block.in_pieces(cores, pieces, signal, self._recomputed)
        return torch.cat([self._finished(piece, signal) for piece in pieces], 1)  # (B, N, out)

    def _recomputed(self, function: Callable[..., Any], *inputs: Any) -> Any:
        if self.grad_checkpointing and self.training:
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def _conditioned(
        self,
        points: Tensor,
        time: Tensor | None,
        condition: Tensor | None,
        drop: Tensor | None,
        num_latents: int | None,
    ) -> tuple[Tensor, Tensor]:
        """What modulates the blocks (B, W), and the cores (B, C, W)."""
        if points.ndim != 3 or points.shape[2] != self.in_features:
            raise AxisError(f"expected points (B, N, {self.in_features}), got {tuple(points.shape)}")
        count = self.num_latents if num_latents is None else num_latents
        if not 1 <= count <= self.num_latents:
            raise BrainDataError(f"expected num_latents from 1 to {self.num_latents}, got {count}")
        condition = self._filled(len(points), condition, drop)  # (B, K)
        signal = self.condition(condition)  # (B, W)
        cores = [self.tokens(condition).unflatten(1, (-1, signal.shape[1]))]  # (B, tokens, W)
        if self.time is not None:
            if time is None:
                raise BrainDataError("expected a time for a timed PointTransformer, got None")
            if time.shape != points.shape[:1]:
                raise AxisError(f"expected time ({len(points)},), one for each cloud, got {tuple(time.shape)}")
            at = self.time(_TIMES * time)  # (B, W)
            signal = signal + at
            cores.insert(0, at.unsqueeze(1))
        elif time is not None:
            raise BrainDataError("expected no time for a PointTransformer with timed=False, got one")
        cores.append(self.latents[:count].expand(len(points), -1, -1))
        return nn.functional.silu(signal), torch.cat(cores, 1)

    def _filled(self, batch: int, condition: Tensor | None, drop: Tensor | None) -> Tensor:
        """Conditions (B, K) with the null condition where there is none."""
        null = self.null.expand(batch, -1)
        if condition is None:
            return null
        if condition.shape != null.shape:
            raise AxisError(f"expected condition ({batch}, {self.cond_width}), got {tuple(condition.shape)}")
        if drop is None:
            return condition
        if drop.shape != (batch,) or drop.dtype != torch.bool:
            raise AxisError(f"expected drop ({batch},) of bools, got {tuple(drop.shape)} of {drop.dtype}")
        return torch.where(drop[:, None], null, condition)

    def _embedded(self, points: Tensor) -> Tensor:
        angles = (points.unsqueeze(-1) * self.frequencies).flatten(2)  # (B, N, in * octaves)
        return self.embed(torch.cat((points, angles.sin(), angles.cos()), -1))  # (B, N, W)

    def _finished(self, x: Tensor, signal: Tensor) -> Tensor:
        shift, scale = self.modulation(signal).unsqueeze(1).chunk(2, -1)  # (B, 1, W)
        return self.out(torch.addcmul(shift, self.norm(x), 1 + scale))  # (B, N, out)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in () if self.time is None else self.time.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.condition, self.tokens):  # a condition of length 1 gives numbers of variance 1
            nn.init.normal_(layer.weight)
        for layer in (self.out, self.modulation, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)


class _Block(nn.Module):
    """Residual core-periphery attention and MLP behind norms, both shifted, scaled and gated."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = CoreAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, num_cores: int, signal: Tensor) -> Tensor:
        """Tokens (B, C + N, W), the cores first."""
        by = self._modulations(signal)
        return self._rest(x, self.attn(by.first(self.norm1(x)), num_cores), by)

    def in_pieces(self, cores: Tensor, pieces: list[Tensor], signal: Tensor, call: Callable[..., Any]) -> Tensor:
        """Replace each piece (B, n, W) of the points in its list, and return the cores (B, C, W)."""
        by = self._modulations(signal)
        core_qkv = self.attn.project(by.first(self.norm1(cores)), cores.shape[1])  # (B, C, 3, H, D)
        read: Read | None = None
        for index, piece in enumerate(pieces):
            pieces[index], part = call(self._piece, piece, core_qkv, by)
            read = join(read, part)
        if read is None:
            raise AssertionError("a cloud without points goes through the block as a whole")
        return self._rest(cores, self.attn.output(self.attn.attend_cores(core_qkv, read)), by)

    def _piece(self, piece: Tensor, core_qkv: Tensor, by: "_Modulations") -> tuple[Tensor, Read]:
        """The piece after the block, and what the cores read from it."""
        qkv = self.attn.project(by.first(self.norm1(piece)), 0)  # (B, n, 3, H, D)
        out, read = self.attn.attend_patches(core_qkv, qkv)
        return self._rest(piece, self.attn.output(out), by), read

    def _rest(self, x: Tensor, attended: Tensor, by: "_Modulations") -> Tensor:
        """Add what was attended, then the MLP."""
        x = torch.addcmul(x, by.gate1, attended)
        return torch.addcmul(x, by.gate2, self.mlp(by.second(self.norm2(x))))

    def _modulations(self, signal: Tensor) -> "_Modulations":
        return _Modulations(*self.modulation(signal).unsqueeze(1).chunk(6, -1))


class _Modulations(NamedTuple):
    """Shift, scale and gate (B, 1, W) of both halves of a block."""

    shift1: Tensor
    scale1: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    gate2: Tensor

    def first(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift1, x, 1 + self.scale1)

    def second(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift2, x, 1 + self.scale2)


def points_loss(
    net: PointTransformer,
    clouds: Tensor,
    condition: Tensor,
    objective: str = "flow",
    generator: torch.Generator | None = None,
    dropout: float = 0.1,
    budgets: Sequence[int] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Mean squared error of what a network says about noisy clouds: their velocity ("flow") or their noise ("ddpm").

    Args:
        net: Network with a time, and as many values of a point as `clouds` at either end.
        clouds: (B, N, 3) Clouds, centred and about of unit variance.
        condition: (B, K) Conditions.
        objective: "flow" has the straight path from noise to points (Lipman et al., arXiv 2210.02747). "ddpm" has the
            noise of 1,000 steps, beta from 1e-5 to 8e-3 (Ho et al., arXiv 2006.11239).
        generator: Random generator of times, noise, dropout and budgets, on the device of `clouds`.
        dropout: Probability with which a condition is replaced by the null condition.
        budgets: Numbers of latents, one of which is drawn for the batch; None takes all latents.
        noise: (B, N, 3) Standard normal noise, such as that of `paired_noise`; None draws it independently.

    Returns:
        A scalar.

    Raises:
        AxisError: Shapes do not match.
        BrainDataError: An unknown objective, or a budget out of range.
    """
    check_choice("objective", objective, OBJECTIVES)
    options: dict[str, Any] = {"device": clouds.device, "generator": generator}
    drop = torch.rand(len(clouds), **options) < dropout
    budget = None if budgets is None else budgets[int(torch.randint(len(budgets), (), **options))]

    def field(z: Tensor, time: Tensor) -> Tensor:
        return net(z, time, condition, drop, budget)

    if noise is None:
        noise = torch.randn(clouds.shape, dtype=clouds.dtype, **options)
    if objective == "flow":
        return flow_matching_loss(field, PATH, noise, clouds, generator)
    steps = torch.randint(DDPM_STEPS, (len(clouds),), **options)
    noisy = _scheduler(DDPM_STEPS).add_noise(clouds, noise, steps)
    return (field(noisy, steps / DDPM_STEPS) - noise).square().mean()


@torch.no_grad()
def sample_points(
    net: PointTransformer,
    condition: Tensor,
    num_points: int,
    objective: str = "flow",
    steps: int = 24,
    guidance: float = 1.0,
    generator: torch.Generator | None = None,
    chunk_points: int | None = None,
    num_latents: int | None = None,
) -> Tensor:
    """Draw clouds under conditions.

    Args:
        net: Network that was trained by `points_loss` with the same objective.
        condition: (B, K) Conditions.
        num_points: Number N of points, any.
        objective: "flow" solves from noise to points by Heun's method, with two calls of the network a step. "ddpm"
            takes each of its 1,000 steps with fresh noise, or fewer by DDIM (Song et al., arXiv 2010.02502).
        steps: Number of steps.
        guidance: Weight w in u + w (c - u), where c is the answer under the condition and u that under the null
            condition (Ho and Salimans, arXiv 2207.12598). 1 is the condition alone, 0 the null condition alone.
        generator: Random generator on the device of the network.
        chunk_points, num_latents: As in `PointTransformer.forward`.

    Returns:
        (B, N, 3), in the units of the clouds of the training.

    Raises:
        AxisError: The conditions have another width.
        BrainDataError: Conditions that are not finite, an unknown objective, or numbers out of range.
    """
    check_choice("objective", objective, OBJECTIVES)
    if num_points < 1:
        raise BrainDataError(f"expected num_points of at least 1, got {num_points}")
    if not condition.isfinite().all():
        rows = (~condition.isfinite().all(1)).nonzero().flatten().tolist()
        raise BrainDataError(f"expected finite conditions, got others in rows {rows[:8]}")
    batch = len(condition)
    which = torch.arange(2 * batch, device=condition.device) >= batch  # the second half is without condition

    def field(z: Tensor, time: Tensor) -> Tensor:
        if guidance in (0, 1):
            return net(z, time, condition if guidance else None, None, num_latents, chunk_points)
        both = [torch.cat((x, x)) for x in (z, time, condition)]
        given, free = net(*both, which, num_latents, chunk_points).chunk(2)
        return torch.lerp(free, given, guidance)

    options: dict[str, Any] = {"dtype": condition.dtype, "device": condition.device, "generator": generator}
    noise = torch.randn(batch, num_points, net.in_features, **options)
    if objective == "flow":
        return integrate(field, noise, steps=steps, solver="heun")
    return _denoised(field, noise, steps, generator)


def _denoised(field: Callable[[Tensor, Tensor], Tensor], z: Tensor, steps: int, generator: Any) -> Tensor:
    if not 1 <= steps <= DDPM_STEPS:
        raise BrainDataError(f"expected 1 to {DDPM_STEPS} steps for 'ddpm', got {steps}")
    scheduler = _scheduler(steps)
    for step in scheduler.timesteps.tolist():
        noise = field(z, torch.full((len(z),), step / DDPM_STEPS, device=z.device))
        z = scheduler.step(noise, step, z, generator=generator).prev_sample
    return z


def _scheduler(steps: int) -> Any:
    """The noise of Neuro-3D's released code: DDPM for all steps, DDIM for fewer."""
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ImportError as error:
        raise need("diffusers", "objective='ddpm'") from error
    kind = DDPMScheduler if steps == DDPM_STEPS else DDIMScheduler
    scheduler = kind(DDPM_STEPS, 1e-5, 8e-3, "linear", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler
