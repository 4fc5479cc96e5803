"""A decoded emotion moves a talking head: a demonstration on a simulated, linear subject.

    found = brain_demo(animate=lambda source: model.animate(image, audio, emotion=source))
    print(found)

**Interface and synthetic demonstration. No source known to us decodes emotion from brain signals into a talking head;
this is not evidence that it can be done.**
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.clips import EMOTIONS
from ...errors import BrainDataError
from ...metrics.controls import Runs, prior_only, shuffled_pairing
from ...metrics.statistics import RESAMPLES, Chance, permutation_chance
from .model import NEUTRAL
from .sources import BRAIN_NOTE, EmotionSource

__all__ = ["BrainDemo", "brain_demo"]

_LEVELS = (1 / 3, 2 / 3, 1.0)  # intensities of the stills
_SEEDS = tuple(range(10))  # of each control


@dataclass(frozen=True, eq=False)
class BrainDemo:
    """What `brain_demo` found.

    Attributes:
        snr_scale: Factor of the signal of every voxel.
        values: "correlation", the mean over emotions of Pearson's r of decoded and true intensity over the test stills.
            "emotion_accuracy", the share of test stills whose largest decoded number is that of their emotion.
        chance: Chance of both from permuted pairs.
        controls: "prior_only", mixtures drawn from the train stills, and "shuffled_pairing", decoders fitted to wrong
            pairs; each with both values.
        source: The emotion that was decoded from the first test still.
        animation: What the argument `animate` returned, or None.
        note: What this is, and what it is not.
    """

    snr_scale: float
    values: Mapping[str, float]
    chance: Mapping[str, Chance]
    controls: Mapping[str, Runs]
    source: EmotionSource
    animation: Any
    note: str = BRAIN_NOTE

    def at_chance(self, name: str) -> bool:
        """Whether "correlation" or "emotion_accuracy" lies within its chance interval."""
        interval = self.chance[name].interval
        return interval.low <= self.values[name] <= interval.high

    def __str__(self) -> str:
        lines = [self.note, f"snr_scale {self.snr_scale:g}"]
        for name, value in self.values.items():
            interval = self.chance[name].interval
            place = "inside" if self.at_chance(name) else "outside"
            lines.append(f"{name:17} {value:6.3f}   {place} chance, {interval.low:.3f} to {interval.high:.3f}")
            lines += [f"  {control:15} {runs.mean(name):6.3f}" for control, runs in self.controls.items()]
        return "\n".join(lines)


def brain_demo(
    voxels: int = 120,
    train: int = 480,
    test: int = 140,
    snr_scale: float = 1.0,
    seed: int = 0,
    permutations: int = RESAMPLES,
    animate: Callable[[EmotionSource], Any] | None = None,
) -> BrainDemo:
    """Decode emotions from a simulated subject by ridge regression, and animate a head with one of them.

    **Interface and synthetic demonstration. No source known to us decodes emotion from brain signals into a talking
    head; this is not evidence that it can be done.**

    A still has one emotion at intensity 1/3, 2/3 or 1; neutral is left out, as its mixture is zero. A voxel responds
    linearly to the 8 numbers of the mixture, with noise. The decoder is `brainmodels.baselines.Ridge` from responses to
    mixtures.

    Args:
        voxels: Number of voxels.
        train, test: Numbers of stills.
        snr_scale: Factor of the signal of every voxel, 0 or more. 0 gives noise only.
        seed: Seed of the subject, the stills and the permutations.
        permutations: Number of permutations for the chance levels.
        animate: Called with the emotion decoded from the first test still; None animates nothing.

    Raises:
        BrainDataError: `snr_scale` is negative.
    """
    from ...baselines import Ridge

    if snr_scale < 0:
        raise BrainDataError(f"expected snr_scale of 0 or more, got {snr_scale}")
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(len(EMOTIONS), voxels)) * rng.gamma(2, 0.25, voxels)  # voxels differ in reliability
    seen, shown = _stills(rng, train), _stills(rng, test)
    responses, new = (
        (snr_scale * (stills @ weights) + rng.normal(size=(len(stills), voxels))).astype(np.float32)
        for stills in (seen, shown)
    )

    def fitted(order: np.ndarray) -> Ridge:
        return Ridge(cv=5, device="cpu").fit(responses[order], seen)

    decoder = fitted(np.arange(train))
    decoded = decoder.predict(new)
    values = _scores(decoded, shown)
    chance = {
        name: permutation_chance(
            lambda order, name=name: _scores(decoded[order], shown)[name], test, permutations, seed, observed=value
        )
        for name, value in values.items()
    }

    def drawn(draw: int) -> Mapping[str, float]:
        return _scores(seen[np.random.default_rng((seed, draw)).integers(train, size=test)], shown)

    controls = {
        "prior_only": prior_only(drawn, _SEEDS),
        "shuffled_pairing": shuffled_pairing(lambda order: _scores(fitted(order).predict(new), shown), train, _SEEDS),
    }
    source = EmotionSource.from_brain(decoder, new[0], limit=1.0)
    return BrainDemo(snr_scale, values, chance, controls, source, None if animate is None else animate(source))


def _stills(rng: np.random.Generator, count: int) -> np.ndarray:
    """Mixtures fp32 (count, 8): intensity times one-hot emotion, all emotions about equally often."""
    labels = rng.permutation(np.resize([k for k in range(len(EMOTIONS)) if k != NEUTRAL], count))
    found = np.zeros((count, len(EMOTIONS)), np.float32)
    found[np.arange(count), labels] = rng.choice(_LEVELS, count)
    return found


def _scores(decoded: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Correlation and accuracy over the emotions but neutral, whose column is always 0."""
    decoded, true = (np.delete(np.asarray(x, np.float64), NEUTRAL, 1) for x in (decoded, true))
    a, b = (x - x.mean(0) for x in (decoded, true))
    spread = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    r = np.divide((a * b).sum(0), spread, out=np.zeros(a.shape[1]), where=spread > 1e-9)
    hits = decoded.argmax(1) == true.argmax(1)
    return {"correlation": float(r.mean()), "emotion_accuracy": float(hits.mean())}
