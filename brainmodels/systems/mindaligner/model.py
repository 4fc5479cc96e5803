"""MindAligner's networks: a map from the voxels of a new subject to those of a known one, and what trains it.

    mapping = LowRankMap(num_new=15_724, num_known=14_278, rank=map_rank(4096, 15_724, 14_278))
    aligned = mapping(responses)  # (B, 15_724) to (B, 14_278)

Only the map is used after training. The mapper and the embedder are helpers of the training. The decoder belongs to the
known subject and is frozen.
Shapes: B trials, n voxels of the new subject, k voxels of the known one, h rank, E embedding width.
Paper: MindAligner, arXiv 2502.05034.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...errors import AxisError, BrainDataError, check_choice
from ...nn.losses import info_nce
from .recipes import FILMS

__all__ = [
    "CrossStimulusMapper",
    "EmbeddingDecoder",
    "FunctionalEmbedder",
    "LowRankMap",
    "map_rank",
]

TEMPERATURE = 0.2  # of the decoder's contrast


def map_rank(asked: int, num_new: int, num_known: int) -> int:
    """Rank of a map between so many voxels: the one that is asked for, or the largest possible if that is smaller.

    Raises:
        BrainDataError: The rank is below 1.
    """
    if asked < 1:
        raise BrainDataError(f"expected a rank of at least 1, got {asked}")
    return min(asked, num_new, num_known)


class LowRankMap(nn.Module):
    """Linear map from n to k voxels of rank h, without a bias: M = A B.

    Responses must therefore be z-scored on both sides.

    Args:
        num_new: Number n of voxels of the new subject.
        num_known: Number k of voxels of the known subject.
        rank: Rank h, from 1 to the smaller of n and k.
        init: "random" draws A from N(0, 1 / n) and B from N(0, 0.01 / h). "uniform" is torch's default for two linear
            layers, as in the released code.

    Attributes:
        A: Weights (n, h).
        B: Weights (h, k).

    Raises:
        AxisError: There are less than two voxels on a side.
        BrainDataError: The rank is out of its range, or the init is unknown.
    """

    def __init__(self, num_new: int, num_known: int, rank: int, init: str = "random"):
        super().__init__()
        if min(num_new, num_known) < 2:
            raise AxisError(f"expected at least 2 voxels on either side, got {num_new} and {num_known}")
        if not 1 <= rank <= min(num_new, num_known):
            raise BrainDataError(
                f"expected a rank from 1 to {min(num_new, num_known)}, the smaller number of voxels, got {rank}"
            )
        check_choice("init", init, ("random", "uniform"))
        self.A, self.B = nn.Parameter(torch.empty(num_new, rank)), nn.Parameter(torch.empty(rank, num_known))
        for weight, std in ((self.A, num_new**-0.5), (self.B, 0.1 * rank**-0.5)):
            if init == "random":
                nn.init.normal_(weight, std=std)
            else:
                nn.init.uniform_(weight, -(len(weight) ** -0.5), len(weight) ** -0.5)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray | Tensor, rank: int) -> "LowRankMap":
        """The closest map of a rank to a matrix (n, k), by its singular vectors; both factors have the same norm.

        A rank above that of the matrix leaves columns of A and rows of B at 0, which no gradient reaches.

        Args:
            matrix: Matrix (n, k), such as that of a closed form.
            rank: Rank h of the map.

        Raises:
            BrainDataError: The matrix has numbers that are not finite.
        """
        matrix = torch.as_tensor(matrix)
        num_new, num_known = matrix.shape
        mapping = cls(num_new, num_known, rank)
        if not matrix.isfinite().all():
            raise BrainDataError("expected a finite matrix to begin with, got NaN or infinite numbers")
        left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        root = sizes[:rank].sqrt()
        with torch.no_grad():
            mapping.A.copy_(left[:, :rank] * root)
            mapping.B.copy_(root[:, None] * right[:rank])
        return mapping

    @property
    def rank(self) -> int:
        """Rank h."""
        return self.A.shape[1]

    def project(self, responses: Tensor) -> Tensor:
        """Latents z_N (B, h) of responses (B, n) of the new subject.

        Raises:
            AxisError: Responses have another shape.
        """
        if responses.ndim != 2 or responses.shape[1] != len(self.A):
            raise AxisError(f"expected responses (B, {len(self.A)}) of the new subject, got {tuple(responses.shape)}")
        return responses @ self.A

    def read(self, latents: Tensor) -> Tensor:
        """Responses (B, k) of the known subject from latents (B, h)."""
        return latents @ self.B

    def forward(self, responses: Tensor) -> Tensor:
        """Responses (B, k) of the known subject to what the new subject saw, from responses (B, n)."""
        return self.read(self.project(responses))

    @torch.no_grad()
    def matrix(self, rows: slice = slice(None)) -> Tensor:
        """Rows of M = A B: (rows, k). All of them are a large matrix where there are many voxels."""
        return self.A[rows] @ self.B


class CrossStimulusMapper(nn.Module):
    """Change latents of one stimulus into those of another, from the difference of their embeddings.

        gamma, beta = Linear(d),    z_K = (1 + gamma) z_N + beta

    The linear layer has no bias and begins at 0. Equal stimuli therefore leave the latents as they are, and A B is
    exactly the map for the same stimulus. The released code has gamma z_N + beta with a bias, so that A B alone is no
    such map.

    Args:
        embed_width: Width E of the embeddings.
        rank: Width h of the latents.
        film: "residual" as above, or "released".
    """

    def __init__(self, embed_width: int, rank: int, film: str = "residual"):
        super().__init__()
        self.film = check_choice("film", film, FILMS)
        self.linear = nn.Linear(embed_width, 2 * rank, bias=film == "released")
        if film == "residual":
            nn.init.zeros_(self.linear.weight)

    def forward(self, latents: Tensor, difference: Tensor) -> Tensor:
        """Latents z_K (B, h) from z_N (B, h) and the difference (B, E), embedding of the known image minus new."""
        gamma, beta = self.linear(difference).chunk(2, -1)
        return (gamma + 1 if self.film == "residual" else gamma) * latents + beta


class FunctionalEmbedder(nn.Linear):
    """A linear layer (h to h) under which latents should be as similar as their images are."""

    def __init__(self, rank: int):
        super().__init__(rank, rank)


class EmbeddingDecoder(nn.Module):
    """Decode image embeddings of length 1 from responses of the known subject: a linear layer, then residual MLPs.

    The MLPs begin as the identity, so that the decoder begins as its linear layer.

    Args:
        num_voxels: Number k of voxels.
        embed_width: Width E of the embeddings.
        depth: Number of residual MLPs of hidden width 4 E; 0 leaves the linear layer alone.
    """

    def __init__(self, num_voxels: int, embed_width: int, depth: int = 2):
        super().__init__()
        self.linear = nn.Linear(num_voxels, embed_width)
        self.blocks = nn.Sequential(*(_ResidualMLP(embed_width) for _ in range(depth)))

    @torch.no_grad()
    def begin_at(self, slopes: np.ndarray, intercept: np.ndarray) -> None:
        """Set the linear layer.

        Args:
            slopes: Slopes (k, E), such as those of `LinearDecoder(calibration="none")`.
            intercept: Intercept (E,).

        Raises:
            AxisError: Shapes do not match.
        """
        if slopes.shape != self.linear.weight.T.shape or intercept.shape != self.linear.bias.shape:
            expected = f"{tuple(self.linear.weight.T.shape)} and {tuple(self.linear.bias.shape)}"
            raise AxisError(f"expected slopes and intercept {expected}, got {slopes.shape} and {intercept.shape}")
        self.linear.weight.copy_(torch.as_tensor(slopes).T)
        self.linear.bias.copy_(torch.as_tensor(intercept))

    def forward(self, responses: Tensor) -> Tensor:
        """Embeddings (B, E) of length 1 from responses (B, k).

        Raises:
            AxisError: Responses have another shape.
        """
        count = self.linear.in_features
        if responses.ndim != 2 or responses.shape[1] != count:
            raise AxisError(f"expected responses (B, {count}) of the known subject, got {tuple(responses.shape)}")
        return normalize(self.blocks(self.linear(responses)), dim=-1)

    def loss(self, responses: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        """Mean of 1 - cosine, plus a contrast with temperature 0.2; a scalar in fp32 at least.

        Args:
            responses: Responses (B, k), measured or aligned.
            target: Embeddings (B, E) of their images.
            ids: Numbers (B,) that tell images apart. Trials of one image are not each other's negatives.
        """
        decoded = self(responses)
        decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        target = normalize(target.to(decoded.dtype), dim=-1)
        return 1 - (decoded * target).sum(-1).mean() + info_nce(decoded, target, TEMPERATURE, ids)


class _ResidualMLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        last = nn.Linear(4 * width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)
