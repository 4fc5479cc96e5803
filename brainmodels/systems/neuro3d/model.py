"""The encoder of Neuro-3D: EEG to a geometry and an appearance feature of the object, and to its class and colour.

    encoder = FusionEncoder({"static": StreamShape(64, 250, 250.0, 0.0)}, EncoderSize(), 192, 24, 6)
    found = encoder({"static": trials})  # .geometry (B, 192), .appearance (B, 192), .shape (B, 24), .color (B, 6)

`OfficialEncoder` has the layers of the released code. Paper: Neuro-3D, arXiv 2411.12248. The networks that make clouds
are `brainmodels.nn.points.PointTransformer`.

Shapes: B trials, C channels, T times, L tokens, W width, d width of a feature, K classes, Q colours.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...baselines.courses import SignalFilters
from ...errors import AxisError, BrainDataError
from .recipes import EncoderSize

__all__ = ["Encoded", "FusionEncoder", "OfficialEncoder", "StreamShape", "build_encoder"]

VIDEO_DELAY = 1.0  # seconds from the onset of the picture to that of the video
_WAVES = 16  # sinusoids of the time of a token


class StreamShape(NamedTuple):
    """What an encoder knows of the trials of a stream.

    Attributes:
        channels, times: C and T.
        sfreq: Sampling rate in hertz.
        start: Time of the first sample in seconds from the onset of the picture.
    """

    channels: int
    times: int
    sfreq: float
    start: float


class Encoded(NamedTuple):
    """What an encoder says of trials.

    Attributes:
        geometry, appearance: (B, d) Features of the object's shape and of its colours, of any length.
        shape: (B, K) Logits of the classes.
        color: (B, Q) Logits of the colours; Q is 0 without labels of colours.
    """

    geometry: Tensor
    appearance: Tensor
    shape: Tensor
    color: Tensor


def build_encoder(
    streams: Mapping[str, StreamShape], size: EncoderSize, width: int, num_classes: int, num_colors: int
) -> "FusionEncoder | OfficialEncoder":
    """The encoder of a recipe.

    Args:
        streams: Shapes of the trials by stream.
        size: Sizes and variant.
        width: Width d of the features.
        num_classes, num_colors: K and Q; Q may be 0.

    Raises:
        BrainDataError: The recipe asks for other streams, or a token is no whole number of samples.
    """
    if set(streams) != set(size.streams):
        raise BrainDataError(f"expected streams {', '.join(size.streams)} of the recipe, got {', '.join(streams)}")
    streams = {name: streams[name] for name in size.streams}
    kind = {"fusion": FusionEncoder, "official": OfficialEncoder}[size.variant]
    return kind(streams, size, width, num_classes, num_colors)


class FusionEncoder(nn.Module):
    """Encoder whose tokens are courses in time that carry signal, or spans of time.

    Fixed filters, which `set_filters` takes, whiten the channels and give the courses, see `SignalFilters`. A linear of
    the channels makes a token of each, and transformer layers may follow. Spans come from a convolution in time
    instead, and know their seconds since the onset of the picture. With `fusion="cross"` the tokens of the picture
    attend to those of the video. A linear over all tokens gives what the heads read.

    Args:
        streams: Shapes of the trials by stream.
        size: Sizes.
        width: Width d of the features.
        num_classes, num_colors: K and Q; Q may be 0.

    Raises:
        BrainDataError: A token is no whole number of samples, or does not divide T.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamShape],
        size: EncoderSize,
        width: int,
        num_classes: int,
        num_colors: int,
    ):
        super().__init__()
        self.size, self.names = size, tuple(streams)
        kind = _Spans if size.components is None else _Courses
        embed: dict[str, Any] = {name: kind(stream, size, size.token(name)) for name, stream in streams.items()}
        tokens = {name: stream.num_tokens for name, stream in embed.items()}
        self.embed = nn.ModuleDict(embed)
        self.cross = None
        if size.fusion == "cross" and len(streams) == 2:
            self.cross = _Cross(size)
            tokens = {self.names[0]: tokens[self.names[0]]}
        self.pools = nn.ModuleDict({name: _Pool(count, size) for name, count in tokens.items()})
        hidden = size.hidden
        self.geometry, self.appearance = _head(hidden, width, size.dropout), _head(hidden, width, size.dropout)
        self.shape, self.color = nn.Linear(hidden, num_classes), _color_head(hidden, num_colors)
        inputs = sum(stream.channels * (size.components or 0) for stream in streams.values()) if size.stack else 0
        self.votes = nn.ModuleDict({"class": _Votes(inputs, num_classes), "color": _Votes(inputs, num_colors)})

    def set_filters(self, filters: Mapping[str, SignalFilters]) -> None:
        """Take the fixed filters of the streams."""
        for name, stream in self.embed.items():
            for key in ("channels", "times"):
                if isinstance(buffer := getattr(stream, f"fixed_{key}", None), Tensor):
                    buffer.copy_(torch.from_numpy(getattr(filters[name], key)))

    def forward(self, trials: Mapping[str, Tensor]) -> Encoded:
        """Encode trials.

        Args:
            trials: (B, C, T) by stream.

        Raises:
            AxisError: A stream is missing or has another shape.
        """
        tokens = {name: self.embed[name](_checked(trials, name)) for name in self.names}
        if self.cross is not None:
            first, second = self.names
            tokens = {first: self.cross(tokens[first], tokens[second])}
        pooled = sum(self.pools[name](value) for name, value in tokens.items())  # (B, hidden)
        shape, color = self.shape(pooled), self.color(pooled)
        if self.size.stack:
            embed: Any = self.embed
            courses = torch.cat([embed[name].filtered(trials[name]).flatten(1) for name in self.names], 1)
            shape, color = self.votes["class"](courses, shape), self.votes["color"](courses, color)
        return Encoded(self.geometry(pooled), self.appearance(pooled), shape, color)


class _Courses(nn.Module):
    """Trials (B, C, T) to one token for each of k fixed courses in time, (B, k, W)."""

    fixed_channels: Tensor
    fixed_times: Tensor

    def __init__(self, stream: StreamShape, size: EncoderSize, seconds: float):
        super().__init__()
        assert size.components is not None  # of an encoder on courses
        self.shape, self.num_tokens = (stream.channels, stream.times), size.components
        self.register_buffer("fixed_channels", torch.eye(stream.channels))
        self.register_buffer("fixed_times", torch.zeros(stream.times, size.components))
        self.channels = nn.Linear(stream.channels, size.width)
        self.which = nn.Parameter(torch.zeros(size.components, size.width))
        self.layers = nn.ModuleList([_layer(size) for _ in range(size.depth)])

    def filtered(self, trials: Tensor) -> Tensor:
        """White channels in each course, (B, k, C)."""
        _check_shape(trials, self.shape)
        return (trials @ self.fixed_times).transpose(1, 2) @ self.fixed_channels

    def forward(self, trials: Tensor) -> Tensor:
        x = self.channels(self.filtered(trials)) + self.which
        for layer in self.layers:
            x = layer(x)
        return x


class _Votes(nn.Module):
    """Answers of the network joined with those of a ridge on the courses: a weighted geometric mean of probabilities.

    Without `set`, the share of the ridge is 0.

    Args:
        width: Number p of values in the courses of a trial.
        count: Number K of answers.
    """

    weight: Tensor
    bias: Tensor
    share: Tensor

    def __init__(self, width: int, count: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(width, count))
        self.register_buffer("bias", torch.zeros(count))
        self.register_buffer("share", torch.zeros(()))

    def forward(self, courses: Tensor, logits: Tensor) -> Tensor:
        """Join logits (B, K) with those of courses (B, p)."""
        ridge = (courses @ self.weight + self.bias).log_softmax(1)
        return torch.lerp(logits.log_softmax(1), ridge, self.share) if logits.shape[1] else logits


class _Spans(nn.Module):
    """Trials (B, C, T) to one token for each span of time, (B, L, W)."""

    fixed_channels: Tensor
    when: Tensor

    def __init__(self, stream: StreamShape, size: EncoderSize, seconds: float):
        super().__init__()
        stride = round(seconds * stream.sfreq)
        if stride < 1 or stream.times % stride:
            raise BrainDataError(
                f"expected tokens that divide {stream.times} samples at {stream.sfreq:g} Hz, got {seconds:g} s, which "
                f"is {stride} samples"
            )
        self.shape, self.stride, self.num_tokens = (stream.channels, stream.times), stride, stream.times // stride
        self.register_buffer("fixed_channels", torch.eye(stream.channels))
        self.channels = nn.Linear(stream.channels, size.width)
        self.times = nn.Conv1d(size.width, size.width, 2 * stride, stride)
        centres = stream.start + (torch.arange(self.num_tokens) + 0.5) * stride / stream.sfreq  # seconds
        periods = torch.logspace(-1, 1, _WAVES // 2)  # 0.1 s to 10 s
        angles = 2 * torch.pi * centres[:, None] / periods  # (L, waves / 2)
        self.register_buffer("when", torch.cat((angles.sin(), angles.cos()), 1), persistent=False)  # (L, waves)
        self.place = nn.Linear(_WAVES, size.width, bias=False)
        self.layers = nn.ModuleList([_layer(size) for _ in range(size.depth)])

    def forward(self, trials: Tensor) -> Tensor:
        _check_shape(trials, self.shape)
        x = self.channels(trials.transpose(1, 2) @ self.fixed_channels)  # (B, T, W)
        margin = self.stride // 2, self.stride - self.stride // 2
        x = self.times(F.pad(x.transpose(1, 2), margin)).transpose(1, 2)  # (B, L, W)
        x = x + self.place(self.when)
        for layer in self.layers:
            x = layer(x)
        return x


class _Cross(nn.Module):
    """The first stream's tokens attend to the second's, then exchange with their neighbours in time."""

    def __init__(self, size: EncoderSize):
        super().__init__()
        width = size.width
        self.norm, self.norm_other, self.norm_conv = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, size.heads, dropout=size.dropout, batch_first=True)
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        other = self.norm_other(second)
        x = first + self.attention(self.norm(first), other, other, need_weights=False)[0]  # (B, L, W)
        return x + F.gelu(self.conv(self.norm_conv(x).transpose(1, 2))).transpose(1, 2)


class _Pool(nn.Module):
    """A linear of all tokens (B, L, W) to (B, hidden), through a few components of each where `pooled` says so."""

    def __init__(self, num_tokens: int, size: EncoderSize):
        super().__init__()
        width = size.width if size.pooled is None else size.pooled
        self.reduce = nn.Identity() if size.pooled is None else nn.Linear(size.width, width)
        self.drop = nn.Dropout(size.dropout)
        self.out = nn.Linear(num_tokens * width, size.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.drop(self.reduce(tokens).flatten(1)))


def _layer(size: EncoderSize) -> nn.TransformerEncoderLayer:
    options = {"dropout": size.dropout, "activation": "gelu", "batch_first": True, "norm_first": True}
    return nn.TransformerEncoderLayer(size.width, size.heads, 4 * size.width, **options)


def _head(hidden: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
    )


class _NoColors(nn.Module):
    """No logits, (B, 0), where objects have no labels of colours."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


def _color_head(width: int, num_colors: int) -> nn.Module:
    return nn.Linear(width, num_colors) if num_colors else _NoColors()


def _check_shape(trials: Tensor, shape: tuple[int, int]) -> None:
    if trials.shape[1:] != shape:
        raise AxisError(f"expected trials (B, {shape[0]}, {shape[1]}), got {tuple(trials.shape)}")


def _checked(trials: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in trials:
        raise AxisError(f"expected trials of the stream {name}, got {', '.join(trials) or 'none'}")
    return trials[name]


class OfficialEncoder(nn.Module):
    """Encoder with the layers and numbers of the released code, each layer once.

    Tokens are samples. A post-norm transformer layer with one head and a linear over time take each stream to 250
    tokens. The picture's attend to the video's. Three convolutions turn channels into rows, which are summed by weight.

    Args:
        streams: Shapes of the trials of both streams.
        size: `official_norm` "time" normalises over time, as the release does, and "rows" over the rows. `gelu_last`
            ends the heads in a GELU, so that no feature is below -0.17.
        width: Width d of the features.
        num_classes, num_colors: K and Q; Q may be 0.
    """

    tokens, ffn = 250, 2048

    def __init__(
        self,
        streams: Mapping[str, StreamShape],
        size: EncoderSize,
        width: int,
        num_classes: int,
        num_colors: int,
    ):
        super().__init__()
        self.names, L = tuple(streams), self.tokens
        if len(streams) != 2:
            raise BrainDataError(f"expected both streams for the official encoder, got {', '.join(streams)}")
        C = next(iter(streams.values())).channels
        layer = {"batch_first": True, "dropout": 0.1}
        self.layers = nn.ModuleDict({name: nn.TransformerEncoderLayer(C, 1, self.ffn, **layer) for name in streams})
        self.over_time = nn.ModuleDict({name: nn.Linear(stream.times, L) for name, stream in streams.items()})
        for name, stream in streams.items():
            self.register_buffer(f"when_{name}", _sample_code(stream.times, C), persistent=False)
        self.attention = nn.MultiheadAttention(C, 1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.norms = nn.ModuleList([nn.LayerNorm(C), nn.LayerNorm(C)])
        self.convs = nn.ModuleList([nn.Conv1d(width_in, L, 3, padding=1) for width_in in (C, L, L)])
        self.conv_norms = nn.ModuleList([nn.LayerNorm(L) for _ in self.convs])
        self.over_rows = size.official_norm == "rows"
        self.skip = nn.Conv1d(C, L, 1)
        self.expand, self.sum_rows = nn.Linear(L, width), nn.Linear(L, 1)
        self.geometry, self.appearance = (_official_head(width, size.gelu_last) for _ in range(2))
        self.shape, self.color = nn.Linear(width, num_classes), _color_head(width, num_colors)
        self.logit_scale = nn.Parameter(torch.tensor(4.605))  # log(100), of the contrast

    def forward(self, trials: Mapping[str, Tensor]) -> Encoded:
        """Encode trials (B, C, T) of both streams."""
        static, dynamic = (self._tokens(_checked(trials, name), name) for name in self.names)  # (B, 250, C)
        x = self.norms[0](static + self.attention(static, dynamic, dynamic, need_weights=False)[0])
        x = self.norms[1](x + self.mlp(x)).transpose(1, 2)  # (B, C, 250)
        rows = x
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            rows = F.gelu(conv(rows))  # (B, 250 rows, 250 times)
            rows = norm(rows.transpose(1, 2)).transpose(1, 2) if self.over_rows else norm(rows)
        rows = self.expand(rows + self.skip(x))  # (B, 250, d)
        pooled = self.sum_rows(rows.transpose(1, 2)).squeeze(2)  # (B, d)
        geometry, appearance = self.geometry(pooled), self.appearance(pooled)
        return Encoded(geometry, appearance, self.shape(geometry), self.color(appearance))

    def _tokens(self, trials: Tensor, name: str) -> Tensor:
        x = self.layers[name](trials.transpose(1, 2) + getattr(self, f"when_{name}"))  # (B, T, C)
        return self.over_time[name](x.transpose(1, 2)).transpose(1, 2)  # (B, 250, C)


def _official_head(width: int, gelu_last: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LayerNorm(width), nn.Linear(width, width)]
    return nn.Sequential(*layers, *([nn.GELU()] if gelu_last else []), nn.Dropout(0.25))


def _sample_code(count: int, width: int) -> Tensor:
    """Sinusoids (count, width) of the numbers of samples, sines and cosines in turn."""
    angles = torch.arange(count)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)  # (count, ceil(width / 2))
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[:, :width]
