"""What a fit of EmoDiffHead refuses before it learns anything, and how provenance tells an intensity."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.systems.emodiffhead.fitting import STAGES, LearnedScales, clips_of_stages
from brainmodels.systems.emodiffhead.motion import as_told
from brainmodels.systems.emodiffhead.sources import EmotionSource
from tests.brainmodels.head_fits import RATE, SMALL, fitted, picture, small, small_clips, speech


def test_clips_and_stages_that_do_not_fit():
    clips = small_clips().of("train")
    used, skipped = clips_of_stages(clips, STAGES, 16)
    assert used == {"expression": clips, "render": clips} and skipped == {"expression": {}, "render": {}}
    with pytest.raises(IdError, match="expected clips with ids of their own, got 'train_0000' twice"):
        clips_of_stages([*clips, clips[0]], STAGES, 16)
    for stages in ((), ("sound",)):
        with pytest.raises(BrainDataError, match="expected a stage to be one of expression, render, got"):
            clips_of_stages(clips, stages, 16)


def test_clips_of_two_rates_or_of_another_head_are_refused():
    first, second, *_ = small_clips().of("train")
    head = small_clips().head
    slower = replace(second, fps=20, audio=np.zeros(16 * RATE // 20, np.float32))
    with pytest.raises(BrainDataError, match=r"expected clips of one frame rate .* got \[20, 25\]"):
        LearnedScales.of([first, slower], SMALL, head)
    wider = [replace(clip, exp=np.pad(clip.exp, ((0, 0), (0, 1)))) for clip in (first, second)]
    with pytest.raises(AxisError, match=r"expected coefficients \(12, 3\) of the head, got \(13, 3\)"):
        LearnedScales.of(wider, SMALL, head)


def test_provenance_tells_the_intensity():
    assert as_told(1) == as_told(np.array(1.0)) == as_told(np.int64(1)) == 1.0
    assert as_told(np.float32(0.5)) == 0.5
    assert as_told(abs) == as_told([0.5, 0.5]) == as_told(np.zeros(3)) == "curve"
    faint = EmotionSource.from_label("happy", alpha=0.25)
    told = (
        small()
        .animate(picture(), speech(), emotion=faint, intensity=np.float32(0.5), sample_rate=RATE, steps=1)
        .provenance
    )
    assert (told["intensity"], told["emotion"]["alpha"], told["emotion"]["emotion"]) == (0.5, 0.25, "happy")


def test_people_with_one_clip_are_told_of(caplog):
    clips = small_clips().of("train")
    alone = replace(clips[0], identity="alone")
    fitted(clips=[alone, *clips[1:]], stages=("render",))
    assert f"1 of {len(clips)} clips are the only one of their person" in caplog.text
    caplog.clear()
    fitted(clips=clips, stages=("render",))
    assert "the only one" not in caplog.text
