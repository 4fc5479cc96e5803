"""The page of decoded objects: what it says, that its pictures and clouds are there, and that all text is escaped."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from brainmodels.data.object_study import ObjectStudy
from brainmodels.evaluation.object_clouds import PRIMARY, retrieved_name
from brainmodels.evaluation.object_rows import RIDGE
from brainmodels.metrics import Interval
from brainmodels.report import object_figures, objects
from brainmodels.report.clouds import turntable
from brainmodels.report.object_figures import confusion_table
from brainmodels.report.object_subjects import subject_table, write_subjects
from brainmodels.report.objects import write_object_report
from tests.brainmodels.object_stand_in import COURSES, NAME, object_evaluation

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def found():
    return object_evaluation()


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    """The whole page, with turning objects of two small frames."""
    out = tmp_path_factory.mktemp("objects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "turntable", lambda cloud, path, frames: turntable(cloud, path, 2, 32))
        for name, value in {"_TURNING": 2, "_RANDOM": 3, "_ENDS": 1, "_SIZE": 48}.items():
            patch.setattr(objects, name, value)
        assert write_object_report(found, out) == out / "report.html"
    return out


@pytest.fixture
def unpainted(monkeypatch):
    """No pictures, for tests that read other words of pages whose pictures are looked at by the tests before them."""
    for name in ("picture_grid", "curves", "roi_bars"):
        monkeypatch.setattr(objects.figures, name, lambda *_, **__: None)
    for name in ("render_cloud", "turntable", "export_cloud", "topography", "time_courses", "confusion_table"):
        monkeypatch.setattr(objects, name, lambda *_, **__: ())


class Page(HTMLParser):
    """Texts, pictures and tables of a page; tags must close in the order in which they opened."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.texts, self.rows, self.title = [], [], [], [], ""
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
        if "style" in self.open:
            return
        self.texts.append(data)
        if "h1" in self.open:
            self.title += data
        if {"td", "th"} & {*self.open[-2:]} and "small" not in self.open:
            self.rows[-1][-1] += data

    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts)).replace("\N{NO-BREAK SPACE}", " ")


def ink(path):
    """Share of the pixels of a picture that are not its most frequent colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int) @ (65536, 256, 1)
    return 1 - np.unique(pixels, return_counts=True)[1].max() / len(pixels)


def with_outcome(found, low, high):
    """The evaluation with another interval of decoded minus retrieved clouds."""
    pair = found.against(retrieved_name(found.name))
    given = replace(pair, value=(low + high) / 2, interval=Interval(low, high))
    return replace(found, paired=[given if item == pair else item for item in found.paired])


def test_all_pictures_of_the_page_exist_and_show_something(folder):
    shown = Page(folder / "report.html")
    figures = ["objects.png", "confusion.png", "regions.png", "head_shape.png", "head_color.png", "times.png"]
    assert {*figures, "bottleneck.png"} <= {*shown.images}
    for name in shown.images:
        assert ink(folder / name) > 0.02, name
    turning = [name for name in shown.images if name.endswith(".gif")]
    assert len(turning) == 4 and all(Image.open(folder / name).n_frames == 2 for name in turning)
    source = (folder / "report.html").read_text()
    assert "<script" not in source and "http" not in source


def test_no_text_is_unescaped(folder):
    source = (folder / "report.html").read_text()
    assert "<In>" not in source and "Stand&lt;In&gt;" in source
    assert NAME in Page(folder / "report.html").title


def test_every_row_is_on_the_page_with_its_number(found, folder):
    shown = Page(folder / "report.html")
    rows = {}
    for row in shown.rows:
        rows.setdefault(row[0], []).append(row[1:])
    for table, rows_of in found.tables.items():
        for row in rows_of:
            value = row.scores[0].value
            assert any(f"{value:.3f}" in cells for cells in rows[row.name]), (table, row.name)
    for item in found.paired:
        assert item.second in rows or f"{item.first} minus {item.second}" in rows
    for row in found.released:
        assert any(f"{row['released']:.3f}" in cells for cells in rows[row["what"]])
    best = found.row("clouds", NAME).pick("chamfer_l2", "rms")
    assert [f"{best.chance:.3f}"] == [cells[0] for cells in rows["chance"]][:1]
    assert [f"{best.ceiling:.3f}"] == [cells[0] for cells in rows["ceiling"]][:1]


def test_first_sentences_have_chance_ceiling_ridge_and_retrieved(found, folder):
    text = Page(folder / "report.html").text()
    own, ridge, beside = (found.row("classes", name).scores[0].value for name in (NAME, RIDGE, COURSES))
    rival = f"chance 17 %, best ridge {100 * max(ridge, beside):.0f} %, best possible 100 %"
    assert f"names the class of {100 * own:.0f} % of 12 new objects ({rival})" in text
    assert f"ridge {100 * ridge:.0f} %; {COURSES} {100 * beside:.0f} %" in text
    decoded, retrieved = (found.row("clouds", x).values[PRIMARY].mean() for x in (NAME, retrieved_name(NAME)))
    assert (
        f"Its clouds have a distance of {decoded:.3f} to the true ones, and retrieved train clouds of {retrieved:.3f}"
        in text
    )
    assert found.first_line in text and text.index("Against retrieval.") < text.index("Decoded objects")


@pytest.mark.parametrize(
    ("low", "high", "title"),
    [
        (-0.03, -0.01, "decodes objects from EEG, and its clouds are nearer to the truth than retrieved ones"),
        (-0.01, 0.01, "does not beat retrieval: train clouds of the named class are as near to the truth"),
        (0.01, 0.03, "does not beat retrieval: train clouds of the named class are nearer to the truth"),
    ],
)
def test_the_first_line_says_whether_retrieval_is_beaten(unpainted, found, tmp_path, low, high, title):
    page = Page(write_object_report(with_outcome(found, low, high), tmp_path))
    assert page.title.strip() == f"{NAME} {title}"


def test_numbers_beside_the_page_are_those_in_memory(found, folder):
    assert json.loads((folder / "record.json").read_text()) == json.loads(json.dumps(found.record))


def test_clouds_open_elsewhere(found, folder):
    trimesh = pytest.importorskip("trimesh")
    names = sorted(path.stem for path in (folder / "clouds").glob("*.ply"))
    assert len(names) == 6 and {x.rpartition("_")[2] for x in names} == {"true", "decoded", "retrieved"}
    stem = next(x for x in names if x.endswith("_decoded"))
    image_id = stem.removesuffix("_decoded").replace("_", ":", 1)
    cloud = trimesh.load(folder / "clouds" / f"{stem}.ply")
    np.testing.assert_allclose(cloud.vertices, found.clouds(NAME)[image_id][0][:, :3], atol=1e-6)
    mesh = trimesh.load(folder / "clouds" / f"{stem}.glb", force="mesh")
    assert len(mesh.faces) == 8 * len(cloud.vertices)


def test_published_numbers_only_beside_real_data_and_when_asked_for(unpainted, found, tmp_path):
    def page(evaluation, name):
        return Page(write_object_report(evaluation, tmp_path / name)).text()

    asked = replace(found.case, settings=replace(found.case.settings, published=True))
    study = found.case.study
    real = replace(asked, study=ObjectStudy(study.static, study.dynamic, color_names=study.color_names))
    quiet = replace(found.case, study=real.study)
    assert "5.91 / 16.30" not in page(replace(found, case=asked), "simulated")
    assert "5.91 / 16.30" not in page(replace(found, case=quiet), "quiet")
    text = page(replace(found, case=real), "real")
    assert "5.91 / 16.30" in text and "the judge is lost" in text and "simulated EEG" not in text


def test_a_study_of_one_stream_without_colours_sensors_and_judge(unpainted, found, tmp_path):
    tables = {name: rows for name, rows in found.tables.items() if name != "probe_color"} | {"colors": []}
    poor = replace(found, tables=tables, sensors=None, judges=found.judges[:1], agreements=found.agreements[:1])
    text = Page(write_object_report(poor, tmp_path)).text()
    assert "Which sensors, and when" not in text and "and the colour of" not in text and "top-1 of 6" in text


def test_a_model_chosen_by_test_objects_has_a_warning(unpainted, found, tmp_path, monkeypatch):
    assert "was chosen by the test objects" not in Page(write_object_report(found, tmp_path / "no")).text()
    monkeypatch.setattr(found.models[NAME].recipe, "selection", "test")
    assert f"The epoch of {NAME} was chosen by the test" in Page(write_object_report(found, tmp_path / "yes")).text()


def test_subjects_are_listed_with_mean_and_standard_error(found, tmp_path):
    second = replace(found, case=replace(found.case, test=replace(found.case.test, subject="sim02")))
    rows = [replace(x, scores=[x.scores[0].under(value=0.5)]) for x in found.tables["classes"]]
    second = replace(second, tables={**found.tables, "classes": rows})
    table = subject_table([found, second])
    own = found.row("classes", NAME).scores[0].value
    name = f"class top-1, {NAME}"
    assert table["subjects"]["sim02"][name] == 0.5 and table["mean"][name] == pytest.approx((own + 0.5) / 2)
    assert table["sem"][name] == pytest.approx(abs(own - 0.5) / 2)  # sd / sqrt(2) of two values
    page = Page(write_subjects([found, second], tmp_path))
    assert json.loads((tmp_path / "subjects.json").read_text()) == table
    assert [row[0] for row in page.rows] == ["subject", "sim01", "sim02", "mean"] and "on 2 subjects" in page.title
    assert 'href="sim02/report.html"' in (tmp_path / "report.html").read_text()


def test_confusions_of_two_answers_are_drawn_apart(tmp_path):
    wrong = np.zeros((3, 3), int)
    wrong[:, 0] = 4
    confusion_table({"a": np.eye(3, dtype=int) * 4, "b": wrong}, ["x", "y_z", "w"], tmp_path / "a.png")
    confusion_table({"a": wrong, "b": wrong}, ["x", "y_z", "w"], tmp_path / "b.png")
    first, second = (np.asarray(Image.open(tmp_path / f"{x}.png").convert("L"), float) for x in "ab")
    half = first.shape[1] // 2
    changed = np.abs(first - second) > 60
    assert changed[:, :half].sum() > 1000 > changed[:, half + 40 :].sum()
    assert object_figures.MOST_CLASSES >= 24


@pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine")
@pytest.mark.slow
def test_a_browser_shows_the_page(folder, tmp_path):
    picture = tmp_path / "page.png"
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1200,2400".split()
    command = [CHROMIUM, *flags, f"--screenshot={picture}", (folder / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert ink(picture) > 0.1
