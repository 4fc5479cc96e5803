"""What every row of an evaluation of talking heads shares: test clips, their true openings, pairs, and metrics.

case = HeadCase.of(clips, HeadSettings(num_clips=20))
case.pairing.pairs     # (clip of the expression, clip of the audio)
case.openings[0]       # (T,) mouth opening of the first test clip
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.clips import EMOTIONS, ClipSet, TalkingClip
from ..errors import AxisError, BrainDataError
from ..metrics import Metric, register
from ..metrics.head import ALPHAS
from ..metrics.statistics import RESAMPLES
from ..metrics.sync import Pairing, speech_envelope, swap_partners
from ..simulated.talking_head import SimulatedClips

__all__ = ["HeadCase", "HeadSettings", "box_darkness", "mouth_rmse", "psnr", "recomposed"]

_GREY = (0.2125, 0.7154, 0.0721)
_ROUNDING = 1 / (12 * 255**2)  # mean squared error of rounding to 8 bits, for values in [0, 1]
_LEAST_FRAMES = 0.52  # seconds: 13 frames at 25 Hz, which lags up to 0.4 s need

_PIXELS = "8-bit frames at their own size, in [0, 1]"
_DEFINED = (
    ("clip_psnr", "pixel", "up", f"dB from the mean squared error of a clip; {_PIXELS}; 58.9 is the rounding error"),
    ("clip_ssim", "pixel", "up", f"ssim_2d of each frame, mean over frames; {_PIXELS}"),
    ("mouth_rmse", "pixel", "down", f"root mean square error within the mouth box, of a clip; {_PIXELS}"),
    ("silent_motion", "acoustic", "down", "sd of the mouth opening with silence, relative to the clips' own speech"),
    ("viseme_accuracy[{probe}]", "semantic", "up", "share of frames with the viseme of the sound; 6 classes"),
)
for _name, _level, _direction, _text in _DEFINED:
    register(Metric(_name, _level, _direction, None, None, _text))


@dataclass(frozen=True)
class HeadSettings:
    """Settings of an evaluation of talking heads.

    The number of videos grows with the clips. With the defaults, a model renders about 14 videos for each clip.

    Attributes:
        data, out: Word of the data and folder of the report. They are only written down.
        num_clips: Number of test clips, the first ones. None takes all.
        partners: Number of other clips whose audio each clip gets.
        control_partners: The same for the control that reads the mouth from the coefficients.
        steps: Steps of the sampler in `model.render`. None takes those of the model's recipe.
        alphas: Intensities that are asked for, from 0 to 1, three or more.
        probe_pictures: Number of exact renders that the probe is trained on.
        probe_steps: Steps of its training.
        grid_frames: Number of frames of each clip behind the grid of emotions and intensities. 0 leaves it out.
        resamples: Number of bootstrap resamples.
        seed: Seed of all random choices.
        progress: Show a bar.
    """

    data: str = ""
    out: Path = Path("out/heads")
    num_clips: int | None = None
    partners: int = 5
    control_partners: int = 1
    steps: int | None = None
    alphas: tuple[float, ...] = ALPHAS
    probe_pictures: int = 4096
    probe_steps: int = 800
    grid_frames: int = 8
    resamples: int = RESAMPLES
    seed: int = 0
    progress: bool = False

    def __post_init__(self):
        if self.resamples < 2 or not 1 <= self.control_partners <= self.partners:
            raise BrainDataError(
                f"expected 2 resamples or more, and 1 to {self.partners} partners of the control, got "
                f"{self.resamples} and {self.control_partners}"
            )
        if len(self.alphas) < 3 or self.alphas[0] != 0 or np.any(np.diff(self.alphas) <= 0) or self.alphas[-1] > 1:
            raise BrainDataError(f"expected three or more intensities that rise from 0 to at most 1, got {self.alphas}")
        if self.num_clips is not None and self.num_clips <= self.partners:
            raise BrainDataError(f"expected more than {self.partners} clips, got num_clips={self.num_clips}")


@dataclass(frozen=True, eq=False)
class HeadCase:
    """Test clips of one set, cut to one length.

    Attributes:
        clips: The set of clips.
        test: Test clips that are evaluated.
        frames: Number T of frames that all of them have; longer ones are cut.
        fps: Frames per second.
        settings: See there.
    """

    clips: ClipSet
    test: Sequence[TalkingClip]
    frames: int
    fps: float
    settings: HeadSettings

    @classmethod
    def of(cls, clips: ClipSet, settings: HeadSettings) -> "HeadCase":
        """The test clips.

        Raises:
            BrainDataError: There are too few test clips, or they differ in frame rate or size.
            AxisError: A clip is too short for the lags of the sync scores.
        """
        test = clips.of("test")[: settings.num_clips]
        if len(test) <= settings.partners:
            raise BrainDataError(f"expected more than {settings.partners} test clips in {clips.name}, got {len(test)}")
        rates, sizes = {clip.fps for clip in test}, {clip.pictures().shape[1:] for clip in test}
        if len(rates) > 1 or len(sizes) > 1:
            raise BrainDataError(f"expected test clips of one frame rate and size, got {sorted(rates)} and {sizes}")
        frames, fps = min(clip.num_frames for clip in test), rates.pop()
        if frames < round(_LEAST_FRAMES * fps):
            raise AxisError(f"expected clips of {round(_LEAST_FRAMES * fps)} or more frames, got {frames}")
        return cls(clips, test, frames, fps, settings)

    @property
    def ids(self) -> list[str]:
        return [clip.id for clip in self.test]

    @property
    def simulated(self) -> bool:
        """Whether the exact renderer and all coefficients are known."""
        return isinstance(self.clips, SimulatedClips)

    @property
    def exact(self) -> SimulatedClips:
        """The clips with their truth and exact renderer.

        Raises:
            BrainDataError: They are not simulated.
        """
        if not isinstance(self.clips, SimulatedClips):
            raise BrainDataError(f"expected simulated clips, whose truth is known, got {self.clips.name}")
        return self.clips

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        height, width = self.test[0].pictures().shape[1:3]
        return height, width

    @cached_property
    def videos(self) -> dict[str, np.ndarray]:
        """True frames of each clip, uint8 (T, H, W, 3)."""
        return {clip.id: clip.pictures()[: self.frames] for clip in self.test}

    @cached_property
    def boxes(self) -> dict[str, np.ndarray] | None:
        """Mouth box of each clip, (T, 4) in pixels. None where a frame has none."""
        found = {clip.id: clip.mouth_box[: self.frames] for clip in self.test if clip.mouth_box is not None}
        whole = all((box[:, 2:] > box[:, :2]).all() for box in found.values())
        return found if whole and len(found) == len(self.test) else None

    @cached_property
    def still_boxes(self) -> dict[str, np.ndarray] | None:
        """Mean mouth box of each clip in every frame. A box that followed the lips would show motion by itself."""
        boxes = self.boxes
        return boxes and {name: np.tile(box.mean(0), (len(box), 1)) for name, box in boxes.items()}

    def reference(self, clip: TalkingClip) -> np.ndarray:
        """The picture that a model gets: the first frame, uint8 (H, W, 3)."""
        return self.videos[clip.id][0]

    def audio(self, clip: TalkingClip) -> np.ndarray:
        """Sound of the frames that are evaluated, (n,)."""
        return clip.audio[: round(self.frames * clip.sample_rate / self.fps)]

    def coefficients(self, clip: TalkingClip) -> tuple[np.ndarray, np.ndarray]:
        """Expression (T, E) and jaw (T, J) of a clip."""
        return clip.exp[: self.frames], clip.jaw[: self.frames]

    @cached_property
    def envelopes(self) -> np.ndarray:
        """Envelope of the sound of each clip, (clips, T)."""
        return np.stack([speech_envelope(self.audio(x), x.sample_rate, self.fps, self.frames) for x in self.test])

    @cached_property
    def openings(self) -> np.ndarray | None:
        """True mouth opening of each clip, (clips, T), or darkness of its mouth box. None with neither."""
        if self.simulated:
            return np.stack([self.exact.truth[name].opening[: self.frames] for name in self.ids])
        boxes = self.still_boxes
        if boxes is None:
            return None
        return np.stack([box_darkness(self.videos[name], boxes[name]) for name in self.ids])

    @cached_property
    def pairing(self) -> Pairing:
        """Clips of the expression and clips of the audio."""
        if self.openings is None:
            raise BrainDataError("expected clips with mouth openings, got clips without truth and without mouth boxes")
        return swap_partners(self.openings, self.settings.partners, self.settings.seed)

    @property
    def asked(self) -> list[str]:
        """Emotion that is asked of each clip. It goes through all emotions and is not the clip's own."""
        return [EMOTIONS[row % len(EMOTIONS)] for row in range(len(self.test))]

    def conditions(self, **more: Any) -> dict[str, Any]:
        """Fields that all scores share."""
        found = {"n_of": "clips", "split": self.clips.name, "split_hash": self.clips.split_hash, "part": "test"}
        return found | {"seed": self.settings.seed, "resamples": self.settings.resamples} | more

    def describe(self) -> dict[str, Any]:
        """Facts about the clips, for the report."""
        return {
            "name": self.clips.name,
            "split_hash": self.clips.split_hash,
            "simulated": self.simulated,
            "train_clips": len(self.clips.of("train")),
            "test_clips": len(self.test),
            "identities": len({clip.identity for clip in self.test}),
            "frames": self.frames,
            "longest": max(clip.num_frames for clip in self.test),
            "fps": self.fps,
            "size": self.size,
            "estimators": sorted({clip.estimator for clip in self.test}),
            "floor": None if self.openings is None else self.pairing.floor,
        }


def recomposed(
    clips: SimulatedClips, clip_id: str, emotion: str, alpha: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Exact coefficients of a simulated clip whose emotion is replaced, while its speech and its motion stay.

    Args:
        clips: Simulated clips.
        clip_id: The clip.
        emotion: Name of the new emotion.
        alpha: Its intensity, a number or (T,).

    Returns:
        Expression (T, E) and jaw (T, J), fp32.
    """
    truth = clips.truth[clip_id]
    exp, jaw = clips.head.emotion(emotion)
    strength = np.broadcast_to(np.asarray(alpha, np.float32), len(truth.named))[:, None]
    named = truth.speech + truth.motion
    return (clips.head.mix(named) + strength * exp).astype(np.float32), (truth.speech_jaw + strength * jaw).astype(
        np.float32
    )


def psnr(video: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of a clip in dB; errors below the rounding of 8 bits count as that.

    Args:
        video, truth: uint8 (T, H, W, 3).

    Raises:
        AxisError: The shapes differ.
    """
    return float(-10 * np.log10(max(np.square(_difference(video, truth)).mean(), _ROUNDING)))


def mouth_rmse(video: np.ndarray, truth: np.ndarray, boxes: np.ndarray) -> float:
    """Root mean square error of a clip within its mouth boxes.

    Args:
        video, truth: uint8 (T, H, W, 3).
        boxes: (T, 4) Left, top, right and bottom, pixels.

    Raises:
        AxisError: The shapes differ, or a box lies outside its frame.
    """
    errors = np.square(_difference(video, truth))
    inside = [
        frame[rows, columns].ravel() for frame, (rows, columns) in zip(errors, _slices(boxes, video), strict=True)
    ]
    return float(np.sqrt(np.concatenate(inside).mean()))


def box_darkness(video: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Darkness of the mouth box of each frame, 1 - mean grey, which stands for the opening where no truth is known.

    Args:
        video: uint8 (T, H, W, 3).
        boxes: (T, 4) Left, top, right and bottom, pixels.

    Returns:
        (T,) fp64 in [0, 1].

    Raises:
        AxisError: A box lies outside its frame.
    """
    grey = video / 255.0 @ np.array(_GREY)
    return np.array([1 - frame[cut].mean() for frame, cut in zip(grey, _slices(boxes, video), strict=True)])


def _difference(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if video.shape != truth.shape or video.dtype != np.uint8 or truth.dtype != np.uint8:
        raise AxisError(
            f"expected uint8 videos of one shape, got {video.dtype} {video.shape} and {truth.dtype} {truth.shape}"
        )
    return video / 255.0 - truth / 255.0


def _slices(boxes: np.ndarray, video: np.ndarray) -> list[tuple[slice, slice]]:
    """Rows and columns of each box, at least one pixel each."""
    height, width = video.shape[1:3]
    found = []
    for left, top, right, bottom in np.asarray(boxes, dtype=np.float64):
        x, y = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
        end_x, end_y = min(width, int(np.ceil(right))), min(height, int(np.ceil(bottom)))
        if end_x <= x or end_y <= y:
            raise AxisError(f"expected a mouth box within {width} x {height} pixels, got {(left, top, right, bottom)}")
        found.append((slice(y, end_y), slice(x, end_x)))
    return found
