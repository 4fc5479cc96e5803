"""The page of a study: what it says, that its pictures are there, and that a browser shows them."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from brainmodels.evaluation.encoding import SHUFFLED
from brainmodels.evaluation.models import SAME_TOKENS
from brainmodels.evaluation.pictures import MEAN, REDUCED, TRUE, draw_pictures
from brainmodels.features import FeatureCache
from brainmodels.metrics import Score
from brainmodels.report import figures, opening, page, published, write_report
from brainmodels.report.figures import Bar, PictureRow
from brainmodels.report.models import _shown_rows
from tests.brainmodels.evaluated import evaluation_of, evaluation_of_models, made_subject, simulated_evaluation
from tests.models import tiny_veca
from veca.report.page import percent as percent_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert write_report(simulated_evaluation(), out) == out / "report.html"
    return out


@pytest.fixture
def unpainted(monkeypatch):
    """No figures, for tests that read other words of pages whose figures are looked at by the tests before them."""
    for name in ("voxel_scores", "roi_bars", "brain_map", "picture_grid", "curves"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)


class Page(HTMLParser):
    """Texts, pictures and tables of a page; tags must close in the order in which they opened."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.texts, self.rows = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts)).replace("\N{NO-BREAK SPACE}", " ")


def percent(value):
    return percent_of(value).replace("\N{NO-BREAK SPACE}", " ")


def first_screen(shown):
    return shown.text().split(" Data ")[0]


def ink(path):
    """Share of the pixels of a picture that are not its most frequent colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int) @ (65536, 256, 1)
    return 1 - np.unique(pixels, return_counts=True)[1].max() / len(pixels)


def test_all_pictures_of_the_page_exist_and_show_something(folder):
    shown = Page(folder / "report.html")
    expected = ["voxels.png", "rois.png", "map.png", "retrieved.png", "learning.png"]
    assert shown.images == expected == list(dict.fromkeys(shown.images))
    for name in expected:
        assert ink(folder / name) > 0.03, name
    assert "<script" not in (folder / "report.html").read_text() and "http" not in (folder / "report.html").read_text()


def test_numbers_beside_the_page_are_those_in_memory(folder):
    evaluation = simulated_evaluation()
    record = json.loads((folder / "record.json").read_text())
    stored = [score for name in ("encoding", "decoding") for item in record[name] for score in item["scores"]]
    meant = [score for item in [*evaluation.encoded, *evaluation.decoded] for score in item.scores]
    assert [Score.from_json(score) for score in stored] == meant and len(meant) > 60
    with np.load(folder / "voxels.npz", allow_pickle=False) as file:
        for number, item in enumerate(evaluation.encoded):
            assert file["names"][number] == f"{item.model}, {item.features}"
            np.testing.assert_array_equal(file[f"r_{number}"], item.r)
        np.testing.assert_array_equal(file["ceiling"], evaluation.study.ceiling)


def test_the_page_tells_the_numbers(folder):
    evaluation, shown = simulated_evaluation(), Page(folder / "report.html")
    grid, decoded = evaluation.encoded[0], evaluation.decoded[0]
    share, top = grid.score("nr2").value, decoded.score("image_given_brain_top1").value
    told = f"{100 * share:.0f} % of the explainable variance and identifies {100 * top:.0f} % of 60 images"
    assert f"Ridge on grid predicts {told}" in first_screen(shown)
    wrong = next(item for item in evaluation.encoded if item.model == "ridge, pairs shuffled").score("nr2").value
    assert f"(with shuffled pairs: {percent(wrong)}) and identifies" in first_screen(shown)
    assert "a simulated subject, whose true responses are known" in shown.text() and "two-way 0.9" in shown.text()
    start = [row[2:3] for row in shown.rows].index(["voxel_r ↑"])  # the head of the table of encoding
    rows = {tuple(row[:2]): row[2:] for row in shown.rows[start + 1 : start + 1 + len(evaluation.encoded) + 2]}
    for item in evaluation.encoded:
        assert rows[item.model, item.features][1] == f"{item.score('nr2').value:.3f}"
    assert rows["noise ceiling", ""][:2] == [f"{np.median(np.sqrt(evaluation.study.ceiling)):.3f}", "1.000"]
    assert shown.rows[-1][0] == "chance, pairs permuted" and shown.rows[-1][-1] == "0.500"  # two-way
    assert "inside it" not in shown.text()


def test_the_page_says_when_all_is_at_chance(unpainted, tmp_path):
    evaluation = simulated_evaluation()

    def chance(items):
        scores = [
            [s if s.chance_interval is None else dataclasses.replace(s, value=s.chance_interval.low) for s in x.scores]
            for x in items
        ]
        return [dataclasses.replace(item, scores=s) for item, s in zip(items, scores, strict=True)]

    lost = dataclasses.replace(evaluation, encoded=chance(evaluation.encoded), decoded=chance(evaluation.decoded))
    write_report(lost, tmp_path / "lost")
    assert "this run shows no information about the stimuli" in Page(tmp_path / "lost/report.html").text()
    half = dataclasses.replace(lost, decoded=evaluation.decoded)  # decoding works: not all is at chance
    assert "no information" not in Page(write_report(half, tmp_path / "half")).text()


def test_budgets_random_weights_and_data_without_ceiling(tmp_path):
    tiny_veca(img_size=32).save_pretrained(tmp_path / "model")
    words = [f"veca{cores}={tmp_path / 'model'}" for cores in ("@4", "")] + ["random_conv"]
    settings = {"check_alignment": "off", "normalizer": "train_z", "resamples": 20, "curve": (20,)}
    evaluation = evaluation_of(made_subject(repeats=1), words, **settings)
    with mock.patch.object(figures, "roi_bars", wraps=figures.roi_bars) as drawn:
        shown = Page(write_report(evaluation, tmp_path / "out"))
    bars = {name for name in drawn.call_args.args[0] if name.startswith("ridge")}
    assert bars == {"ridge, veca@4", "ridge, random_conv"}  # one budget of each backbone
    assert shown.images[-2:] == ["learning.png", "budgets.png"] and ink(tmp_path / "out/budgets.png") > 0.02
    assert "Amount of data and number of cores" in shown.text() and "was not tested" in shown.text()
    assert "random weights (seed 0): not comparable with published numbers" in shown.text()
    assert "explainable variance" not in shown.text() and "noise ceiling" not in {row[0] for row in shown.rows}
    assert {row[1] for row in shown.rows} >= {"veca@4", "veca", "random_conv"}
    assert {name: sorted(points) for name, points in page._budgets(evaluation).items()} == {"veca": [4, 16]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_report(evaluation_of_models(), tmp_path_factory.mktemp("trained")).parent


def test_a_page_of_models_has_their_pictures_and_says_who_decodes(trained):
    evaluation, shown = evaluation_of_models(), Page(trained / "report.html")
    own = ["pictures_0.png", "responses_0.png", "bottleneck_0.png", "responses_1.png"]  # no curve of one point
    assert shown.images == [
        "opening.png",
        *own,
        "voxels.png",
        "rois.png",
        "map.png",
        "retrieved.png",
    ]  # no curve of one point
    assert all(ink(trained / name) > 0.03 for name in ("opening.png", *own))
    text, (first, second) = shown.text(), evaluation.models
    top, ridge = (row.score("image_given_brain_top1").value for row in first.found)
    told = [row.score("nr2").value for row in (first.encoded[0], first.encoded[-1])]
    shrunk = max(row.score("nr2").value for row in first.encoded if row.model.startswith(("reduced", "prior")))
    for value in (top, ridge, shrunk, *told):
        assert percent(value) in first_screen(shown)
    for item in (first, second):
        own, same = (row.score("nr2").value for row in (item.encoded[0], item.encoded[-1]))
        assert own < same and f"{item.opened.name} ({percent(same)} against {percent(own)})" in first_screen(shown)
    assert f"It identifies more images than NeuroFlow ({percent(ridge)} against {percent(top)})." in first_screen(shown)
    assert "a simulated subject, whose true responses are known" in text and "Published" not in text
    assert "Not available: alexnet2" in text and "chance, pairs permuted" in text
    rows = {row[0]: row[1:] for row in shown.rows if row}
    semantics = {row.responses: row for row in first.semantics if row.decoder == "external:ridge"}
    column = shown.rows[[row[0] for row in shown.rows].index("responses")]
    assert column[1:] == ["self: two-way ↑", "self: top-1 ↑", "external:ridge: two-way ↑", "external:ridge: top-1 ↑"]
    expected = semantics["NeuroFlow"].scores[0]
    assert rows["synthetic, of NeuroFlow"][2].startswith(f"{expected.value:.3f}")
    assert rows["synthetic, of SynBrain"][0].startswith(f"{second.semantics[1].scores[0].value:.3f}")
    assert rows["NeuroFlow, responses of another image"] and rows["SynBrain raw_posterior"]


def test_the_first_table_puts_models_beside_ridge_on_their_tokens(trained):
    evaluation, shown = evaluation_of_models(), Page(trained / "report.html")
    rows = {(row.model, row.features): row for row in evaluation.verdict}
    for item in evaluation.models:
        row = rows[item.opened.name, "random_conv tokens"]
        assert row.against == SAME_TOKENS
        own, ridge = item.encoded[0].score("nr2").value, item.encoded[-1].score("nr2").value
        assert row.variance_change.value == pytest.approx(own - ridge, abs=1e-6)
        assert (row.top_change is not None) == item.opened.decodes
    assert [row.model for row in evaluation.verdict].count(SAME_TOKENS) == 1
    assert evaluation.verdict[-1].model == "ridge" and evaluation.verdict[-1].features == "random_conv"
    assert evaluation.record["seeds"] == []
    head = next(number for number, row in enumerate(shown.rows) if row and row[0] == "model")
    table = shown.rows[head + 1 : head + 1 + len(evaluation.verdict)]
    for row, item in zip(table, evaluation.verdict, strict=True):
        assert row[0] == item.model and row[4] == (item.against or "–")
        if item.variance_change is not None:
            assert row[5].startswith(f"{item.variance_change.value:+.3f}")


def test_the_page_opens_with_what_every_model_draws(unpainted, tmp_path):
    """A stacked model that decodes as ridge does shares its row, and stands alone below."""
    evaluation = evaluation_of_models()
    (made,) = evaluation.pictures
    found = {x.source: x.images for x in made.drawn}
    rows = {name: images for name, images, _ in opening._rows(evaluation)}
    assert list(rows) == ["shown", "ridge", "NeuroFlow", "chance:\nanother image"]
    assert rows["NeuroFlow"] is found["NeuroFlow"] and rows["ridge"] is found[SAME_TOKENS]
    ridge = next(x for x in made.drawn if x.source == SAME_TOKENS)
    stacked = dataclasses.replace(ridge, source="NeuroFlow + ridge")
    drawn = [stacked, ridge, *(x for x in made.drawn if x.source == "NeuroFlow")]
    made = dataclasses.replace(made, model="NeuroFlow + ridge", alone="NeuroFlow", drawn=drawn)
    rows = [name for name, *_ in opening._rows(dataclasses.replace(evaluation, pictures=[made]))]
    assert rows == ["shown", "ridge\n= NeuroFlow + ridge", "NeuroFlow"]
    told = opening.opening_view(dataclasses.replace(evaluation, pictures=[made]), tmp_path)
    assert told["found"] and not (told["chance"] or told["drawn"] or told["captions"])  # nothing is from another image
    assert opening.opening_view(evaluation, tmp_path)["chance"]
    assert opening.opening_view(dataclasses.replace(evaluation, pictures=[]), tmp_path) is None


def test_a_model_that_beats_ridge_is_not_said_to_lose(unpainted, tmp_path):
    evaluation = evaluation_of_models()
    item = evaluation.models[0]
    values = [[score.value for score in row.scores] for row in item.found][::-1]  # the two change places
    found = [
        dataclasses.replace(row, scores=[dataclasses.replace(a, value=b) for a, b in zip(row.scores, new, strict=True)])
        for row, new in zip(item.found, values, strict=True)
    ]
    item = dataclasses.replace(item, encoded=item.encoded[::-1], decoded=found)
    better = dataclasses.replace(evaluation, models=[item], pictures=[])
    text = first_screen(Page(write_report(better, tmp_path)))
    assert "No model is worse than ridge on the same tokens." in text and "against" not in text


def test_names_on_the_page_are_escaped(unpainted, tmp_path):
    evaluation, script = simulated_evaluation(), "<script>alert(1)</script>"
    record = evaluation.record | {"data": evaluation.record["data"] | {"subject": script}}
    encoded = [dataclasses.replace(item, features=script, note=f"random {script}") for item in evaluation.encoded]
    write_report(dataclasses.replace(evaluation, record=record, encoded=encoded), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > len(encoded) + 3


def test_a_model_that_only_encodes_has_pictures_that_ridge_finds_and_no_way_back(tmp_path):
    evaluation = evaluation_of_models()
    item, features = evaluation.models[1], evaluation.models[1].opened.features
    cache = FeatureCache(tmp_path / "features", features.extractor, evaluation.dataset.stimuli)
    cache.extract(evaluation.study.test.image_ids, progress=False)
    cache.extract(evaluation.study.train.image_ids, progress=False)
    found = draw_pictures(item, evaluation.study, evaluation.dataset, cache)
    external = "external:ridge, responses of SynBrain"
    assert [x.source for x in found.drawn] == [SAME_TOKENS, MEAN, external, REDUCED, TRUE, SHUFFLED]
    assert {x.drawer.split()[0] for x in found.drawn} == {"nearest_of_230"}
    ridge, _, _, _, ceiling, chance = (x.score("two_way[grid]").value for x in found.drawn)
    rows = [label.replace("\n", " ") for label, _ in _shown_rows(found)]
    assert rows == [
        "ridge, nearest picture",
        "chance: mean tokens, nearest picture",
        "ceiling: true tokens, nearest picture",
    ]
    assert ceiling > ridge > 0.6 > chance
    alone = dataclasses.replace(evaluation, models=[item], pictures=[found])
    shown = Page(write_report(alone, tmp_path / "out"))
    assert "SynBrain predicts" in shown.text() and "Round trips" not in shown.text()
    assert "self: two-way ↑" not in {cell for row in shown.rows for cell in row}
    title = re.search("<title>(.*?)</title>", (tmp_path / "out/report.html").read_text(), re.DOTALL)[1]
    assert "pictures_0.png" in shown.images and "SynBrain predicts" in title and "identifies" not in title


def test_responses_are_drawn_where_their_voxels_are():
    """One voxel above and one below the mean are a red and a blue spot, each a voxel large; what is NaN stays white."""
    space = simulated_evaluation().study.test.subject.space
    values = np.zeros(len(space), np.float32)
    heights = np.quantile(space.index[:, 2], [0.125], method="nearest").astype(int)
    inside = np.flatnonzero(space.index[:, 2] == heights[0])
    front, back = inside[space.index[inside, 1].argmax()], inside[space.index[inside, 1].argmin()]
    values[front], values[back] = 1, -1
    picture = figures.response_picture(values, space, 1.0).astype(int)
    red, blue = (picture[..., a] - picture[..., b] > 60 for a, b in ((0, 2), (2, 0)))
    assert 0 < red.sum() < 0.01 * red.size and 0 < blue.sum() < 0.01 * blue.size
    assert np.nonzero(red)[0].mean() < np.nonzero(blue)[0].mean()  # front above
    values[front] = np.nan
    gone = figures.response_picture(values, space, 1.0).astype(int)
    assert not (gone[..., 0] - gone[..., 2] > 60).any()


def test_published_numbers_come_with_their_warnings_and_on_request_only(unpainted, tmp_path):
    evaluation = simulated_evaluation()
    record = evaluation.record | {"settings": evaluation.record["settings"] | {"published": True}}
    text = write_report(dataclasses.replace(evaluation, record=record), tmp_path).read_text()
    text = text[text.index("<h2>Published numbers") : text.index("<h2>Encoding")]
    assert ".139" in text and "98.6 / 98.7" in text and "arXiv 2508.10298" in text
    assert text.count("<li>") == 5 and all(len(row.cells) == 5 for row in published.ROWS)


def test_bars_stand_where_their_values_are(tmp_path):
    """A bar of twice the value has twice the pixels of its colour, and one of another model another colour."""
    bars = {"a": {"V1": Bar(0.4, 0.4, 0.4)}, "b": {"V1": Bar(0.8, 0.8, 0.8)}}
    figures.roi_bars(bars, tmp_path / "bars.png", "r")
    pixels = np.asarray(Image.open(tmp_path / "bars.png").convert("RGB"))
    heights = []
    for color in figures.PALETTE[:2]:
        found = (pixels == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
        heights.append(found[:, found.sum(0).argmax()][60:].sum())  # the legend is above
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.03)


def test_pictures_keep_their_colours_and_only_the_right_ones_are_framed(tmp_path):
    red, green = (np.full((8, 8, 3), color, np.uint8) for color in ((255, 0, 0), (0, 255, 0)))
    rows = (
        PictureRow("shown", [red, green]),
        PictureRow("found", [red, red], ["", "right one: rank 2"], [True, False]),
    )
    figures.picture_grid([rows], tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    share = {color: (pixels == color).all(-1).mean() for color in ((255, 0, 0), (0, 255, 0))}
    assert share[255, 0, 0] == pytest.approx(3 * share[0, 255, 0], rel=0.05) and share[0, 255, 0] > 0.1
    blue = (pixels == [int(figures.BLUES[1][i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
    down, across = np.nonzero(blue)
    assert len(down) and down.min() > 0.4 * len(pixels) and across.max() < 0.65 * pixels.shape[1]


def test_labels_of_near_ticks_do_not_collide():
    assert figures._apart([50, 100, 200, 400, 800, 855], True) == [50, 100, 200, 400, 855]
    assert figures._apart([4, 8, 16], False) == [4, 8, 16] and figures._apart([7], True) == [7]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, google-chrome or chrome found")
def test_a_browser_shows_the_page(folder, tmp_path):
    picture = tmp_path / "page.png"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,7000", f"--screenshot={picture}"),
            (folder / "report.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    shown = np.asarray(Image.open(picture).convert("L"), np.float32)
    assert shown.shape == (7000, 1200)
    last = max(np.flatnonzero(np.ptp(shown, axis=1) > 100))
    assert 4000 < last < 6990  # all of the page is in the window
    tops = [place_of(folder / name, shown) for name in Page(folder / "report.html").images]
    assert tops == sorted(tops)


def place_of(path, shown):
    """The line of the page at which a picture starts; it must be there, at the width that the style gives it."""
    image = Image.open(path).convert("L")
    width = 758 if path.name == "learning.png" else 1062  # inside a border of a pixel
    image = np.asarray(image.resize((width, round(width * image.height / image.width))), np.float32)[:-2]
    there = np.lib.stride_tricks.sliding_window_view(shown[:, 69 : 69 + width].mean(1), len(image))
    error = np.abs(there - image.mean(1)).mean(1)
    assert error.min() < 1 < 0.1 * np.ptp(image.mean(1)), (path.name, error.min())
    return int(error.argmin())
