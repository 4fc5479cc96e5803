"""Features of sound on the clock of a video: log-mel bands, or a speech model from a local folder.

    extract = audio_features("log_mel")                    # or a folder of wav2vec2, HuBERT, WavLM or Whisper
    found = extract(audio, 16000, fps=25, frames=50)       # (50, 4, 80) fp32
    scale = AudioScale.fit([extract(clip.audio, clip.sample_rate, clip.fps, clip.num_frames) for clip in train])
    scale.apply(found)

Frame k of a video covers the time from k / fps to (k + 1) / fps. It has S feature vectors, whose times are spread
evenly over the frame. `align_to_frames` alone takes features to these times. Any frame rate is resampled.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from veca.hashes import json_digest, weights_hash

from ..data.moments import Moments
from ..data.sound import check_rate, check_sound, to_rate
from ..errors import AlignmentError, AxisError, BrainDataError, LayoutError, need

__all__ = ["AudioFeatures", "AudioModel", "AudioScale", "LogMel", "align_to_frames", "audio_features"]


class MelSettings(NamedTuple):
    """Settings of the log-mel bands. Rates and bands are in hertz, lengths in samples."""

    sample_rate: int = 16000
    window: int = 400
    hop: int = 160
    fft: int = 512
    bands: int = 80
    lowest: float = 0.0
    highest: float = 8000.0
    scale: str = "htk"
    power: float = 1.0
    floor: float = 1e-5
    subframes: int = 4


MEL = MelSettings()
_BLOCK = 64  # spectra that are computed together, always as many: sums of a longer recording then have equal rounding
_TRAINING_ONLY = {"masked_spec_embed"}  # replaces masked sound in training; published checkpoints often lack it


class AudioFeatures(Protocol):
    """What turns sound into features.

    Attributes:
        width: Length D of a feature vector.
        subframes: Number S of vectors a frame.
        fingerprint: 12 hexadecimal digits that change with all that changes the features.
    """

    width: int
    subframes: int
    fingerprint: str

    def __call__(self, audio: np.ndarray, sample_rate: float, fps: float, frames: int) -> np.ndarray: ...


def align_to_frames(features: np.ndarray, times: np.ndarray, fps: float, frames: int, subframes: int) -> np.ndarray:
    """Features at the sub-frames of a video, by linear interpolation in time. They are held at both ends.

    Sub-frame s of frame k lies at (k + (s + 1/2) / S) / fps seconds.

    Args:
        features: (n, D) Features.
        times: (n,) Their times in seconds, ascending.
        fps: Frames a second of the video.
        frames: Number T of frames.
        subframes: Number S of sub-frames a frame.

    Returns:
        fp32 (T, S, D).

    Raises:
        AxisError: Features and times do not fit, or are empty.
        BrainDataError: Times do not ascend, or a count or rate is not positive.
    """
    features, times = np.asarray(features), np.asarray(times, dtype=np.float64)
    if features.ndim != 2 or not len(features) or times.shape != features.shape[:1]:
        raise AxisError(f"expected features (n, D) and times (n,), got {features.shape} and {times.shape}")
    if not (frames >= 1 and subframes >= 1 and fps > 0):
        raise BrainDataError(f"expected frames, sub-frames and fps above 0, got {frames}, {subframes} and {fps}")
    if not (np.diff(times) > 0).all():
        raise BrainDataError("expected times that ascend, got others")
    at = (np.arange(frames * subframes) + 0.5) / (subframes * fps)
    right = np.clip(np.searchsorted(times, at), 1, max(len(times) - 1, 1)) % len(times)
    left = np.maximum(right - 1, 0)
    gap = np.where(right > left, times[right] - times[left], 1)
    share = np.clip((at - times[left]) / gap, 0, 1)[:, None]
    found = (1 - share) * features[left] + share * features[right]  # (T S, D)
    return found.astype(np.float32).reshape(frames, subframes, -1)


class LogMel:
    """Logarithms of mel bands: log(max(M |STFT(x)|, 1e-5)), at 100 Hz and 4 a frame.

    Sound is resampled to 16 kHz. A spectrum has a Hann window of 25 ms, and 80 bands from 0 to 8 kHz on the HTK scale.
    Windows lie inside the sound, so that a longer recording changes no earlier one. Values are not scaled.
    """

    width = MEL.bands
    subframes = MEL.subframes
    fingerprint = json_digest({"features": "log_mel", **MEL._asdict()})

    def __init__(self) -> None:
        try:
            from transformers.audio_utils import mel_filter_bank, window_function
        except ImportError as error:
            raise need("transformers", "log-mel features of sound") from error
        self._window = window_function(MEL.window, "hann")
        self._filters = mel_filter_bank(
            num_frequency_bins=MEL.fft // 2 + 1,
            num_mel_filters=MEL.bands,
            min_frequency=MEL.lowest,
            max_frequency=MEL.highest,
            sampling_rate=MEL.sample_rate,
            norm=None,
            mel_scale=MEL.scale,
        )

    def __repr__(self) -> str:
        return f"LogMel({self.fingerprint})"

    def __call__(self, audio: np.ndarray, sample_rate: float, fps: float, frames: int) -> np.ndarray:
        """Features of a recording.

        Args:
            audio: (n,) Mono sound as floats, full scale is 1. Sound shorter than a window is filled with zeros.
            sample_rate: Samples a second, a whole number.
            fps: Frames a second of the video.
            frames: Number T of its frames, see `frame_count`.

        Returns:
            fp32 (T, 4, 80).

        Raises:
            AxisError: Several channels, or no sample.
            AlignmentError: Sound and video differ in length by more than one frame.
            BrainDataError: Values that are not finite, or whole numbers.
        """
        audio = _at_rate(audio, sample_rate, fps, frames, MEL.sample_rate)
        spectra = self.spectra(audio)
        times = (MEL.window / 2 + MEL.hop * np.arange(len(spectra))) / MEL.sample_rate
        return align_to_frames(spectra, times, fps, frames, self.subframes)

    def spectra(self, audio: np.ndarray) -> np.ndarray:
        """Log-mel bands (n, 80) of sound at 16 kHz. Spectrum i is centred at 12.5 + 10 i milliseconds."""
        from transformers.audio_utils import spectrogram

        window, hop = MEL.window, MEL.hop
        count = 1 + max(len(audio) - window, 0) // hop
        blocks = -(-count // _BLOCK)
        span = (_BLOCK - 1) * hop + window
        audio = np.pad(audio, (0, max(0, (blocks - 1) * _BLOCK * hop + span - len(audio))))
        found = [
            spectrogram(
                audio[start : start + span],
                self._window,
                frame_length=window,
                hop_length=hop,
                fft_length=MEL.fft,
                power=MEL.power,
                center=False,
                mel_filters=self._filters,
                mel_floor=MEL.floor,
                log_mel="log",
            )
            for start in range(0, blocks * _BLOCK * hop, _BLOCK * hop)
        ]
        return np.concatenate(found, 1)[:, :count].T


class AudioModel:
    """Features of a speech model at 50 Hz, 2 a frame: wav2vec2, HuBERT, WavLM, or the encoder of Whisper.

    Preprocessing is that of the folder's preprocessor file. Weights must be complete, since transformers fills missing
    ones with random numbers. Only `masked_spec_embed` may be missing, which nothing but training reads. A recording is
    read in one piece, by Whisper in pieces of its own length.

    Args:
        path: Folder that `save_pretrained` made, with the model and its preprocessor. Nothing is downloaded.
        layer: Number of the hidden state: 0 is the input of the first block, and n the output of the last. Negative
            numbers count from the end. None takes the model's output, which is normalised in some models.
        device: Device of the model.

    Attributes:
        model, extractor: The model and its preprocessor.
        width, subframes, fingerprint: See `AudioFeatures`. The fingerprint is of the weights and not of the path.

    Raises:
        LayoutError: No such folder, files that transformers cannot read, or weights that are missing or have another
            shape.
        BrainDataError: A model of another kind, or a layer that does not exist. When called: an output with an adapter,
            which changes the rate.
    """

    subframes = 2

    def __init__(self, path: str | Path, layer: int | None = None, device: str | torch.device = "cpu"):
        self.path, self.layer = Path(path), layer
        self.model, self.extractor = _load(self.path)
        self.device = torch.device(device)
        self.model = self.model.eval().requires_grad_(False).to(self.device)
        for name, weight in self.model.named_parameters():
            if _last(name) in _TRAINING_ONLY:
                weight.zero_()  # random where it was missing, and part of the fingerprint
        config = self.model.config
        self._whisper = config.model_type == "whisper"
        self.sample_rate = int(self.extractor.sampling_rate)
        if self._whisper:
            self.hop, self.field = 2 * int(self.extractor.hop_length), 0
            depth = config.encoder_layers
        elif hasattr(config, "conv_stride"):
            self.hop, self.field = _receptive_field(config.conv_kernel, config.conv_stride)
            depth = config.num_hidden_layers
        else:
            raise BrainDataError(
                f"expected a wav2vec2, HuBERT, WavLM or Whisper model in {self.path}, got {config.model_type}"
            )
        if layer is not None and not -depth - 1 <= layer <= depth:
            raise BrainDataError(f"expected a layer of {self.path} from 0 to {depth}, got {layer}")
        self.width = int(config.d_model if self._whisper else config.hidden_size)
        self.fingerprint = self._digest()

    def __repr__(self) -> str:
        return f"AudioModel({self.path.name}, {self.model.config.model_type}, {self.width} wide, {self.fingerprint})"

    def __call__(self, audio: np.ndarray, sample_rate: float, fps: float, frames: int) -> np.ndarray:
        """Features fp32 (T, 2, D) of a recording. Arguments and errors are those of `LogMel`."""
        audio = _at_rate(audio, sample_rate, fps, frames, self.sample_rate)
        found = self._hear(audio) if self._whisper else self._read(audio)
        times = (self.field / 2 + self.hop * np.arange(len(found))) / self.sample_rate
        return align_to_frames(found, times, fps, frames, self.subframes)

    def _read(self, audio: np.ndarray) -> np.ndarray:
        audio = np.pad(audio, (0, max(0, self.field - len(audio))))
        inputs = self.extractor(audio, sampling_rate=self.sample_rate, return_tensors="pt")
        states, expected = self._states(self.model, inputs.input_values)[0], 1 + (len(audio) - self.field) // self.hop
        if len(states) != expected:
            raise BrainDataError(
                f"expected {expected} states from {self.path} without an adapter, got {len(states)}; choose a layer, "
                "whose states come before the adapter"
            )
        return states

    def _hear(self, audio: np.ndarray) -> np.ndarray:
        """Hidden states of Whisper, which reads pieces of one length only."""
        size, found = int(self.extractor.n_samples), []
        for start in range(0, len(audio), size):
            piece = audio[start : start + size]
            inputs = self.extractor(piece, sampling_rate=self.sample_rate, return_tensors="pt")
            states = self._states(self.model.get_encoder(), inputs.input_features)[0]
            found.append(states[: max(1, -(-len(piece) // self.hop))])
        return np.concatenate(found)

    @torch.inference_mode()
    def _states(self, model: Any, inputs: torch.Tensor) -> np.ndarray:
        """Hidden states (1, n, D)."""
        out = model(inputs.to(self.device, torch.float32), output_hidden_states=self.layer is not None)
        states = out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]
        return states.float().cpu().numpy()

    def _digest(self) -> str:
        config = self.model.config.to_diff_dict()
        for name in ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"):
            config.pop(name, None)
        preprocessor = self.extractor.to_dict()
        content = {
            "config": config,
            "preprocessor": {name: value for name, value in preprocessor.items() if name != "mel_filters"},
            "layer": self.layer,
            "weights": weights_hash(self.model),
            "subframes": self.subframes,
        }
        return json_digest(content)


def audio_features(word: str | Path) -> AudioFeatures:
    """`LogMel` for "log_mel", and the `AudioModel` of a folder otherwise."""
    return LogMel() if str(word) == "log_mel" else AudioModel(word)


class AudioScale:
    """Standardised features: z = (x - mean) / std of each of the D numbers, over all frames and sub-frames.

    The std is that of the population. A number that is constant has std 1.

    Attributes:
        mean, std: fp32 (D,).
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray):
        self.mean, self.std = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise AxisError(f"expected mean and std (D,), got {self.mean.shape} and {self.std.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise BrainDataError("expected a finite mean and a finite std above 0, got others")

    @classmethod
    def fit(cls, features: Iterable[np.ndarray]) -> "AudioScale":
        """The scale of the features (T, S, D) of the train clips.

        Raises:
            BrainDataError: No features, or features that are not finite.
            AxisError: Features of several widths.
        """
        arrays = list(features)
        if not arrays:
            raise BrainDataError("expected features of one clip or more to scale, got none")
        shapes = {array.shape[-1:] for array in arrays}
        if len(shapes) > 1:
            raise AxisError(f"expected features (T, S, D) of one width, got {sorted(shapes)}")
        found = Moments.of(array.reshape(-1, array.shape[-1]) for array in arrays)
        std = np.sqrt(found.variance)
        constant = std <= 1e-7 * np.maximum(np.abs(found.mean), 1e-7)
        return cls(found.mean, np.where(constant, 1, std))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Scaled features, fp32 (..., D). Another width is an `AxisError`."""
        if features.shape[-1:] != self.mean.shape:
            raise AxisError(f"expected features of width {len(self.mean)}, got {features.shape}")
        return ((features - self.mean) / self.std).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """The scale as arrays, for `np.savez` or safetensors."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "AudioScale":
        """The scale that has this `state`."""
        return cls(np.asarray(state["mean"]), np.asarray(state["std"]))


def _at_rate(audio: np.ndarray, sample_rate: float, fps: float, frames: int, rate: int) -> np.ndarray:
    """Checked sound at another rate, whose length fits that of the video."""
    audio, sample_rate = check_sound(audio), check_rate(sample_rate)
    seconds, video = len(audio) / sample_rate, frames / fps
    if abs(seconds - video) > 1 / fps + 1e-9:
        raise AlignmentError(
            f"expected audio of {video:.3f} s for {frames} frames at {fps:g} fps, within one frame, got {seconds:.3f} s"
        )
    return to_rate(audio, sample_rate, rate)


def _receptive_field(kernels: Iterable[int], strides: Iterable[int]) -> tuple[int, int]:
    """Step and length in samples of what one output of a stack of convolutions sees."""
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return hop, field


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _load(folder: Path) -> tuple[Any, Any]:
    """Model and preprocessor of a folder, complete or not at all."""
    try:
        from transformers import AutoFeatureExtractor, AutoModel
    except ImportError as error:
        raise need("transformers", "a speech model") from error
    if not folder.is_dir():
        raise LayoutError(
            f"expected 'log_mel' or the folder of a speech model, got {str(folder)!r}, which is no folder"
        )
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model, info = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise LayoutError(f"expected a speech model and its preprocessor in {folder}, got: {error}") from error
    missing = {name for name in info["missing_keys"] if _last(name) not in _TRAINING_ONLY}
    changed = {name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]}
    for text, names in (("no", missing), ("other shapes of", changed)):
        if names:
            raise LayoutError(
                f"expected all weights of a {model.config.model_type} model in {folder}, got {text} {min(names)} "
                f"({len(names)} in all)"
            )
    return model, extractor
