"""Trained renderers on swapped audio: those that see the mouth follow it, the cured one follows the sound."""

from dataclasses import replace

import pytest

from brainmodels.evaluation.heads import HeadSettings, evaluate_heads
from brainmodels.heads import ToyHead
from brainmodels.simulated.talking_head import simulate_clips
from brainmodels.systems.emodiffhead import EmoDiffHead, tiny


def trained(clips, hide):
    recipe = tiny()
    recipe = replace(
        recipe,
        denoiser_size=replace(recipe.denoiser_size, side=16),
        expression=replace(recipe.expression, steps=600),
        render=replace(recipe.render, steps=300),
        size=16,
        portrait_size=16,
        hide=hide,
    )
    return EmoDiffHead(recipe, "cpu", clips.head).fit(clips.of("train"))


@pytest.mark.slow  # six minutes on one core
def test_only_the_mouth_hidden_whole_ends_the_leak():
    clips = simulate_clips(ToyHead(), train=240, test=12, size=16, seed=10)
    models = {
        "sees the mouth": trained(clips, "never"),
        "jaw hidden": trained(clips, "jaw"),
        "mouth heard": trained(clips, "flagged"),
    }
    found = evaluate_heads(models, clips, HeadSettings(num_clips=8, grid_frames=0, resamples=50))
    leak = {name: found.row("sync", name).score("swap_leak").value for name in models}
    assert leak["sees the mouth"] >= 0.15 and leak["jaw hidden"] >= 0.15
    assert abs(leak["mouth heard"]) <= 0.05
