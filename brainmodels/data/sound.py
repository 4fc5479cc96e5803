"""Mono sound as arrays: what is accepted, and other sample rates.

audio = to_rate(audio, 44100, 16000)                  # (n,) fp32, without delay
"""

from math import gcd
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import AxisError, BrainDataError, need

__all__ = ["check_rate", "check_sound", "to_rate"]

_LOUDEST = 4.0  # a higher peak is that of integers, since full scale is 1


def to_rate(audio: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample mono sound by `scipy.signal.resample_poly`, without delay.

    Args:
        audio: Samples (n,), floating, full scale is 1.
        rate: Samples per second of `audio`, in hertz.
        new_rate: Samples per second of the result, in hertz.

    Returns:
        Samples (ceil(n new_rate / rate),), fp32. The same samples where the rates are equal.

    Raises:
        AxisError: Not one axis, or no sample.
        BrainDataError: Integer samples, samples that are not finite or far beyond full scale, or a rate that is no
            positive integer.
        ImportError: scipy is not installed.
    """
    audio, rate, new_rate = check_sound(audio), check_rate(rate), check_rate(new_rate)
    if rate == new_rate:
        return audio
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise need("scipy", "resampling sound") from error
    common = gcd(rate, new_rate)
    return resample_poly(audio.astype(np.float64), new_rate // common, rate // common).astype(np.float32)


def check_rate(sample_rate: Any) -> int:
    """The sample rate in hertz as an integer; anything else than a positive integer is a `BrainDataError`."""
    number = isinstance(sample_rate, Integral | float) and not isinstance(sample_rate, bool)
    if not number or sample_rate != sample_rate // 1:  # also infinity and NaN
        raise BrainDataError(f"expected a sample rate in hertz that is an integer, got {sample_rate!r}")
    if sample_rate < 1:
        raise BrainDataError(f"expected a positive sample rate in hertz, got {sample_rate!r}")
    return int(sample_rate)


def check_sound(audio: np.ndarray) -> np.ndarray:
    """Mono samples as fp32 (n,), if they are sound whose full scale is 1.

    Raises:
        AxisError: Not one axis, or no sample.
        BrainDataError: Integer samples, samples that are not finite, or beyond 4 times full scale.
    """
    audio = np.asarray(audio)
    if audio.ndim != 1 or not len(audio):
        raise AxisError(f"expected mono samples of shape (n,), got {audio.shape}; mix channels by their mean")
    if audio.dtype.kind != "f":
        raise BrainDataError(
            f"expected floating samples of full scale 1, got {audio.dtype}; divide 16-bit samples by 32768"
        )
    if not np.isfinite(audio).all():
        raise BrainDataError(f"expected finite samples, got {int((~np.isfinite(audio)).sum())} that are not")
    peak = float(np.abs(audio).max())
    if peak > _LOUDEST:
        raise BrainDataError(f"expected samples of full scale 1, got a peak of {peak:.4g}; divide 16 bits by 32768")
    return audio.astype(np.float32)
