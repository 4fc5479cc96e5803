"""Readers of drawn heads: coefficients, mouth opening and identity from pictures, and emotion and viseme from these.

    readers = fit_readers(clips, pictures=4096, steps=800, seed=0)     # about 40 s on one core
    reading = readers.probe.read(video)                                # Reading: opening (T,), named (T, 12), ...
    readers.emotions.classify(clip_vectors)                            # names of emotions

The probe is a small convolutional network. It learns from exact renders of train identities alone, so a model of heads
has no part in it. All scores that use it are printed beside its own on exact renders of the test clips.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.clips import EMOTIONS
from ..errors import AxisError, BrainDataError
from ..heads import ToyHead
from ..simulated.talking_head import SimulatedClips
from .head_case import recomposed

__all__ = [
    "EmotionReader",
    "HeadProbe",
    "HeadReaders",
    "Reading",
    "VisemeReader",
    "clip_vector",
    "fit_readers",
    "frame_vectors",
]

NAME = "probe"  # its name in names of metrics
_SIDE = 32  # most pixels that the probe sees
_BATCH, _RATE = 64, 3e-3
_WIDTHS, _HIDDEN = (24, 48, 96), 128
_HELD_OUT = 64  # train clips whose renders the linear readers learn from, and on which the probe is judged
_LEAST_CLIPS = 4  # of each emotion
_SERIES = ("speech", "speech_jaw", "motion", "pose")  # of the truth
_RIDGE = 1e-3


class Reading(NamedTuple):
    """What a reader sees in n pictures. Only the opening is known of heads whose truth is not.

    Attributes:
        opening: (n,) Mouth opening.
        named: (n, 12) Named components of the expression.
        jaw: (n,) Opening of the jaw, radians.
        identity: (n, I) Numbers of the identity, standardised over train identities.
        features: (n, d) Features of the last hidden layer.
    """

    opening: np.ndarray
    named: np.ndarray | None = None
    jaw: np.ndarray | None = None
    identity: np.ndarray | None = None
    features: np.ndarray | None = None


class _Network(nn.Module):
    """Pictures (n, 3, side, side) to targets (n, targets) and features (n, hidden)."""

    def __init__(self, side: int, targets: int):
        super().__init__()
        layers: list[nn.Module] = []
        before = 5  # colours, and the place of each pixel
        for width in _WIDTHS:
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(4, width), nn.GELU()]
            before, side = width, (side + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, _HIDDEN), nn.GELU())
        self.head = nn.Linear(_HIDDEN, targets)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        n, _, height, width = pictures.shape
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        place = torch.stack((x, y)).expand(n, -1, -1, -1)
        features = self.body(torch.cat((2 * pictures - 1, place), 1))
        return self.head(features), features


class HeadProbe:
    """Reads coefficients, mouth opening and identity from pictures of drawn heads.

    Args:
        network: The network.
        side: Side of the pictures that it sees.
        mean, scale: (targets,) Mean and standard deviation of its targets.
        widths: Number of targets of each kind, in the order of `Reading` from `opening` to `identity`.

    Attributes:
        r2: Share of the variance that it explains on held-out clips, by kind of target; filled by `fit_readers`.
    """

    def __init__(self, network: nn.Module, side: int, mean: Tensor, scale: Tensor, widths: Mapping[str, int]):
        self.network, self.side, self.mean, self.scale = network.eval(), side, mean, scale
        self.widths = dict(widths)
        self.r2: dict[str, float] = {}

    @property
    def fingerprint(self) -> str:
        """12 digits that change with any weight."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:12]

    def read(self, pictures: np.ndarray, batch_size: int = 256) -> Reading:
        """Read pictures.

        Args:
            pictures: uint8 (n, H, H, 3).
            batch_size: Number of pictures in a forward pass.

        Raises:
            AxisError: They are not uint8 (n, H, H, 3).
        """
        values, features = self.values(pictures, batch_size)
        parts = np.split(values, np.cumsum(list(self.widths.values()))[:-1], axis=1)
        named, last = dict(zip(self.widths, parts, strict=True)), self.widths["identity"]
        standard = (named["identity"] - self.mean[-last:].numpy()) / self.scale[-last:].numpy()
        return Reading(named["opening"][:, 0], named["named"], named["jaw"][:, 0], standard, features)

    @torch.no_grad()
    def values(self, pictures: np.ndarray, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """Targets (n, targets) fp64 in their own units, and features (n, d) fp32. Arguments and errors as in `read`."""
        found, hidden = [], []
        for start in range(0, len(pictures), batch_size):
            values, features = self.network(_seen(pictures[start : start + batch_size], self.side))
            found.append(values * self.scale + self.mean)
            hidden.append(features)
        return torch.cat(found).double().numpy(), torch.cat(hidden).numpy()


class EmotionReader:
    """Emotion and intensity from the mean of a clip, by linear discriminants.

    The mean of a clip with emotion k at intensity a is modelled as rest + a * direction_k, with noise of one covariance
    for all. A clip has the emotion whose strongest form is most likely. Its intensity along an emotion is the
    projection on that direction with the least noise.

    Args:
        rest: (d,) Mean of neutral clips.
        directions: (8, d) Change at intensity 1, zeros for neutral.
        precision: (d, d) Inverse covariance of the noise.
    """

    def __init__(self, rest: np.ndarray, directions: np.ndarray, precision: np.ndarray):
        self.rest, self.directions, self.precision = rest, directions, precision

    @classmethod
    def fit(cls, vectors: np.ndarray, emotions: Sequence[str], alphas: np.ndarray) -> "EmotionReader":
        """Fit to clip vectors (n, d) with their emotions and intensities (n,), by least squares.

        Raises:
            BrainDataError: An emotion is absent.
        """
        missing = sorted(set(EMOTIONS) - set(emotions))
        if missing:
            raise BrainDataError(f"expected clips of all {len(EMOTIONS)} emotions, got none of {', '.join(missing)}")
        design = np.zeros((len(vectors), len(EMOTIONS)))
        for row, (emotion, alpha) in enumerate(zip(emotions, alphas, strict=True)):
            design[row, EMOTIONS.index(emotion)] = alpha
        design[:, 0] = 1  # the column of neutral is the rest
        weights = np.linalg.lstsq(design, vectors, rcond=None)[0]
        noise = vectors - design @ weights
        covariance = noise.T @ noise / max(1, len(vectors) - len(EMOTIONS))
        covariance += _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        directions = weights.copy()
        directions[0] = 0
        return cls(weights[0], directions, np.linalg.inv(covariance))

    def classify(self, vectors: np.ndarray) -> np.ndarray:
        """Names of the emotions of clips (n, d)."""
        offsets = (vectors - self.rest)[:, None] - self.directions
        distances = np.einsum("nkd,de,nke->nk", offsets, self.precision, offsets)
        return np.array(EMOTIONS)[distances.argmin(1)]

    def intensity(self, vectors: np.ndarray, emotion: str) -> np.ndarray:
        """Intensity (n,) of one emotion in clips (n, d).

        Raises:
            BrainDataError: The emotion is neutral, which has no intensity.
        """
        direction = self.directions[EMOTIONS.index(emotion)]
        weights = self.precision @ direction
        if not direction.any():
            raise BrainDataError(f"expected an emotion with a direction, got {emotion!r}")
        return (vectors - self.rest) @ weights / (direction @ weights)


class VisemeReader:
    """Viseme of each frame, by linear discriminants of what the probe reads.

    Args:
        reader: Fitted classifier of scikit-learn.
    """

    def __init__(self, reader: Any):
        self.reader = reader

    @classmethod
    def fit(cls, frames: np.ndarray, labels: np.ndarray) -> "VisemeReader":
        """Fit to frames (n, d) with viseme numbers (n,)."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        return cls(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01).fit(frames, labels))

    def classify(self, frames: np.ndarray) -> np.ndarray:
        """Viseme numbers of frames (n, d)."""
        return self.reader.predict(frames)


@dataclass(frozen=True, eq=False)
class HeadReaders:
    """A probe with the linear readers on top.

    Attributes:
        probe: Reads pictures.
        emotions, visemes: Read what the probe has read.
        pictures: Number of renders that the probe was trained on.
        seconds: Time of all fits.
    """

    probe: HeadProbe
    emotions: EmotionReader
    visemes: VisemeReader
    pictures: int
    seconds: float


def fit_readers(clips: SimulatedClips, pictures: int = 4096, steps: int = 800, seed: int = 0) -> HeadReaders:
    """Train a probe on exact renders, and fit the linear readers on top of it.

    The probe learns from renders with speech and motion of train clips, and with faces that are drawn for it alone.
    The linear readers learn from exact renders of up to 64 train clips, whose faces the probe has not seen. `probe.r2`
    is of these clips as well.

    Args:
        clips: Simulated clips.
        pictures: Number of renders.
        steps: Steps of the training, of 64 renders each.
        seed: Seed of renders, weights and batches.

    Raises:
        BrainDataError: There is no train clip.
    """
    start = time.perf_counter()
    ids = [clip.id for clip in clips.of("train")]
    if not ids:
        raise BrainDataError("expected train clips whose speech the probe learns from, got none")
    rng = np.random.default_rng(seed)
    probe = _train_probe(clips, ids, pictures, steps, rng, seed)
    held = [ids[row] for row in rng.permutation(len(ids))[:_HELD_OUT]]
    emotions, visemes = _fit_linear(clips, probe, held, rng)
    return HeadReaders(probe, emotions, visemes, pictures, time.perf_counter() - start)


def clip_vector(reading: Reading) -> np.ndarray:
    """Mean over a clip of the named components and of the jaw, which the reader of emotions takes, (13,)."""
    return frame_vectors(reading)[:, :-1].mean(0)


def frame_vectors(reading: Reading) -> np.ndarray:
    """Named components, jaw and opening of each frame, which the reader of visemes takes, (T, 14).

    Raises:
        BrainDataError: The reading has no coefficients.
    """
    if reading.named is None or reading.jaw is None:
        raise BrainDataError("expected a reading of coefficients, got the opening alone")
    return np.column_stack((reading.named, reading.jaw, reading.opening))


def _train_probe(
    clips: SimulatedClips, ids: Sequence[str], pictures: int, steps: int, rng: np.random.Generator, seed: int
) -> HeadProbe:
    frames, targets, widths = _renders(clips, ids, pictures, rng)
    side = min(_SIDE, frames.shape[1])
    inputs, wanted = _seen(frames, side), torch.tensor(targets, dtype=torch.float32)
    mean, scale = wanted.mean(0), wanted.std(0).clamp_min(1e-6)
    wanted = (wanted - mean) / scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network(side, wanted.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(inputs), _BATCH))
        loss = F.mse_loss(network(inputs[rows])[0], wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return HeadProbe(network, side, mean, scale, widths)


def _renders(
    clips: SimulatedClips, ids: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Exact renders uint8 (count, H, H, 3) with their targets (count, targets) and the widths of these.

    Half of the renders have the speech of one frame, the motion of another and an emotion. In the other half each
    component is drawn alone, so that the probe cannot infer one from the others.
    """
    head, truth = clips.head, [clips.truth[name] for name in ids]
    known = {key: np.concatenate([getattr(one, key) for one in truth]) for key in _SERIES}
    said, moved, turned = rng.integers(0, len(known["speech"]), (3, count))
    emotions = [head.emotion(EMOTIONS[k]) for k in rng.integers(0, len(EMOTIONS), count)]
    alpha = rng.uniform(0, 1, (count, 1))
    directions = head.unmix(np.stack([exp for exp, _ in emotions]))
    named = known["speech"][said] + known["motion"][moved] + alpha * directions
    jaw = known["speech_jaw"][said] + alpha * np.stack([turn for _, turn in emotions])
    free = rng.random(count) < 0.5
    for values in (named, jaw[:, :1]):
        low, high = np.quantile(values, [0.005, 0.995], axis=0)
        values[free] = low + rng.uniform(0, 1, (int(free.sum()), values.shape[1])) * (high - low)
    exp, jaw = head.mix(named.astype(np.float32)), jaw.astype(np.float32)
    identity = np.stack([head.draw_identity(rng) for _ in range(count)])
    frames = head.pictures(exp, jaw, known["pose"][turned], identity, clips.size)
    widths = {"opening": 1, "named": named.shape[1], "jaw": 1, "identity": identity.shape[1]}
    return frames, _targets(head, exp, jaw, identity), widths


def _targets(head: ToyHead, exp: np.ndarray, jaw: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """What the probe reads, (n, targets): opening of the mean face, named components, jaw, identity."""
    opening = head.mouth_opening(head.vertices(torch.as_tensor(exp), torch.as_tensor(jaw))).numpy()
    return np.column_stack((opening, head.unmix(exp), jaw[:, 0], identity))


def _fit_linear(
    clips: SimulatedClips, probe: HeadProbe, held: list[str], rng: np.random.Generator
) -> tuple[EmotionReader, VisemeReader]:
    """Readers of emotion and viseme from exact renders of train clips, each with another emotion."""
    vectors, frames, read, true = [], [], [], []
    names = held * max(1, -(-_LEAST_CLIPS * len(EMOTIONS) // len(held)))
    emotions = [EMOTIONS[number % len(EMOTIONS)] for number in range(len(names))]
    alphas = rng.uniform(0.3, 1, len(names))
    for name, emotion, alpha in zip(names, emotions, alphas, strict=True):
        exp, jaw = recomposed(clips, name, emotion, alpha)
        video = clips.render(name, exp, jaw)
        reading = probe.read(video)
        vectors.append(clip_vector(reading))
        frames.append(frame_vectors(reading))
        identity = np.tile(clips.truth[name].identity, (len(exp), 1))
        true.append(_targets(clips.head, exp, jaw, identity))
        read.append(probe.values(video)[0])
    probe.r2 = _explained(np.concatenate(read), np.concatenate(true), probe.widths)
    labels = np.concatenate([clips.truth[name].viseme for name in names])
    return EmotionReader.fit(np.stack(vectors), emotions, alphas), VisemeReader.fit(np.concatenate(frames), labels)


def _explained(read: np.ndarray, true: np.ndarray, widths: Mapping[str, int]) -> dict[str, float]:
    """Share of the variance of each kind of target that readings explain, mean over its numbers."""
    left = np.square(read - true).sum(0)
    total = np.square(true - true.mean(0)).sum(0)
    share, found, start = 1 - left / np.maximum(total, 1e-12), {}, 0
    for name, width in widths.items():
        found[name] = float(share[start : start + width].mean())
        start += width
    return found


def _seen(pictures: np.ndarray, side: int) -> Tensor:
    """Pictures as the network sees them, fp32 (n, 3, side, side) in [0, 1]."""
    pictures = np.asarray(pictures)
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise AxisError(f"expected pictures uint8 (n, H, H, 3), got {pictures.dtype} {pictures.shape}")
    seen = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if seen.shape[2:] != (side, side):
        seen = F.interpolate(seen, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return seen
