"""NeuroFlow's networks: a VAE whose latents are shaped as image tokens, and a flow between the two.

    encode: image tokens --flow, time 0 to 1--> latents --NeuroVAE decoder--> responses
    decode: responses --NeuroVAE encoder, mean--> latents --flow, time 1 to 0--> image tokens

Shapes: B batch, V voxels of a subject, m tokens, d their width, C channels, L = d * 2^num_down.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ...errors import AxisError, BrainDataError, check_choice, near_names
from ...nn.flow import FlowPath, function_evaluations, integrate
from ...nn.gaussian import Posterior
from ...nn.sit import SiT
from ...nn.stack1d import DownStack1d, UpStack1d, group_norm
from .recipes import FlowSize, VAESize

__all__ = ["XFM", "Encoding", "NeuroVAE", "RoundTrip", "decode", "encode", "project_stem", "round_trip"]


@dataclass(frozen=True)
class Encoding:
    """Outputs of the encoder of a NeuroVAE.

    Attributes:
        posterior: Gaussian posterior of the latents (B, m, d).
        retrieval: Output of the retrieval head (B, m, d), or None where the model has none.
    """

    posterior: Posterior
    retrieval: Tensor | None


class NeuroVAE(nn.Module):
    """Responses (B, V) to Gaussian latents (B, m, d), and latents through one compact token (B, 1, d) to responses.

    The tokens are the channels of convolutions along the width. Only two linears depend on V, one at either end; there
    is a pair of them for each subject, and all else is shared. With m = 256, d = 1664 and one subject of V = 15,724:
    51.43 M parameters, 59.76 M with the retrieval head.

    Args:
        num_tokens: m.
        token_width: d.
        size: all other sizes.
        voxels: V by subject; more come by `add_subject`.

    Attributes:
        checkpointing: compute the output stage, whose tensors are (B, C, V), again in the backward pass. False.

    Raises:
        BrainDataError: sizes that do not fit together, or no subject.
    """

    def __init__(self, num_tokens: int, token_width: int, size: VAESize, voxels: Mapping[str, int]):
        super().__init__()
        first, last = size.channels[0], size.channels[-1]
        if last != num_tokens and not size.token_projection:
            raise BrainDataError(
                f"expected the last of channels={size.channels} to be num_tokens={num_tokens}, got {last}; "
                "change channels or set token_projection=True"
            )
        if not voxels:
            raise BrainDataError("expected the number of voxels of at least one subject, got none")
        length = token_width * 2**size.num_down
        self.num_tokens, self.token_width, self.hidden = num_tokens, token_width, size.hidden
        self.checkpointing = False
        self.voxels_in, self.voxels_out = nn.ModuleDict(), nn.ModuleDict()
        for subject, count in voxels.items():
            self.add_subject(subject, count)

        self.stem = nn.Conv1d(1, first, 1)
        self.expand = nn.Sequential(nn.LayerNorm(size.hidden), nn.GELU(), nn.Linear(size.hidden, length))
        self.down = DownStack1d(first, size.channels, size.blocks, size.num_down)
        self.to_tokens = nn.Conv1d(last, num_tokens, 1) if size.token_projection else nn.Identity()
        self.posterior = nn.Conv1d(num_tokens, 2 * num_tokens, 1)
        self.retrieval = _retrieval_head(token_width) if size.retrieval_head else None

        self.compact = nn.Conv1d(num_tokens, 1, 1)
        self.from_compact = nn.Conv1d(1, last, 1)
        self.up = UpStack1d(size.channels, size.blocks + 1, size.num_down)
        self.shrink = nn.Sequential(nn.Linear(length, size.hidden), nn.LayerNorm(size.hidden), nn.GELU())
        self.out = nn.Sequential(group_norm(first), nn.SiLU(), nn.Conv1d(first, 1, 1))

    @property
    def voxels(self) -> dict[str, int]:
        """V by subject."""
        return {subject: self._projection(subject).in_features for subject in self.voxels_in}

    def _projection(self, subject: str) -> nn.Linear:
        return cast(nn.Linear, self.voxels_in[subject])

    def add_subject(self, subject: str, num_voxels: int) -> None:
        """New, random projections for a subject with V voxels, on the device and in the dtype of the others.

        Raises:
            BrainDataError: the subject is there already, V is less than 1, or the subject cannot name weights: it is
                empty, has a dot, or is an attribute of modules such as "keys".
        """
        if subject in self.voxels_in:
            raise BrainDataError(f"expected a new subject beside {', '.join(self.voxels_in)}, got {subject!r} again")
        if not subject or "." in subject or hasattr(self.voxels_in, subject):
            raise BrainDataError(f"expected a subject name that can name weights, such as 'subj01', got {subject!r}")
        if num_voxels < 1:
            raise BrainDataError(f"expected at least one voxel of {subject}, got {num_voxels}")
        like = next(self.parameters(), None)
        kind = {} if like is None else {"device": like.device, "dtype": like.dtype}
        self.voxels_in[subject] = nn.Linear(num_voxels, self.hidden, **kind)
        self.voxels_out[subject] = nn.Linear(self.hidden, num_voxels, **kind)

    def subject_parameters(self, subject: str) -> Iterator[nn.Parameter]:
        """Parameters of one subject alone: weights and biases of the two projections."""
        subject = self._subject(subject)
        yield from self.voxels_in[subject].parameters()
        yield from self.voxels_out[subject].parameters()

    def encode(self, responses: Tensor, subject: str | None = None) -> Encoding:
        """Posterior of responses, and the output of the retrieval head.

        Args:
            responses: Responses (B, V) of one subject.
            subject: The subject; None where the model has one.

        Raises:
            AxisError: responses have another shape.
            BrainDataError: the subject is unknown, or not given where there are several.
        """
        subject = self._subject(subject)
        count = self._projection(subject).in_features
        if responses.ndim != 2 or responses.shape[1] != count:
            raise AxisError(f"expected responses (B, {count}) of {subject}, got {tuple(responses.shape)}")
        x = project_stem(responses, self.stem, self._projection(subject))  # (B, C, hidden)
        h = self.to_tokens(self.down(self.expand(x)))  # (B, m, d)
        mean, logvar = self.posterior(h).chunk(2, 1)
        return Encoding(Posterior.of(mean, logvar), None if self.retrieval is None else self.retrieval(h))

    def decode(self, latents: Tensor, subject: str | None = None) -> Tensor:
        """Responses (B, V) of one subject from latents (B, m, d). Errors are those of `encode`."""
        subject = self._subject(subject)
        if latents.ndim != 3 or latents.shape[1:] != (self.num_tokens, self.token_width):
            expected = f"(B, {self.num_tokens}, {self.token_width})"
            raise AxisError(f"expected latents {expected}, got {tuple(latents.shape)}")
        x = self.shrink(self.up(self.from_compact(self.compact(latents))))  # (B, C, hidden)
        if self.checkpointing and self.training:
            return checkpoint(self._to_voxels, x, subject, use_reentrant=False)
        return self._to_voxels(x, subject)

    def forward(self, responses: Tensor, subject: str | None = None) -> Tensor:
        """Responses (B, V) as the decoder returns them from the mean of their posterior."""
        return self.decode(self.encode(responses, subject).posterior.mean, subject)

    def _to_voxels(self, x: Tensor, subject: str) -> Tensor:
        return self.out(self.voxels_out[subject](x)).squeeze(1)  # (B, C, V) to (B, V)

    def _subject(self, subject: str | None) -> str:
        known = list(self.voxels_in)
        if subject is None and len(known) == 1:
            return known[0]
        if subject not in known:
            near = "" if subject is None else near_names(subject, known)
            raise BrainDataError(f"expected a subject of {', '.join(known)}, got {subject!r}{near}")
        return subject


def project_stem(responses: Tensor, stem: nn.Conv1d, projection: nn.Linear) -> Tensor:
    """projection(stem(responses)) for a stem of one input channel and kernel 1, without its (B, C, V) tensor.

    Channel k of the stem is w_k x + b_k, so its projection is w_k W x + b_k W 1 + bias. One product with W then serves
    all C channels.

    Args:
        responses: x, (B, V).
        stem: from 1 to C channels.
        projection: W, from V to n.

    Returns:
        (B, C, n).
    """
    projected = linear(responses, projection.weight).unsqueeze(1)  # (B, 1, n)
    ones = projection.weight.sum(1)  # (n,)
    scale = stem.weight[:, 0]  # (C, 1)
    assert stem.bias is not None
    return scale * projected + (stem.bias[:, None] * ones + projection.bias)


def _retrieval_head(width: int) -> nn.Sequential:
    layers = [(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)) for _ in range(3)]
    return nn.Sequential(*(layer for group in layers for layer in group))


class XFM(nn.Module):
    """The flow between image tokens, at time 0, and latents, at time 1: velocities (B, m, d) of points and times.

    610.32 M numbers at the paper's size, 0.43 M of which are fixed. A new one returns zeros.

    Args:
        num_tokens: m.
        token_width: d.
        size: all other sizes, and the path.
    """

    def __init__(self, num_tokens: int, token_width: int, size: FlowSize):
        super().__init__()
        self.path = FlowPath(size.path)
        self.net = SiT(num_tokens, token_width, size.depth, size.heads, size.width)

    def forward(self, points: Tensor, time: Tensor) -> Tensor:
        """Velocities (B, m, d), in the dtype of the weights, at points (B, m, d) and times (B,) in 0..1."""
        return self.net(points.to(self.net.out.weight.dtype), time)

    @torch.no_grad()
    def encode(self, tokens: Tensor, solver: str = "heun", steps: int = 20) -> Tensor:
        """Latents (B, m, d) of image tokens (B, m, d), by `brainmodels.nn.integrate` from time 0 to 1."""
        return integrate(self, tokens, start=0.0, end=1.0, steps=steps, solver=solver)

    @torch.no_grad()
    def decode(self, latents: Tensor, solver: str = "heun", steps: int = 20) -> Tensor:
        """Image tokens (B, m, d) of latents (B, m, d), from time 1 to 0."""
        return integrate(self, latents, start=1.0, end=0.0, steps=steps, solver=solver)

    @torch.no_grad()
    def mean_latents(self, tokens: Tensor) -> Tensor:
        """Expected latents (B, m, d) of image tokens (B, m, d), E[z_1 | z_0], from one call of the network.

        Trained with flow matching, the velocity at time 0 is the mean over all pairs that start at these tokens. On the
        straight path this is one Euler step. Solving the flow instead draws one latent of each image, which has the
        variance of single trials.

        Raises:
            BrainDataError: The path stands still at its ends, as cos2_sin2 does.
        """
        time = torch.zeros(len(tokens), device=tokens.device)
        return self.path.endpoints(tokens, self(tokens, time).to(tokens.dtype), time)[1]

    @torch.no_grad()
    def mean_tokens(self, latents: Tensor) -> Tensor:
        """Expected image tokens (B, m, d) of latents (B, m, d), E[z_0 | z_1], as `mean_latents`."""
        time = torch.ones(len(latents), device=latents.device)
        return self.path.endpoints(latents, self(latents, time).to(latents.dtype), time)[0]


@torch.no_grad()
def encode(
    vae: NeuroVAE, flow: XFM, tokens: Tensor, subject: str | None = None, solver: str = "heun", steps: int = 20
) -> Tensor:
    """Responses (B, V) of a subject to images of these tokens (B, m, d)."""
    return vae.decode(flow.encode(tokens, solver, steps), subject)


@torch.no_grad()
def decode(
    vae: NeuroVAE, flow: XFM, responses: Tensor, subject: str | None = None, solver: str = "heun", steps: int = 20
) -> Tensor:
    """Image tokens (B, m, d) from responses (B, V) of a subject, through the mean of their posterior."""
    return flow.decode(vae.encode(responses, subject).posterior.mean, solver, steps)


@dataclass(frozen=True)
class RoundTrip:
    """Result of going from one side to the other and back.

    Attributes:
        start: Tokens or responses at the start.
        forward: Result on the other side.
        back: Result after the way back, shaped as `start`.
        relative_error: ||back - start|| / ||start||, norms over all samples together.
        solver, steps: Solver of the flow and its steps.
        function_evaluations: Calls of the network, both ways together.
    """

    start: Tensor
    forward: Tensor
    back: Tensor
    relative_error: float
    solver: str
    steps: int
    function_evaluations: int


@torch.no_grad()
def round_trip(
    vae: NeuroVAE,
    flow: XFM,
    *,
    tokens: Tensor | None = None,
    responses: Tensor | None = None,
    subject: str | None = None,
    through: str = "latent",
    solver: str = "heun",
    steps: int = 20,
) -> RoundTrip:
    """From image tokens or from responses to the other side and back.

    | through    | from tokens                          | from responses                                      |
    |------------|--------------------------------------|-----------------------------------------------------|
    | "latent"   | tokens, latents, tokens              | latents (mean of their posterior), tokens, latents  |
    | "response" | tokens, responses, tokens            | responses, tokens, responses                        |

    Through the latent only the flow's solver errs; through the response also the NeuroVAE.

    Args:
        vae, flow: The networks.
        tokens: Image tokens (B, m, d), or
        responses: responses (B, V); exactly one of the two.
        subject: The subject; None where the model has one.
        through: "latent" or "response".
        solver, steps: Solver of the flow and its steps, both ways.

    Raises:
        BrainDataError: both or none of tokens and responses, or another `through`.
    """
    if (tokens is None) == (responses is None):
        raise BrainDataError(f"expected tokens or responses, got {'neither' if tokens is None else 'both'}")
    check_choice("through", through, ("latent", "response"))
    settings = (solver, steps)
    if tokens is not None and through == "response":
        start, forward = tokens, encode(vae, flow, tokens, subject, *settings)
        back = decode(vae, flow, forward, subject, *settings)
    elif tokens is not None:
        start, forward = tokens, flow.encode(tokens, *settings)
        back = flow.decode(forward, *settings)
    elif responses is not None and through == "response":
        start, forward = responses, decode(vae, flow, responses, subject, *settings)
        back = encode(vae, flow, forward, subject, *settings)
    else:
        assert responses is not None
        start = vae.encode(responses, subject).posterior.mean
        forward = flow.decode(start, *settings)
        back = flow.encode(forward, *settings)
    error = float(((back - start).double().norm() / start.double().norm()).cpu())
    return RoundTrip(start, forward, back, error, solver, steps, 2 * function_evaluations(solver, steps))
