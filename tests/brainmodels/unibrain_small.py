"""Generators of UniBrain that several test files share, made once a process."""

import functools
from dataclasses import replace

from brainmodels.features import extractor
from brainmodels.simulated import scene_stimuli
from brainmodels.systems.unibrain import generator_named, load_generator
from brainmodels.systems.unibrain.nano import GeneratorSize, NanoGenerator
from brainmodels.systems.unibrain.words import Vocabulary

shipped = functools.cache(load_generator)
context = functools.cache(lambda: extractor("veca_nano_patch8", pretrained=True))


def short_recipe(scenes=64, steps=40):
    """A recipe of a few seconds, which tests the wiring alone."""
    tiny = generator_named("tiny")
    stages = {name: replace(getattr(tiny, name), steps=steps, batch_size=32) for name in ("captions", "tower", "flow")}
    size = replace(tiny.size, flow_width=24, flow_depth=1, flow_heads=2, context_width=32, text_width=32)
    return replace(tiny, name="short", size=size, scenes=scenes, drawer_steps=8, **stages)


@functools.cache
def untrained():
    """A generator with random weights and the vocabulary of drawn scenes."""
    scenes = scene_stimuli(0, 80)
    texts = [text for name in scenes.ids for text in scenes.captions(str(name))[1:]]
    size = GeneratorSize(flow_width=24, flow_heads=2, flow_depth=2)
    return NanoGenerator(size, Vocabulary.of(texts, size.length), context()).eval()


def forms(seed, count, form):
    """Captions of one form of scenes of a seed."""
    scenes = scene_stimuli(seed, count)
    return [scenes.captions(str(name))[form] for name in scenes.ids]
