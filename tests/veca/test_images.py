import json
import logging
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from veca.data import (
    Images,
    Photographs,
    imagenet_normalize,
    inference_transform,
    list_photographs,
    load_image,
    load_photograph,
    training_transform,
)


def pixels(seed, height=6, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, seed=0, height=6, width=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height, width)).save(path)
    return path


def tensor(seed, height=6, width=8):
    return torch.from_numpy(pixels(seed, height, width)).permute(2, 0, 1).float() / 255


def break_file(path, keep=0.5):
    """Cut a file short, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.fixture
def tree(tmp_path):
    write(tmp_path / "dog/b.png", 0)
    write(tmp_path / "dog/a.PNG", 1)
    write(tmp_path / "cat/deep/er/c.png", 2)
    write(tmp_path / "cat/.hidden/d.png", 3)
    write(tmp_path / ".hidden/e.png", 4)
    (tmp_path / "cat/notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_of_folders_has_their_names_as_classes(tree, caplog):
    data = Images(tree)
    assert data.classes == ("cat", "dog") and data.labels == [0, 1, 1]
    assert [sample["name"] for sample in data] == ["cat/deep/er/c.png", "dog/a.PNG", "dog/b.png"]
    for index, seed in enumerate((2, 1, 0)):
        sample = data[index]
        assert torch.equal(sample["image"], tensor(seed)) and sample["index"] == index
        assert sample["label"] == data.labels[index] and sample.keys() == {"image", "name", "index", "label"}
    assert "1 files in" in caplog.text and "notes.txt" in caplog.text
    assert torch.equal(data[-1]["image"], data[2]["image"]) and data[-1]["index"] == 2


def test_held_out_classes_keep_their_numbers(tree):
    assert Images(tree, classes=("bird", "dog", "cat")).labels == [2, 1, 1]
    with pytest.raises(ValueError, match=r"expected one of 2 classes, got 'cat' for cat/deep/er/c.png in "):
        Images(tree, classes=("bird", "dog"))


def test_a_flat_folder_has_no_labels(tmp_path):
    for seed, name in enumerate(("b.png", "a.png")):
        write(tmp_path / name, seed)
    data = Images(tmp_path)
    assert data.labels is None and data.classes is None
    assert [sample["name"] for sample in data] == ["a.png", "b.png"] and "label" not in data[0]
    with pytest.raises(ValueError, match="expected labels for the 2 classes, got none"):
        Images(tmp_path, classes=("cat", "dog"))


def test_links_to_folders_are_followed(tree, tmp_path_factory):
    root = tmp_path_factory.mktemp("linked")
    (root / "cat").symlink_to(tree / "cat", target_is_directory=True)
    assert Images(root).paths == [root / "cat/deep/er/c.png"]


def test_each_real_folder_is_searched_once(tree, caplog):
    """A link to the folder above made 246 images of 6. The real folder counts, even where a link comes first."""
    meant = Images(tree).paths
    for link, target in (("cat/all", tree), ("cat/above", tree.parent), ("aa", tree / "dog"), ("dog/same", tree)):
        (tree / link).symlink_to(target, target_is_directory=True)
    data = Images(tree)
    assert data.paths == meant and data.classes == ("cat", "dog")
    assert "4 links in" in caplog.text


def test_numbers_in_names_are_sorted_as_numbers_and_files_of_systems_passed_over(tmp_path):
    for name in ("run-10.png", "run-9.png", "b2/x.png", "b10/x.png"):
        write(tmp_path / "class" / name)
    (tmp_path / "class/._run-9.png").write_bytes(b"\0\5\x16\7")
    names = [path.relative_to(tmp_path / "class").as_posix() for path in Images(tmp_path).paths]
    assert names == ["b2/x.png", "b10/x.png", "run-9.png", "run-10.png"]


def test_names_agree_in_either_unicode_form(tmp_path):
    """File systems of macOS store letters with accents as two characters, most editors as one."""
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write(tmp_path / two / f"{two}.png")
    assert Images(tmp_path, classes=[one]).labels == [0] and Images(tmp_path).classes == (one,)
    index = tmp_path / "list.csv"
    index.write_text(f"path,label\n{one}/{one}.png,{one}\n{two}/{two}.png,{two}\n", encoding="utf-8-sig")
    data = Images(index)
    assert data.classes == (one,) and len(list(data)) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_an_index_in_another_encoding_is_named(tmp_path, name, encoding):
    (tmp_path / name).write_text("path,label\nä.png,ä\n", encoding=encoding)
    with pytest.raises(ValueError, match=rf"expected text in UTF-8 in .*{name}, got other bytes"):
        Images(tmp_path / name)


def test_folders_that_leave_a_doubt_are_refused(tree, tmp_path_factory):
    write(tree / "stray.png")
    with pytest.raises(ValueError, match=r"images or a sub-folder per class, got stray.png beside cat/"):
        Images(tree)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="at least one image, got none"):
        Images(empty)
    write(empty / "cat/a.png")
    (empty / "dog").mkdir()
    with pytest.raises(ValueError, match=r"images in every class folder, got none in .*dog"):
        Images(empty)
    with pytest.raises(ValueError, match=r"a folder or an index \(.csv, .tsv, .jsonl\), got nothing at"):
        Images(empty / "nowhere")
    with pytest.raises(ValueError, match="got a file of another kind"):
        Images(empty / "cat/a.png")
    with pytest.raises(ValueError, match="on_error 'raise' or 'skip', got 'ignore'"):
        Images(tree, on_error="ignore")


ROWS = [
    {"path": "x/b.png", "label": "dog", "caption": 'a "dog", asleep'},
    {"path": "a.png", "label": "cat", "caption": "eine Katze, größer"},
]


def write_index(path, rows):
    if path.suffix == ".jsonl":
        text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0], *(row.values() for row in rows)]
        quoted = [mark.join('"' + str(value).replace('"', '""') + '"' for value in line) for line in lines]
        text = "\r\n".join(quoted) + "\r\n"
    path.write_text(text, encoding="utf-8-sig", newline="")  # as spreadsheets write it
    return path


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl"])
def test_an_index_gives_paths_labels_and_captions(tmp_path, name):
    write(tmp_path / "x/b.png", 0)
    write(tmp_path / "a.png", 1)
    data = Images(write_index(tmp_path / name, ROWS))
    assert data.classes == ("cat", "dog")
    assert torch.equal(data[0]["image"], tensor(0)) and torch.equal(data[1]["image"], tensor(1))
    assert [{key: data[i][key] for key in ("name", "label", "caption")} for i in (0, 1)] == [
        {"name": "x/b.png", "label": 1, "caption": 'a "dog", asleep'},
        {"name": "a.png", "label": 0, "caption": "eine Katze, größer"},
    ]
    paths_only = Images(write_index(tmp_path / name, [{"path": row["path"]} for row in ROWS]))
    assert paths_only[0].keys() == {"image", "name", "index"}


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_whole_numbers_are_class_numbers_unless_classes_are_named(tmp_path, name):
    index = write_index(tmp_path / name, [{"path": "a.png", "label": label} for label in (10, 2, 2)])
    data = Images(index)
    assert data.labels == [10, 2, 2] and data.classes is None
    assert Images(index, classes=("2", "10")).labels == [1, 0, 0]


def test_two_spellings_of_a_class_number_are_refused_unless_classes_are_named(tmp_path):
    """007 and 7 became one class."""
    index = write_index(tmp_path / "list.csv", [{"path": "a.png", "label": label} for label in ("007", "7", "8")])
    with pytest.raises(ValueError, match=r"one spelling of each class number, got '007' and '7' in .*list.csv"):
        Images(index)
    assert Images(index, classes=("7", "8", "007")).labels == [2, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.png"}\n{"path": "b.png", "label": "x"}', "expected values for path, got .* in line 2"),
        ('{"path": "a.png"}\n{"path": ', "a JSON object a line, got .* in line 2"),
        ('{"path": "a.png"}\n\n["b.png"]', r"a JSON object a line, got \[\"b.png\"\] in line 3"),
        ('{"path": "a.png", "label": 1.5}', "expected values for path, label, got .*1.5"),
        ('{"path": "a.png", "lable": "x"}', r"columns path\[, label\]\[, caption\], got path, lable"),
        ("", "at least one image, got none"),
    ],
)
def test_a_broken_jsonl_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        Images(tmp_path / "list.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", r"columns path\[, label\]\[, caption\], got file, label"),
        ("path,label\na.png,x\nb.png\n", "expected values for path, label, got .* in line 3"),
        ("path,label\na.png,x\nb.png,\n", "expected values for path, label, got .* in line 3"),
        ("path,label\na.png,x\nb.png,y,z\n", "expected values for path, label, got .* in line 3"),
        ("path,label\n", "at least one image, got none"),
    ],
)
def test_a_broken_csv_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Images(tmp_path / "list.csv")


@pytest.fixture
def damaged(tmp_path):
    """Six listed images: 1 cut short, 2 no image at all, 4 missing."""
    for seed in range(6):
        write(tmp_path / f"{seed}.png", seed, 40, 40)
    break_file(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("<html>not found</html>")
    index = write_index(
        tmp_path / "list.csv", [{"path": f"{seed}.png", "label": "even odd".split()[seed % 2]} for seed in range(6)]
    )
    (tmp_path / "4.png").unlink()
    return index


def test_by_default_a_bad_image_stops_with_its_name(damaged):
    data = Images(damaged)
    assert torch.equal(data[0]["image"], tensor(0, 40, 40))
    with pytest.raises(ValueError, match=r"expected a readable image, got .*1\.png: OSError: .*truncated"):
        data[1]
    with pytest.raises(ValueError, match=r"expected a readable image, got .*2\.png: UnidentifiedImageError"):
        data[2]
    with pytest.raises(FileNotFoundError, match=r"expected an image file, got nothing at .*4\.png"):
        data[4]


def test_skipping_takes_the_next_good_one_and_keeps_count(damaged, caplog):
    data = Images(damaged, on_error="skip")
    for _ in range(2):
        samples = list(data)
        assert [sample["index"] for sample in samples] == [0, 3, 3, 3, 5, 5]
        for sample in samples:
            assert torch.equal(sample["image"], tensor(sample["index"], 40, 40))
            assert sample["name"] == f"{sample['index']}.png" and sample["label"] == sample["index"] % 2
    assert [bad.path.name for bad in data.bad] == ["1.png", "2.png", "4.png"]
    assert "truncated" in data.bad[0].reason and "nothing at" in data.bad[2].reason
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 3  # each named once, though met twice
    assert messages[2].startswith("bad image 3 of 6 files so far") and "4.png" in messages[2]


def test_skipping_wraps_around_and_gives_up_when_nothing_is_left(damaged):
    (damaged.parent / "5.png").unlink()
    data = Images(damaged, on_error="skip")
    assert data[4]["index"] == 0
    for seed in (0, 3):
        (damaged.parent / f"{seed}.png").unlink()
    with pytest.raises(ValueError, match="expected a readable image, got 6 bad ones"):
        Images(damaged, on_error="skip")[0]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_verify_finds_all_bad_images(damaged, on_error):
    data = Images(damaged, on_error=on_error)
    assert [bad.path.name for bad in data.verify()] == ["1.png", "2.png", "4.png"] == [b.path.name for b in data.bad]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".gif", ".bmp"])
def test_a_file_cut_short_is_never_half_an_image(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", 0, 64, 64)
    assert load_image(path).size == (64, 64)
    break_file(path)
    with pytest.raises(ValueError, match=f"expected a readable image, got .*a{suffix}"):
        load_image(path)


# where the top left pixel of the stored picture belongs in the upright one: (x, y) of a 3 x 2 picture
UPRIGHT = {1: (0, 0), 2: (2, 0), 3: (2, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 2), 8: (0, 2)}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    picture = Image.new("RGB", (3, 2))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png")
    assert upright.size == ((3, 2) if orientation < 5 else (2, 3))
    assert upright.getpixel(UPRIGHT[orientation]) == (255, 0, 0)
    assert np.asarray(upright).sum() == 255


def saved(tmp_path, picture, suffix=".png", **options):
    path = tmp_path / f"a{suffix}"
    picture.save(path, **options)
    return load_image(path)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.array([[[200, 0, 100, 255], [200, 0, 100, 51], [200, 0, 100, 0]]], np.uint8)
    assert np.asarray(saved(tmp_path, Image.fromarray(rgba))).tolist() == [[[200, 0, 100], [244, 204, 224], [255] * 3]]
    grey = Image.merge("LA", [Image.new("L", (2, 1)), Image.fromarray(np.array([[255, 0]], np.uint8))])
    assert np.asarray(saved(tmp_path, grey)).tolist() == [[[0] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert np.asarray(saved(tmp_path, palette, transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_other_modes(tmp_path):
    levels = np.array([[0, 257, 128 * 257, 128 * 257 + 128, 128 * 257 + 129, 65535]], np.uint16)
    for suffix in (".png", ".tif"):
        grey = np.asarray(saved(tmp_path, Image.fromarray(levels), suffix))
        assert grey[..., 0].tolist() == [[0, 1, 128, 128, 129, 255]] and (grey == grey[..., :1]).all()
    assert np.asarray(saved(tmp_path, Image.new("1", (1, 1), 1))).tolist() == [[[255] * 3]]
    assert np.asarray(saved(tmp_path, Image.new("L", (1, 1), 77))).tolist() == [[[77] * 3]]
    assert np.asarray(saved(tmp_path, Image.new("CMYK", (1, 1), (0, 255, 255, 0)), ".tif")).tolist() == [[[255, 0, 0]]]
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=rf"a\.tif: .*expected 8 or 16 bits a channel, got mode {mode}"):
            saved(tmp_path, Image.new(mode, (2, 2)), ".tif")


def photo(height=90, width=140):
    """A smooth picture, so that windows of it are told apart by their values."""
    y, x = np.mgrid[0:height, 0:width]
    levels = np.stack([x * 255 / width, y * 255 / height, 127 + 120 * np.sin(x * y / 700)], -1)
    return Image.fromarray(levels.astype(np.uint8))


def normalized(picture):
    return imagenet_normalize(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_files_whose_zero_is_white(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    grey, top = pixels(0)[..., 0], np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / "a.tif", top - grey.astype(dtype) * (top // 255), photometric="miniswhite")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.tif"))[..., 0], grey)


def test_inference_resizes_the_shorter_side_and_takes_the_middle():
    picture = photo()
    resized = picture.resize((62, 40), Image.Resampling.BICUBIC)  # 140 * 40 / 90 = 62.2
    expected = normalized(resized.crop((11, 0, 51, 40)))
    torch.testing.assert_close(inference_transform(40)(picture), expected, rtol=0, atol=1e-6)
    larger = picture.resize((70, 45), Image.Resampling.BICUBIC).crop((15, 2, 55, 42))
    torch.testing.assert_close(inference_transform(40, margin=1.125)(picture), normalized(larger), rtol=0, atol=1e-6)


def windows(picture, size):
    """Every crop of the resized picture and its mirror image, normalised: (n, 3, size, size)."""
    whole = normalized(picture)
    crops = whole.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return torch.cat([crops, crops.flip(-1)])


def nearest(image, candidates):
    return (candidates - image).abs().amax((1, 2, 3)).min(0)


def test_training_crops_and_mirrors_the_resized_picture():
    picture = photo()
    candidates = windows(picture.resize((70, 45), Image.Resampling.BICUBIC), 40)
    transform = training_transform(40, augment=False)
    torch.manual_seed(0)
    found = [nearest(transform(picture), candidates) for _ in range(60)]
    assert max(distance for distance, _ in found) < 1e-5
    places = [int(place) for _, place in found]
    mirrored = sum(place >= len(candidates) // 2 for place in places)
    assert 15 < mirrored < 45 and len(set(places)) > 30
    torch.manual_seed(0)
    assert int(nearest(transform(picture), candidates)[1]) == places[0]


def test_training_augments_most_pictures_beyond_crop_and_mirror():
    picture = photo()
    candidates = windows(picture.resize((70, 45), Image.Resampling.BICUBIC), 40)
    torch.manual_seed(0)
    outs = [training_transform(40)(picture) for _ in range(40)]
    assert all(out.shape == (3, 40, 40) and out.isfinite().all() and type(out) is torch.Tensor for out in outs)
    assert sum(nearest(out, candidates)[0] > 0.01 for out in outs) > 25


def test_transforms_refuse_sizes_that_cannot_be():
    with pytest.raises(ValueError, match=r"size of at least 1 pixel and a margin of at least 1, got 0 and 1.125"):
        training_transform(0)
    with pytest.raises(ValueError, match=r"got 32 and 0\.9"):
        inference_transform(32, margin=0.9)


def test_a_loader_with_a_transform_repeats_with_its_seed(tree):
    def batches():
        loader = DataLoader(
            Images(tree, training_transform(16)), 2, True, num_workers=1, generator=torch.Generator().manual_seed(3)
        )
        return list(loader)

    first, second = batches(), batches()
    assert sorted(name for batch in first for name in batch["name"]) == sorted(s["name"] for s in Images(tree))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])
        assert one["name"] == other["name"] and one["image"].shape[1:] == (3, 16, 16)


def test_photographs_are_a_data_set():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    data = Photographs(64, names=["coffee", "chelsea"], transform=imagenet_normalize)
    assert len(data) == 2 and len(list(data)) == 2
    sample = data[1]
    assert sample["name"] == "chelsea" and "cat" in sample["caption"] and sample["index"] == 1
    assert torch.equal(sample["image"], imagenet_normalize(load_photograph("chelsea", 64)))
    assert data[-1]["index"] == 1
    assert Photographs(32).names == list_photographs()
    assert len({sample["caption"] for sample in Photographs(8)}) == len(list_photographs())
    with pytest.raises(ValueError, match="got 'cofee'; did you mean coffee"):
        Photographs(64, names=["cofee"])
