"""One data set compared with another that was written and read back."""

import numpy as np


def assert_same(loaded, written, atol=0.0):
    """The same trials of the same images, values within `atol`, places, regions, reliability, pictures and subject."""
    (found,), (meant,) = loaded.subjects.values(), written.subjects.values()
    assert found.id == meant.id
    for column in ("image_id", "session", "run", "repeat", "trial"):
        got, expected = getattr(found.responses.trials, column), getattr(meant.responses.trials, column)
        np.testing.assert_array_equal(got, expected, column)
    rows = np.arange(len(meant.responses))
    np.testing.assert_allclose(found.responses.batch(rows), meant.responses.batch(rows), rtol=0, atol=atol)
    np.testing.assert_array_equal(found.space.index, meant.space.index)
    assert tuple(found.space.shape) == tuple(meant.space.shape)
    if meant.space.affine is not None:
        np.testing.assert_allclose(found.space.affine, meant.space.affine)
    assert set(found.space.rois) == set(meant.space.rois)
    for name, region in meant.space.rois.items():
        np.testing.assert_array_equal(found.space.rois[name], region, name)
    if meant.space.ncsnr is not None:
        np.testing.assert_allclose(found.space.ncsnr, meant.space.ncsnr, rtol=1e-5)
    assert set(loaded.stimuli.ids.tolist()) == set(written.stimuli.ids.tolist())
    for image_id in written.stimuli.ids:
        np.testing.assert_array_equal(loaded.stimuli.image(image_id), written.stimuli.image(image_id), str(image_id))
