import importlib.util

import pytest
import torch

from veca.data import imagenet_normalize, list_photographs, load_photograph, photograph, photographs

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

# read with Pillow from the files: (height, width), a box (left, top, right, bottom), its mean red, green, blue
FACTS = {
    "astronaut": ((512, 512), (100, 300, 140, 340), (0.8521, 0.3977, 0.2550)),  # the orange suit
    "chelsea": ((300, 451), (150, 200, 170, 220), (0.6835, 0.5054, 0.3529)),
    "coffee": ((400, 600), (280, 150, 320, 190), (0.9164, 0.5816, 0.2201)),
    "rocket": ((427, 640), (300, 50, 340, 90), (0.1313, 0.1901, 0.3129)),  # a dark blue sky
    "hubble_deep_field": ((872, 1000), (100, 100, 200, 200), (0.0526, 0.0630, 0.0578)),
    "retina": ((1411, 1411), (700, 700, 800, 800), (0.7961, 0.2739, 0.1610)),
    "china": ((427, 640), (10, 10, 50, 50), (0.7173, 0.8123, 0.9192)),  # a bright blue sky
    "flower": ((427, 640), (300, 150, 340, 190), (0.8391, 0.3282, 0.1173)),  # red petals
}


def region(image, left, top, right, bottom):
    return image[:, top:bottom, left:right].mean((1, 2))


@pytest.mark.parametrize("name", FACTS)
def test_photographs_are_what_they_claim(name):
    size, box, color = FACTS[name]
    assert photograph(name).native_size == size
    image = load_photograph(name, crop="none")
    assert image.shape == (3, *size) and image.dtype == torch.float32
    # JPEG decoders may differ by a level or two
    torch.testing.assert_close(region(image, *box), torch.tensor(color), rtol=0, atol=5e-3)


def test_the_list_names_what_loads_and_says_whose_it_is():
    names = list_photographs()
    assert names[:8] == list(FACTS)
    for name in names:
        info = photograph(name)
        assert info.name == name and info.path.is_file() and info.credit
        assert info.package in ("scikit-image", "scikit-learn")
    assert "CC BY 2.0" in photograph("china").credit and photograph("china").package == "scikit-learn"


def test_loading_is_repeatable():
    assert torch.equal(load_photograph("coffee", 96), load_photograph("coffee", 96))


def test_center_crop_takes_the_middle_in_the_wanted_shape():
    whole = load_photograph("china", crop="none")  # 427 x 640
    assert torch.equal(load_photograph("china"), whole[:, :, 106:533])
    assert torch.equal(load_photograph("china", 427), whole[:, :, 106:533])
    # twice as wide as high: all 640 columns, 320 rows from 53 on
    assert torch.equal(load_photograph("china", (320, 640)), whole[:, 53:373])


def test_without_crop_one_number_is_the_shorter_side_and_a_tuple_is_taken_as_it_is():
    assert load_photograph("rocket", 64, crop="none").shape == (3, 64, 96)
    squeezed = load_photograph("rocket", (61, 64), crop="none")
    # the rocket stands in the middle, dark sky left of it: nothing was cut
    whole = load_photograph("rocket", crop="none")
    for half in (slice(0, 32), slice(32, 64)):
        full = whole[:, :, half.start * 10 : half.stop * 10]
        torch.testing.assert_close(squeezed[:, :, half].mean((1, 2)), full.mean((1, 2)), rtol=0, atol=5e-3)


def test_resizing_keeps_colours_and_does_not_flip():
    small, large = load_photograph("china", 32), load_photograph("china", 600)
    for image in (small, large):
        side = image.shape[-1]
        sky, ground = image[:, : side // 8].mean((1, 2)), image[:, -side // 8 :].mean((1, 2))
        assert sky[2] > 0.85 and ground[2] < 0.45  # blue above, brown below
    torch.testing.assert_close(small.mean((1, 2)), large.mean((1, 2)), rtol=0, atol=5e-3)


def test_normalisation_is_imagenets():
    images = torch.tensor([0.485, 0.456, 1.0])[:, None, None].expand(2, 3, 4, 5)
    out = imagenet_normalize(images)
    expected = torch.tensor([0.0, 0.0, (1 - 0.406) / 0.225])[:, None, None].expand(2, 3, 4, 5)
    torch.testing.assert_close(out, expected)


def test_bad_requests_say_what_was_expected():
    with pytest.raises(ValueError, match="got 'astronout'; did you mean astronaut"):
        load_photograph("astronout")
    with pytest.raises(ValueError, match="crop 'center' or 'none', got 'left'"):
        load_photograph("coffee", crop="left")
    for size in (0, (0, 5), (3, 4, 5)):
        with pytest.raises(ValueError, match="expected a size"):
            load_photograph("coffee", size)


def hide(monkeypatch, *modules):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else find(name))


def test_one_package_absent(monkeypatch):
    hide(monkeypatch, "sklearn")
    assert "astronaut" in list_photographs() and "china" not in list_photographs()
    with pytest.raises(ImportError, match=r'scikit-learn, which is not installed; pip install "veca\[brain\]"'):
        load_photograph("china")


def test_both_packages_absent(monkeypatch):
    hide(monkeypatch, "sklearn", "skimage")
    with pytest.raises(ImportError, match=r'pip install "veca\[brain\]"'):
        list_photographs()


def test_a_file_that_the_wheel_lacks_is_not_listed_and_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(photographs, "_folder", lambda package: tmp_path)
    assert list_photographs() == []
    with pytest.raises(FileNotFoundError, match=r"expected coffee.png in the wheel of scikit-image"):
        load_photograph("coffee")
