"""EMOdiffhead: a talking head with a chosen emotion and intensity, from a picture and a recording.

    model = EmoDiffHead("tiny", head=ToyHead()).fit(clips.of("train"))
    model.animate(image, audio, emotion="happy", intensity=0.8, sample_rate=16_000).save("happy.mp4")

Animate only people who agreed; see README.md.
"""

from .estimator import EmoDiffHead
from .motion import RidgeSpeech
from .recipes import DenoiserSize, EmoDiffHeadRecipe, GeneratorSize, full, named, nano, tiny
from .sources import BRAIN_NOTE, EmotionSource

__all__ = [
    "BRAIN_NOTE",
    "DenoiserSize",
    "EmoDiffHead",
    "EmoDiffHeadRecipe",
    "EmotionSource",
    "GeneratorSize",
    "RidgeSpeech",
    "full",
    "named",
    "nano",
    "tiny",
]
