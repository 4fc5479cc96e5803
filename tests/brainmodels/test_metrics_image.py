"""Image scores against golden values, plain definitions, and networks with random weights written to a file."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from brainmodels.errors import AxisError, BrainDataError, IdError, LayoutError, NormalizationError
from brainmodels.features import FeatureOutput
from brainmodels.metrics import list_metrics, metric
from brainmodels.metrics.image import PROTOCOLS, ImageProtocol, examples, image_scores, pixcorr, ssim, video_scores
from brainmodels.metrics.retrieval import correlation_matrix, two_way
from brainmodels.metrics.slots import SLOTS, open_slot
from veca.data import render_scenes

SMALL = ImageProtocol("small", None, 48, dict.fromkeys(SLOTS, 48))


def by_name(scores):
    return {score.metric.name: score for score in scores}


def pictures(count=6, size=48, first=0):
    return render_scenes(range(first, first + count), size)["image"]


def ids(count=6):
    return [f"sim0:{i}" for i in range(count)]


def coarse(images):
    """A network: the mean colour of each of 4 x 4 cells."""
    return F.adaptive_avg_pool2d(images, 4)


def test_golden_ssim():
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 64))
    a = 0.5 + 0.5 * np.sin(12 * x + 3 * y)
    b = np.clip(gaussian_filter(a, 2) + 0.05 * np.cos(40 * x * y), 0, 1)
    real, decoded = (np.repeat(image[None, None], 3, 1) for image in (a, b))
    assert ssim(real, decoded)[0] == pytest.approx(0.906191, abs=1e-6)
    assert ssim(real, decoded, "columns")[0] == pytest.approx(0.796543, abs=1e-6)


def test_ssim_from_its_definition():
    real, decoded = pictures(1).numpy(), pictures(1, first=3).numpy()
    u, v = (np.tensordot([0.2125, 0.7154, 0.0721], image[0].astype(float), 1) for image in (real, decoded))

    def blur(z):
        return gaussian_filter(z, 1.5, radius=5, mode="reflect")

    mu, mv = blur(u), blur(v)
    uu, vv, uv = blur(u * u) - mu**2, blur(v * v) - mv**2, blur(u * v) - mu * mv
    c1, c2 = 0.01**2, 0.03**2
    table = (2 * mu * mv + c1) * (2 * uv + c2) / ((mu**2 + mv**2 + c1) * (uu + vv + c2))
    assert ssim(real, decoded)[0] == pytest.approx(table[5:-5, 5:-5].mean())
    with pytest.raises(BrainDataError, match="2d, columns"):
        ssim(real, decoded, "1d")


def test_pixcorr_from_its_definition():
    real, decoded = pictures(3), pictures(3, first=5)
    expected = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(real, decoded, strict=True)]
    np.testing.assert_allclose(pixcorr(real, decoded), expected, atol=1e-6)


def test_protocol_resizes_first_to_256():
    """A chain of two bilinear resizes, which differs from one."""
    real, decoded = pictures(2, 96), pictures(2, 96, first=7)
    found = by_name(image_scores(real, decoded, ids(2), ids(2), resamples=20))

    def resize(x, side):
        return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)

    chain = [resize(resize(x, 256), 425) for x in (real, decoded)]
    assert found["ssim_2d"].value == pytest.approx(ssim(*chain).mean(), abs=1e-9)
    assert found["ssim_columns"].value == pytest.approx(ssim(*chain, "columns").mean(), abs=1e-9)
    assert found["pixcorr"].value == pytest.approx(pixcorr(*chain).mean(), abs=1e-6)
    once = [resize(x, 425) for x in (real, decoded)]
    assert abs(ssim(*once).mean() - ssim(*chain).mean()) > 1e-4
    assert PROTOCOLS["braindiffuser"].first is None and set(PROTOCOLS["braindiffuser"].sizes.values()) == {224}
    assert "protocol mindeye2; scikit-image" in found["ssim_2d"].note


def test_exact_images_score_best():
    real = pictures(8)
    weights = {"alexnet": coarse, "swav_rn50": coarse}
    found = by_name(image_scores(real, real, ids(8), ids(8), weights, SMALL, resamples=50))
    names = {"pixcorr": 1, "ssim_2d": 1, "ssim_columns": 1, "two_way[coarse]": 1, "correlation_distance[coarse]": 0}
    for name, best in names.items():
        assert found[name].value == pytest.approx(best, abs=1e-6)
        if found[name].chance is not None:
            assert metric(name).better(found[name].value, found[name].chance)


def test_a_callable_names_its_columns():
    real, decoded = pictures(8), (pictures(8) + pictures(8, first=20)) / 2
    found = by_name(image_scores(real, decoded, ids(8), ids(8), {"alexnet": coarse, "swav_rn50": coarse}, SMALL))
    one, two = coarse(real).numpy(), coarse(decoded).numpy()
    r = correlation_matrix(one, two)
    assert found["two_way[coarse]"].value == pytest.approx(two_way(r).mean())
    assert found["correlation_distance[coarse]"].value == pytest.approx(1 - np.diag(r).mean())
    assert found["two_way[coarse]"].chance == 0.5 and "protocol small" in found["two_way[coarse]"].note
    for name in ("alexnet2", "alexnet5", "swav", "inception", "clip", "effnet_b1"):
        assert not found[name].available and found[name].value is None

    class Extractor:
        name = "named"

        def __call__(self, images):
            return FeatureOutput(images.flatten(2), None)

        def fingerprint(self):
            return "0123456789ab"

    row = by_name(image_scores(real, decoded, ids(8), ids(8), {"alexnet": Extractor()}, SMALL))["two_way[named]"]
    assert row.features == "0123456789ab"
    for wrong in (lambda images: images, type("Slot", (), {"name": "alexnet", "__call__": lambda self, x: x})()):
        with pytest.raises(BrainDataError, match="callable with a name"):
            open_slot("alexnet", wrong)


def test_absent_weights_are_said():
    real = pictures(2)
    found = by_name(image_scores(real, real, ids(2), ids(2), protocol=SMALL, resamples=20))
    named = [metric(name) for name in list_metrics(offline=False) if "{" not in name]
    needed = {x.name for x in named if x.needs_weights in SLOTS and not x.name.startswith(("video_", "caption_"))}
    assert needed == {"alexnet2", "alexnet5", "inception", "clip", "effnet_b1", "swav"}
    for name in needed:
        assert not found[name].available and f"weights {metric(name).needs_weights}" in found[name].note
    with pytest.raises(BrainDataError, match="near: alexnet"):
        image_scores(real, real, ids(2), ids(2), {"alexnett": coarse}, SMALL)
    with pytest.raises(LayoutError, match="no such file"):
        image_scores(real, real, ids(2), ids(2), {"alexnet": "absent.safetensors"}, SMALL)


def test_joined_by_id():
    real = pictures(6)
    order = [3, 1, 5, 0, 2, 4]
    shuffled = [ids()[i] for i in order]
    assert by_name(image_scores(real, real[order], ids(), shuffled, None, SMALL))["pixcorr"].value == pytest.approx(1)
    with pytest.raises(IdError, match="sim0:5"):
        image_scores(real, real[:5], ids(), ids(5), None, SMALL)
    with pytest.raises(IdError, match="2 times"):
        image_scores(real[[0, 0]], real, ids(1) * 2, ids(), None, SMALL)


def test_bad_images():
    real = pictures(2)
    with pytest.raises(AxisError, match="channels last"):
        image_scores((real * 255).to(torch.uint8).movedim(1, -1), real, ids(2), ids(2))
    with pytest.raises(NormalizationError, match="expected decoded images"):
        image_scores(real, real * 255, ids(2), ids(2))
    with pytest.raises(AxisError, match="as real"):
        pixcorr(real, pictures(2, 32))
    with pytest.raises(BrainDataError, match="near: mindeye2"):
        image_scores(real, real, ids(2), ids(2), protocol="mindeye")


def test_video_is_the_mean_over_frames():
    real = pictures(12).reshape(4, 3, 3, 48, 48)
    decoded = (real + pictures(12, first=30).reshape(real.shape)) / 2
    found = by_name(video_scores(real, decoded, ids(4), ids(4), {"clip_vit_l14_openai": coarse}, SMALL, resamples=20))
    frames = [
        by_name(image_scores(real[:, t], decoded[:, t], ids(4), ids(4), {"alexnet": coarse}, SMALL, resamples=20))
        for t in range(3)
    ]
    for name in ("pixcorr", "ssim_2d", "ssim_columns", "two_way[coarse]"):
        assert found[f"video_{name}"].value == pytest.approx(np.mean([x[name].value for x in frames]))
    flat = [coarse(x.flatten(0, 1)).reshape(4, -1).numpy() for x in (real, decoded)]
    expected = two_way(correlation_matrix(*flat)).mean()
    assert found["video_clip_two_way[coarse]"].value == pytest.approx(expected)
    assert found["video_pixcorr"].n_of == "clips" and not found["video_clip"].available
    with pytest.raises(AxisError, match="3 frames"):
        video_scores(real, decoded[:, :2], ids(4), ids(4))


def test_examples():
    values = np.array([0.3, 0.9, 0.1, 0.5, 0.7])
    chosen = examples(values, "up", 2, seed=3)
    assert list(chosen["best"]) == [1, 4] and list(chosen["worst"]) == [2, 0]
    assert list(examples(values, "down", 2)["best"]) == [2, 0]
    np.testing.assert_array_equal(chosen["random"], examples(values, "up", 2, seed=3)["random"])
