import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from brainmodels.data.stimuli import RenderedImages, StimulusSet
from brainmodels.errors import AxisError, BrainDataError, IdError
from brainmodels.features import ArrayFeatures, extractor
from brainmodels.features.base import Extractor
from brainmodels.features.objects import object_features, with_features
from brainmodels.features.sets import FeatureSet
from veca.data.solids import COLORS, SolidSource, make_solid, solid_id

SOME = ["solid0:00_00", "solid0:27_01", "solid0:63_02", "solid0:45_03", "solid0:08_04"]


class Study:
    """What `with_features` needs of a study."""

    def __init__(self, stimuli, targets=None, grey_targets=None):
        self.stimuli, self.targets, self.grey_targets = stimuli, targets, grey_targets

    def with_targets(self, targets, grey_targets=None):
        return Study(self.stimuli, targets, grey_targets)


class Recorded(SolidSource):
    """Solids that write down what was asked for."""

    def __init__(self, ids):
        super().__init__(ids)
        self.asked = []

    def frames(self, image_id, n, size, grey=False):
        self.asked.append((image_id, n, size, grey))
        return super().frames(image_id, n, size, grey)


def solids(ids=SOME, source=SolidSource):
    return StimulusSet(ids, source(ids))


@pytest.mark.parametrize("word", ["grid", "random_conv"])
@pytest.mark.parametrize("frames, grey", [(3, False), (50, True)], ids=["one batch", "many batches"])
def test_features_are_the_mean_over_all_sides(word, frames, grey):
    found = object_features(solids(), SOME[::-1], word, frames, grey, size=32)
    assert isinstance(found, ArrayFeatures) and found.kinds == ("pooled",)
    for name in SOME[1:3]:
        truth = 0
        for picture in SolidSource([name]).frames(name, frames, 32, grey):
            image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
            truth = truth + extractor(word).encode(image).pooled[0].double().numpy() / frames
        np.testing.assert_allclose(found.get([name])[0], truth, rtol=1e-4, atol=1e-5)
    assert np.abs(found.get([SOME[0]]) - found.get([SOME[1]])).max() > 0.01


def test_pictures_are_drawn_once_and_in_pairs():
    """Coloured and grey pictures of an object follow each other, because their source shares the work of both."""
    source = Recorded(SOME)
    with_features(Study(StimulusSet(SOME, source)), "grid", frames=2, size=24)
    assert source.asked == [(name, 2, 24, grey) for name in SOME for grey in (False, True)]


def test_a_study_gets_both_kinds_of_features():
    study = with_features(Study(solids()), "grid", frames=2, size=48)
    for targets, grey in ((study.targets, False), (study.grey_targets, True)):
        alone = object_features(study.stimuli, SOME, "grid", 2, grey, 48)
        np.testing.assert_array_equal(targets.get(SOME), alone.get(SOME))
        assert (targets.fingerprint, targets.name) == (alone.fingerprint, alone.name)
    assert np.abs(study.targets.get(SOME) - study.grey_targets.get(SOME)).max() > 0.01


def test_names_and_fingerprints_say_what_was_done():
    def made(*args):
        return object_features(solids(SOME[:1]), SOME[:1], *args)

    base = made("grid", 2, False, 24)
    assert base.name == "grid-2x24px-color"
    assert base.fingerprint == f"{extractor('grid').fingerprint()}-2x24px-color"
    assert made("grid", 2, True, 24).fingerprint.endswith("-2x24px-grey")
    others = [("grid", 3, False, 24), ("grid", 2, True, 24), ("grid", 2, False, 25), ("pixels", 2, False, 24)]
    assert len({base.fingerprint, *(made(*args).fingerprint for args in others)}) == 5
    assert made("grid", 2, False, 24).fingerprint == base.fingerprint


def test_grey_features_know_shapes_and_coloured_ones_colours():
    """A ridge probe on VECA's features of six classes, tested on held-out objects."""
    classes = [3, 7, 14, 24, 33, 71]
    ids = [solid_id(0, cls, obj) for cls in classes for obj in range(10)]
    shape = np.repeat(np.arange(6), 10)
    color = np.array([list(COLORS).index(make_solid(cls, obj).color) for cls in classes for obj in range(10)])
    train = np.tile(np.arange(10) < 7, 6)
    study = with_features(Study(solids(ids)), frames=2)
    assert study.targets.fingerprint.startswith(FeatureSet.parse("veca").extractor.fingerprint())

    def accuracy(targets, labels):
        x = targets.get(ids)
        x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)
        probe = RidgeClassifier(alpha=1.0).fit(x[train], labels[train])
        return (probe.predict(x[~train]) == labels[~train]).mean()

    assert accuracy(study.grey_targets, shape) > 0.9
    assert accuracy(study.targets, color) > 0.85
    assert accuracy(study.grey_targets, color) < 0.5


def test_a_source_without_turning_objects_is_named():
    stimuli = StimulusSet(["a"], RenderedImages(1, lambda index, size: np.zeros((size, size, 3), np.uint8), 8))
    message = r"method frames\(id, n, size, grey\), got RenderedImages; pass features that exist, such as study.with_t"
    with pytest.raises(BrainDataError, match=message):
        object_features(stimuli, ["a"], "grid")
    with pytest.raises(BrainDataError, match=message):
        with_features(Study(stimuli), "grid")


def test_bad_arguments_are_named():
    stimuli = solids()
    with pytest.raises(BrainDataError, match="got frames=0 and size=64"):
        object_features(stimuli, SOME, "grid", 0)
    with pytest.raises(BrainDataError, match="got frames=4 and size=0"):
        object_features(stimuli, SOME, "grid", size=0)
    with pytest.raises(BrainDataError, match="got 'gird'; near: grid"):
        object_features(stimuli, SOME, "gird")
    with pytest.raises(IdError, match="got 'solid0:00_05'"):
        object_features(stimuli, ["solid0:00_05"], "grid")
    with pytest.raises(IdError, match="equal rows 0 and 1 of solid0:00_00"):
        object_features(stimuli, SOME[:1] * 2, "grid", 1)
    with pytest.raises(AxisError, match="expected ids of objects, got none"):
        object_features(stimuli, [], "grid")


def test_pictures_of_another_shape_are_named():
    class Wrong(SolidSource):
        def frames(self, image_id, n, size, grey=False):
            return super().frames(image_id, n, size + 1, grey)

    message = r"expected pictures of solid0:00_00 as uint8 \(2, 16, 16, 3\), got uint8 \(2, 17, 17, 3\)"
    with pytest.raises(AxisError, match=message):
        object_features(solids(source=Wrong), SOME, "grid", 2, size=16)


def test_an_extractor_without_pooled_features_is_named(monkeypatch):
    class Tokens(Extractor):
        def settings(self):
            return {}

        def _encode(self, images):
            return images.flatten(2), None

    monkeypatch.setattr(FeatureSet, "parse", lambda word: FeatureSet(word, Tokens("tokens", 8)))
    with pytest.raises(BrainDataError, match="pooled features, got tokens, which has none"):
        object_features(solids(), SOME, "tokens", 1, size=8)
