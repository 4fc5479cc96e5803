"""Small talking heads fitted to drawn clips, made once a process."""

import functools
from dataclasses import replace

import numpy as np

from brainmodels.heads import ToyHead
from brainmodels.simulated.talking_head import drawn_speech, simulate_clips
from brainmodels.systems.emodiffhead import DenoiserSize, EmoDiffHead, GeneratorSize, tiny
from brainmodels.training.recipe import TrainingStage

RATE = 16_000
SMALL = replace(
    tiny(),
    name="small",
    generator_size=GeneratorSize(hidden=16, noise=4),
    denoiser_size=DenoiserSize(side=16, width=8, multipliers=(1, 2), attention=(8,), frames=4),
    expression=TrainingStage(steps=6, lr=2e-3, batch_size=4),
    render=TrainingStage(steps=4, lr=2e-3, batch_size=2),
    size=16,
    window=8,
    syllables="none",
    portrait_size=16,
    steps=2,
)


@functools.cache
def small_clips():
    """Eight train clips of 16 frames, of all eight emotions, and four test clips."""
    return simulate_clips(ToyHead(), train=8, test=4, frames=16, size=16, seed=2)


def fitted(recipe=SMALL, clips=None, head=True, **options):
    """A model fitted from the start."""
    clips = small_clips().of("train") if clips is None else clips
    return EmoDiffHead(recipe, "cpu", small_clips().head if head else None).fit(clips, **options)


@functools.cache
def small():
    """A model of few steps; tests must not change it."""
    return fitted()


def speech(seconds=0.64, seed=5):
    """Drawn speech."""
    return drawn_speech(seed, seconds, RATE)


def picture(seed=3, size=16):
    """A drawn portrait."""
    head = small_clips().head
    identity = head.draw_identity(np.random.default_rng(seed))
    return head.pictures(np.zeros((1, 12), np.float32), identity=identity, size=size)[0]
