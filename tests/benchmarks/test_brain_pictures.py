"""The judge of pictures: what its probe reads of new scenes, and what its distances are."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from benchmarks.brain_pictures import Probe, cosines, kid_of
from brainmodels.simulated import scene_stimuli


def test_the_probe_reads_colour_and_size_of_new_scenes_and_nothing_of_noise():
    probe, new = Probe(500), scene_stimuli(91, 40)
    read = probe.labels(probe.seen(new.images(new.ids, 64)))
    right = {name: np.mean(read[name] == np.asarray(new.label(name, new.ids))) for name in ("shape", "color", "size")}
    assert right["shape"] >= 0.6 and right["color"] >= 0.8 and right["size"] >= 0.7, right  # chance .125, .125, .33
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    read = probe.labels(probe.seen(noise))
    assert np.mean(read["color"] == np.asarray(new.label("color", new.ids))) < 0.4


def test_distances_of_features():
    rng = np.random.default_rng(1)
    real, same, apart = rng.normal(size=(3, 400, 8)).astype(np.float32) + np.array([0, 0, 2], np.float32)[:, None, None]
    assert abs(kid_of(real, same)) < 0.1 < kid_of(real, apart)
    np.testing.assert_allclose(cosines(real, 3 * real), 1, rtol=1e-5)
    np.testing.assert_allclose(cosines(real, -real), -1, rtol=1e-5)
