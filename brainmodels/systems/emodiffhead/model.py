"""The networks of the first stage: from sound, emotion and noise to the coefficients of each frame.

    generator = ExpressionGenerator(audio_width=320, width=15, num_emotions=8, hidden=128, layers=1)
    found = trajectories(generator, audio, labels=(0, 5), noise_seed=0)  # neutral and happy, (2, T, 15)

The generator reads forward in time only. A longer recording therefore leaves earlier frames as they are, but for the
last `reach` frames, whose windows of sound end with the recording. Intensity is no input of the network, see `motion`.

Shapes: B clips, T frames, S parts of a frame, D audio width, K emotions, W = E + J coefficients, whitened.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import AxisError, BrainDataError

__all__ = [
    "NEUTRAL",
    "SPAN",
    "ExpressionGenerator",
    "FrameDiscriminator",
    "LabelClassifier",
    "SequenceDiscriminator",
    "audio_windows",
    "trajectories",
]

NEUTRAL = 0
"""Place of "neutral" among the emotions."""
SPAN = 16
"""Number of frames that `SequenceDiscriminator` judges together."""
_OFFSETS = 4.0  # of emotions at the output, whose offsets then grow in fewer steps
_BLOCK = 64  # frames that `trajectories` computes together

State = tuple[Tensor, Tensor]


def audio_windows(audio: Tensor, reach: int = 2) -> Tensor:
    """The sound around each frame; before the first and after the last frame, these are repeated.

    Args:
        audio: (B, T, S, D) Features.
        reach: Number of frames before and after a frame.

    Returns:
        (B, T, (2 * reach + 1) * S, D), in the order of time.

    Raises:
        AxisError: `audio` has another number of axes.
    """
    if audio.ndim != 4:
        raise AxisError(f"expected audio (B, T, S, D), got shape {tuple(audio.shape)}")
    frames = torch.arange(audio.shape[1], device=audio.device)
    offsets = torch.arange(-reach, reach + 1, device=audio.device)
    places = (frames[:, None] + offsets).clamp(0, audio.shape[1] - 1)  # (T, 2 * reach + 1)
    return audio[:, places].flatten(2, 3)


class ExpressionGenerator(nn.Module):
    """LSTM from windows of sound, an emotion and the noise of a clip to whitened coefficients.

    Args:
        audio_width: Number S * D of audio features of a frame.
        width: Number E + J of coefficients.
        num_emotions: K.
        hidden: Width of the LSTM.
        layers: Number of its layers.
        noise: Width of the noise of a clip.
        reach: Number of frames before and after a frame whose sound it reads.
    """

    def __init__(
        self,
        audio_width: int,
        width: int,
        num_emotions: int,
        hidden: int,
        layers: int,
        noise: int = 16,
        reach: int = 2,
    ):
        super().__init__()
        self.audio_width, self.width, self.num_emotions = audio_width, width, num_emotions
        self.noise, self.reach = noise, reach
        self.sound = nn.Linear((2 * reach + 1) * audio_width, hidden)
        self.clip = nn.Linear(num_emotions + noise, hidden, bias=False)
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.out = nn.Linear(2 * hidden + num_emotions, width)  # an emotion is mostly a constant offset

    def forward(self, audio: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        """Coefficients of whole clips.

        Args:
            audio: (B, T, S, D) Scaled features.
            label: (B, K) One-hot emotions. A row of zeros is a clip of unknown emotion.
            noise: (B, noise) Standard normal draws.

        Returns:
            (B, T, W) whitened coefficients.

        Raises:
            AxisError: A shape is another than expected.
        """
        return self.block(self.windows(audio), label, noise)[0]

    def windows(self, audio: Tensor) -> Tensor:
        """The sound that each frame reads, (B, T, (2 * reach + 1) * S * D), of features (B, T, S, D)."""
        if audio.ndim != 4 or audio.shape[2] * audio.shape[3] != self.audio_width or not audio.shape[1]:
            wanted = f"(B, T, S, D) with T above 0 and S * D = {self.audio_width}"
            raise AxisError(f"expected audio {wanted}, got shape {tuple(audio.shape)}")
        return audio_windows(audio, self.reach).flatten(2)

    def block(self, windows: Tensor, label: Tensor, noise: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Coefficients of consecutive frames, and the state from which the frames after them go on.

        Args:
            windows: (B, T, n) Rows of `windows`.
            label, noise: As in `forward`.
            state: What the call for the frames before has returned; None at the start of a clip.

        Raises:
            AxisError: Label or noise has another shape.
        """
        for name, value, wide in (("label", label, self.num_emotions), ("noise", noise, self.noise)):
            if value.shape != (len(windows), wide):
                raise AxisError(f"expected {name} ({len(windows)}, {wide}), got shape {tuple(value.shape)}")
        clip = self.clip(torch.cat((label, noise), 1))  # (B, h)
        read = F.silu(self.sound(windows) + clip[:, None])  # (B, T, h)
        found, after = self.lstm(read, state)
        shown = _OFFSETS * label[:, None].expand(-1, windows.shape[1], -1)
        return self.out(torch.cat((found, read, shown), 2)), after


class FrameDiscriminator(nn.Module):
    """Tells true from generated coefficients of single frames.

    Args:
        width: Number W of coefficients.
        hidden: Width of the layers.
    """

    def __init__(self, width: int, hidden: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(self, series: Tensor) -> Tensor:
        """Scores (B, T) of frames (B, T, W); above 0 for true ones."""
        return self.layers(series).squeeze(-1)


class SequenceDiscriminator(nn.Module):
    """Tells true from generated sequences of 16 frames, given the emotion.

    Args:
        width: Number W of coefficients.
        num_emotions: K.
        hidden: Width of the layers.
    """

    def __init__(self, width: int, num_emotions: int, hidden: int = 64):
        super().__init__()
        sizes = ((width, hidden), (hidden, hidden), (hidden, hidden))
        self.layers = nn.ModuleList(nn.Conv1d(before, after, 6) for before, after in sizes)  # 3 * 5 + 1 frames = SPAN
        self.score = nn.Linear(hidden, 1)
        self.label = nn.Linear(num_emotions, hidden, bias=False)

    def forward(self, series: Tensor, label: Tensor) -> Tensor:
        """Scores of all sequences of 16 consecutive frames; above 0 for true ones.

        Args:
            series: (B, T, W) Coefficients of 16 frames or more.
            label: (B, K) Emotions, one-hot or as weights.

        Returns:
            (B, T - 15).

        Raises:
            BrainDataError: There are fewer frames.
        """
        if series.shape[1] < SPAN:
            raise BrainDataError(f"expected sequences of {SPAN} frames or more, got {series.shape[1]}")
        found = series.transpose(1, 2)
        for layer in self.layers:
            found = F.leaky_relu(layer(found), 0.2)
        found = found.transpose(1, 2)  # (B, T - 15, h)
        return self.score(found).squeeze(-1) + (found * self.label(label)[:, None]).mean(-1)


class LabelClassifier(nn.Module):
    """Reads the emotion of a sequence.

    Args:
        width: Number W of coefficients.
        num_emotions: K.
        hidden: Width of the layers.
    """

    def __init__(self, width: int, num_emotions: int, hidden: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(width, hidden, 5, padding="same"),
            nn.LeakyReLU(0.2),
            nn.Conv1d(hidden, hidden, 1),
            nn.LeakyReLU(0.2),
        )
        self.score = nn.Linear(hidden, num_emotions)

    def forward(self, series: Tensor) -> Tensor:
        """Logits (B, K) of sequences (B, T, W)."""
        return self.score(self.layers(series.transpose(1, 2)).mean(2))


@torch.no_grad()
def trajectories(
    generator: ExpressionGenerator,
    audio: np.ndarray,
    labels: Sequence[int],
    noise_seed: int,
    chunk: int | None = None,
) -> np.ndarray:
    """Trajectories of several emotions from the same sound and the same noise.

    Frames are computed in blocks of one size, the last of which is filled up, and each emotion alone. So neither a
    longer recording nor the other emotions change the bits of a frame, but for the last `reach` frames.

    Args:
        generator: The network, on any device.
        audio: (T, S, D) Scaled features.
        labels: Places of emotions.
        noise_seed: Seed of the noise.
        chunk: Number of frames of a block; None is 64. Another number may change the last bits.

    Returns:
        fp32 (len(labels), T, W), whitened.

    Raises:
        AxisError: `audio` has another shape.
        BrainDataError: A label is no place of an emotion, or `chunk` is below 1.
    """
    size = _BLOCK if chunk is None else chunk
    if size < 1:
        raise BrainDataError(f"expected chunk of at least 1, got {chunk}")
    wrong = [label for label in labels if not 0 <= label < generator.num_emotions]
    if wrong:
        raise BrainDataError(f"expected labels from 0 to {generator.num_emotions - 1}, got {wrong}")
    device = generator.out.weight.device
    windows = generator.windows(torch.tensor(np.array(audio, np.float32))[None].to(device))
    frames = windows.shape[1]
    windows = F.pad(windows, (0, 0, 0, -frames % size))
    drawn = torch.randn(1, generator.noise, generator=torch.Generator().manual_seed(noise_seed)).to(device)
    found = np.empty((len(labels), frames, generator.width), np.float32)
    trained = generator.training
    generator.eval()
    for place, label in enumerate(labels):
        hot = F.one_hot(torch.tensor([label], device=device), generator.num_emotions).float()
        state, parts = None, []
        for part in windows.split(size, 1):
            out, state = generator.block(part.contiguous(), hot, drawn, state)
            parts.append(out[0])
        found[place] = torch.cat(parts)[:frames].float().cpu().numpy()
    generator.train(trained)
    return found
