"""A classifier of point clouds that judges decoded shapes: PointNet without its alignment networks.

    judge = PointNetJudge().fit(train_clouds, labels, seed=0)   # clouds (N, 3 or more), labels from 0
    judge.predict_proba(decoded)                                # (n, K)

A score of decoded clouds is bounded by the accuracy of its judge on real clouds, so report both.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import AxisError, BrainDataError

__all__ = ["PointNetJudge"]

_LEAST_POINTS = 16
_BATCH = 32


class PointNetJudge:
    """Class of a cloud, from features of single points whose maximum over the points is classified.

    This is PointNet (Qi et al., arXiv 1612.00593) without the networks that align points and features, and smaller.
    Each cloud is centred and divided by its root mean square radius. Sizes of objects therefore do not count, but their
    orientation does. Training clouds are random points of the given ones with Gaussian jitter.

    Args:
        width: Number of features of a point; the layers before have a quarter of it.
        num_points: Number of points that are drawn of each cloud, with replacement where it has fewer.
        jitter: Standard deviation of the jitter, in units of the radius.
        device: Device of the network.

    Attributes:
        net_: The fitted network.
        num_classes_: Number K of classes.
        loss_: Mean loss of the last tenth of the steps.
    """

    def __init__(
        self, width: int = 256, num_points: int = 256, jitter: float = 0.02, device: str | torch.device = "cpu"
    ):
        self.width, self.num_points, self.jitter, self.device = width, num_points, jitter, torch.device(device)

    def fit(
        self,
        clouds: Sequence[np.ndarray],
        labels: Sequence[int] | np.ndarray,
        seed: int = 0,
        steps: int = 400,
        num_classes: int | None = None,
    ) -> Self:
        """Train a new network by AdamW, 32 clouds a step, at a rate of 2e-3 that falls along half a cosine.

        Args:
            clouds: n clouds (N, 3 or more); columns after the third are ignored.
            labels: (n,) Classes, integers from 0.
            seed: Seed of weights, order, points and jitter.
            steps: Number of steps.
            num_classes: Number K of classes. None takes the largest label plus 1.

        Raises:
            AxisError: A cloud is not (N, 3 or more), or the labels have another number.
            BrainDataError: Points are not finite or fewer than 16, labels are not integers from 0 to K - 1, or they are
                all equal.
        """
        points = _checked(clouds)
        target = torch.from_numpy(_labels(labels, len(points))).to(self.device)
        self.num_classes_ = int(target.max()) + 1 if num_classes is None else num_classes
        if int(target.max()) >= self.num_classes_:
            raise BrainDataError(f"expected labels below num_classes={self.num_classes_}, got {int(target.max())}")
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net_ = _PointNet(self.width, self.num_classes_).to(self.device)
            losses = self._train(points, target, steps, generator)
        self.loss_ = float(np.mean(losses[-max(1, steps // 10) :]))
        return self

    def _train(self, points: list[Tensor], target: Tensor, steps: int, generator: torch.Generator) -> list[float]:
        optimizer = torch.optim.AdamW(self.net_.parameters(), 2e-3, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rows, losses = torch.empty(0, dtype=torch.long), []
        for _ in range(steps):
            while len(rows) < min(_BATCH, len(points)):
                rows = torch.cat((rows, torch.randperm(len(points), generator=generator)))
            now, rows = rows[:_BATCH], rows[_BATCH:]
            batch = self._drawn([points[int(row)] for row in now], generator)  # (B, n, 3)
            batch = batch + self.jitter * torch.randn(batch.shape, generator=generator)
            loss = F.cross_entropy(self.net_(batch.to(self.device)), target[now.to(self.device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        self.net_.eval()
        return losses

    @torch.no_grad()
    def predict_proba(self, clouds: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
        """Probabilities of the classes, fp64 (n, K).

        Args:
            clouds: n clouds (N, 3 or more), with any numbers of points from 16.
            seed: Seed of the points that are drawn. The same ones are drawn of all clouds of one size.

        Raises:
            AxisError: A cloud is not (N, 3 or more).
            BrainDataError: The judge is not fitted, or points are not finite or fewer than 16.
        """
        if not hasattr(self, "net_"):
            raise BrainDataError("expected a fitted PointNetJudge, got a new one; call fit first")
        found = []
        for cloud in _checked(clouds):
            batch = self._drawn([cloud], torch.Generator().manual_seed(seed))  # (1, n, 3)
            found.append(self.net_(batch.to(self.device)).double().softmax(1).cpu())
        return torch.cat(found).numpy() if found else np.empty((0, self.num_classes_))

    def _drawn(self, clouds: list[Tensor], generator: torch.Generator) -> Tensor:
        """As many points of each cloud (B, n, 3)."""

        def some(cloud: Tensor) -> Tensor:
            if len(cloud) < self.num_points:
                return cloud[torch.randint(len(cloud), (self.num_points,), generator=generator)]
            return cloud[torch.randperm(len(cloud), generator=generator)[: self.num_points]]

        return torch.stack([some(cloud) for cloud in clouds])


class _PointNet(nn.Module):
    """Points (B, n, 3) to logits (B, K)."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        small = width // 4
        sizes = (3, small, small, width // 2, width)
        self.points = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])
        self.head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, num_classes))

    def forward(self, points: Tensor) -> Tensor:
        x = points.flatten(0, 1)  # (B n, 3)
        for layer, norm in zip(self.points, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.head(x.unflatten(0, points.shape[:2]).amax(1))  # (B, K)


def _checked(clouds: Sequence[np.ndarray]) -> list[Tensor]:
    """Points (N, 3) of each cloud, fp32, centred and divided by their root mean square radius."""
    found = []
    for row, cloud in enumerate(clouds):
        points = np.asarray(cloud, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] < 3:
            raise AxisError(f"expected cloud {row} to be (N, 3 or more), got {points.shape}")
        points = points[:, :3]
        if len(points) < _LEAST_POINTS or not np.isfinite(points).all():
            raise BrainDataError(
                f"expected at least {_LEAST_POINTS} finite points in cloud {row}, got {len(points)}, "
                f"{int((~np.isfinite(points)).any(1).sum())} of them not finite"
            )
        points = points - points.mean(0)
        radius = np.sqrt(np.square(points).sum(1).mean())
        if not radius > 0:
            raise BrainDataError(f"expected distinct points in cloud {row}, got all in one place")
        found.append(torch.from_numpy((points / radius).astype(np.float32)))
    return found


def _labels(labels: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    found = np.asarray(labels)
    if found.shape != (count,):
        raise AxisError(f"expected labels ({count},), one for each cloud, got {found.shape}")
    if found.dtype.kind not in "iu" or not count or found.min() < 0 or found.min() == found.max():
        listed = np.unique(found)[:8].tolist()
        raise BrainDataError(f"expected integer labels from 0 of at least two classes, got {listed} ({found.dtype})")
    return found.astype(np.int64)
