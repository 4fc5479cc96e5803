"""Published scores of decoded pictures with weights from files, and pictures by a function of the user."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from brainmodels.drawing.patch_code import pixels_of
from brainmodels.errors import AxisError, BrainDataError, LayoutError, NormalizationError
from brainmodels.evaluation import EvaluationSettings, evaluate
from brainmodels.evaluation.encoding import Study
from brainmodels.evaluation.pictures import Judge, drawing_of
from brainmodels.evaluation.published_images import PublishedImages
from brainmodels.evaluation.user_pictures import UserFunction
from brainmodels.metrics import metric
from brainmodels.metrics.image import image_scores
from brainmodels.metrics.slots import SHORT, SLOTS, missing_weights, open_slot, slot_files
from brainmodels.report import write_report
from tests.brainmodels.evaluated import opened_models, trained_models
from tests.brainmodels.made import made_dataset

DRAWERS = """
import numpy as np
import torch

PICTURES = torch.rand(100, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def tensor(tokens):
    return PICTURES[: len(tokens)]


def array(tokens):
    return PICTURES[: len(tokens)].numpy()


def signed(tokens):
    return 2 * PICTURES[: len(tokens)] - 1


def whole(tokens):
    return (255 * PICTURES[: len(tokens)]).byte()


def wide(tokens):
    return PICTURES[: len(tokens), :, :8]


def few(tokens):
    return PICTURES[:1]


def text(tokens):
    return "a picture"


def changing(tokens):
    return PICTURES[: len(tokens), :, : (n := 16 if len(tokens) == 2 else 8), :n]


NUMBER = 3


class Nearest:
    name, fingerprint = "my nearest", "first version"

    def __init__(self, tokens, images, device):
        self.tokens, self.images = tokens.flatten(1), torch.from_numpy(images(24)).permute(0, 3, 1, 2).float() / 255

    def __call__(self, tokens):
        return self.images[torch.cdist(tokens.flatten(1), self.tokens).argmin(1)]


class Other:
    def __init__(self, tokens):
        pass
"""


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file with random weights of the true architecture."""
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(models.alexnet(weights=None).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def study():
    dataset = made_dataset(num_images=36)
    split = dataset.split("made")
    pairs = [dataset.pairs("subj01", split, part, "repeats") for part in ("train", "test")]
    return dataset, Study.of(*pairs, None, 0.1, 20, 0, 2)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    file = tmp_path_factory.mktemp("user") / "my_drawers.py"
    file.write_text(DRAWERS)
    return file


def test_words_name_files_of_slots(tmp_path):
    (tmp_path / "a=b.pth").write_bytes(b"")
    file = tmp_path / "a=b.pth"
    assert slot_files([f"{name}={file}" for name in SHORT]) == dict.fromkeys(SHORT.values(), file)
    assert slot_files([f"inception_v3={file}"]) == {"inception_v3": file} and set(SHORT.values()) == set(SLOTS)
    for words, message in (
        (["alexnet"], "SLOT=FILE"),
        ([f"alexnt={file}"], "got 'alexnt=.*near: alexnet"),
        ([f"clip={file}", f"clip_vit_l14_openai={file}"], "one file for slot clip_vit_l14_openai"),
    ):
        with pytest.raises(BrainDataError, match=message):
            slot_files(words)
    with pytest.raises(LayoutError, match=r"swav_rn50.*no\.pth, got no such file"):
        slot_files(["swav=no.pth"])


def test_a_missing_network_says_which_option_fills_it():
    row = missing_weights(metric("effnet_b1"), "efficientnet_b1")
    assert str(row).startswith(
        "effnet_b1 ↓ not available (needs weights efficientnet_b1; pass --weights efficientnet=FILE"
    )


def test_pictures_of_an_evaluation_are_scored_as_published(alexnet, study):
    dataset, case = study
    published = PublishedImages.of({"alexnet": alexnet}, case, dataset)
    assert PublishedImages.of({}, case, dataset) is None and published.slots == ("alexnet",)
    ids = case.test.image_ids
    shown = dataset.stimuli.images(ids, 16)
    pictures = torch.rand(len(ids), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    judge = Judge(case, shown, "cpu", published)
    drawn = judge.of_pictures("ridge", "nothing", pictures)
    real = pixels_of(dataset.stimuli.images(ids, 256))
    direct = image_scores(real, pictures, ids, ids, {"alexnet": alexnet}, resamples=20, variants=("2d",))
    wanted = {x.metric.name: x.value for x in direct if x.available}
    assert {x.metric.name: x.value for x in drawn.published} == pytest.approx(wanted)
    assert set(wanted) == {"pixcorr", "ssim_2d", "alexnet2", "alexnet5"}
    mark = {x.features for x in drawn.published if x.metric.name.startswith("alexnet")}
    assert mark == {open_slot("alexnet", alexnet).fingerprint} and None not in mark
    assert "protocol mindeye2" in drawn.published[-1].note and "drawn at 16 px" in drawn.published[-1].note
    absent = [x.metric.name for x in drawn.scores if not x.available]
    assert absent == ["inception", "clip", "effnet_b1", "swav"]
    assert len(drawn.to_json()["published"]) == 4
    perfect = judge.of_pictures("true", "nothing", real[..., ::16, ::16])
    assert perfect.published[2].value > 0.9  # even a random network knows the same picture


def test_a_file_of_other_weights_is_refused(tmp_path, study):
    dataset, case = study
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(LayoutError, match=r"other\.pth does not fit this AlexNet"):
        PublishedImages.of({"alexnet": tmp_path / "other.pth"}, case, dataset)


def images(side):
    return np.random.default_rng(0).integers(0, 256, (6, side, side, 3), np.uint8)


def tokens(count=6):
    return np.random.default_rng(1).normal(size=(count, 4, 5)).astype(np.float32)


def test_a_function_or_a_class_of_the_user_draws(module):
    for name in ("tensor", "array"):
        draw = UserFunction.of(f"{module}:{name}").made(tokens(), images, "cpu")
        assert draw.side == 16 and draw.name == f"{module}:{name}" and draw.fingerprint.startswith("source:")
        assert draw(torch.from_numpy(tokens())).shape == (6, 3, 16, 16)
    draw = UserFunction.of(f"{module}:Nearest").made(tokens(), images, "cpu")
    assert (draw.name, draw.fingerprint, draw.side) == ("my nearest", "first_version", 24)
    np.testing.assert_array_equal(draw(torch.from_numpy(tokens()[[3]])), pixels_of(images(24)[[3]]))


def test_the_example_learns_the_way_to_other_tokens():
    example = Path(__file__).parents[2] / "examples" / "wrap_unclip.py"
    draw = UserFunction.of(f"{example}:UnCLIP").made(tokens(), images, "cpu")
    assert draw.side == 64 and draw.name == "token_adapter[4x5 to 64x3] + toy_unclip"
    assert draw(torch.from_numpy(tokens()[:3])).shape == (3, 3, 64, 64)


def test_a_module_in_the_current_folder_is_found(module, monkeypatch):
    monkeypatch.chdir(module.parent)
    assert UserFunction.of("my_drawers:tensor").made(tokens(), images, "cpu").side == 16
    assert isinstance(drawing_of("my_drawers:tensor"), UserFunction) and drawing_of("none") is None


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("signed", NormalizationError, r"in \[0, 1\], got -.*\(x \+ 1\) / 2"),
        ("whole", AxisError, r"floats \(2, 3, S, S\) in \[0, 1\], got torch\.uint8 \(2, 3, 16, 16\)"),
        ("wide", AxisError, r"got torch\.float32 \(2, 3, 8, 16\)"),
        ("few", AxisError, r"\(2, 3, S, S\).*got torch\.float32 \(1, 3, 16, 16\)"),
        ("text", AxisError, "got str"),
        ("Other", BrainDataError, r"Other\(tokens, images, device\), got"),
    ],
)
def test_what_breaks_the_contract_is_named(module, name, error, message):
    with pytest.raises(error, match=message):
        UserFunction.of(f"{module}:{name}").made(tokens(), images, "cpu")


def test_pictures_keep_their_side(module):
    draw = UserFunction.of(f"{module}:changing").made(tokens(), images, "cpu")
    with pytest.raises(AxisError, match=r"\(6, 3, 16, 16\) in \[0, 1\], got torch\.float32 \(6, 3, 8, 8\)"):
        draw(torch.from_numpy(tokens()))


def test_words_of_functions_that_do_not_exist(module, tmp_path):
    for word, error, message in (
        (f"{module}:tenser", BrainDataError, "near: tensor"),
        (f"{module}:NUMBER", BrainDataError, "got int"),
        (f"{tmp_path}/none.py:draw", LayoutError, r"none\.py"),
        ("no_such_module_here:draw", LayoutError, r"No module named 'no_such_module_here'"),
        ("nothing", BrainDataError, "module:name or file.py:name"),
    ):
        with pytest.raises(error, match=message):
            UserFunction.of(word)


@pytest.mark.slow
def test_an_evaluation_with_both_ends_in_a_page(alexnet, module, tmp_path):
    opened = [item for item in opened_models() if item.decodes][:1]
    settings = EvaluationSettings(
        features=("random_conv",),
        pictures=f"{module}:Nearest",
        weights=(f"alexnet={alexnet}",),
        out=tmp_path,
        resamples=20,
        shuffles=2,
        curve=(),
        seed=1,
        check_alignment="off",
        progress=False,
    )
    found = evaluate(trained_models()[0], [opened[0].tokens_of], settings, opened)
    (made,) = found.pictures
    assert made.drawn[0].drawer == "my nearest first_version" and made.bank == "" and made.shown.shape[1] == 24
    true = next(item for item in made.drawn if item.source == "true tokens")
    other = next(item for item in made.drawn if item.source == "responses of another image")
    assert true.published[0].value > other.published[0].value
    page = write_report(found, tmp_path).read_text()
    assert "As in published tables" in page and "alexnet5 ↑" in page and "function of the user" in page
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"]["weights"] == [f"alexnet={alexnet}"]
