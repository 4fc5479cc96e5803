"""The page of talking heads: what it says first, that its pictures are marked, and that all text is escaped."""

import importlib.util
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from brainmodels.data.synthetic import mark_synthetic
from brainmodels.evaluation.head_made import COPY, EXACT
from brainmodels.report import heads
from brainmodels.report.heads import write_head_report
from tests.brainmodels.head_stand_in import one_film, two_heads


class Page(HTMLParser):
    """Texts, files and tables of a page; tags must close in the order in which they opened."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.videos, self.links, self.rows, self.tags = [], [], [], [], [], set()
        self.text, self.title = "", ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.tags.add(tag)
        if tag == "img":
            self.images.append(facts["src"])
        if tag == "video":
            assert "controls" in facts
            self.videos.append(facts["src"])
        if tag == "a":
            self.links.append(facts["href"])
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
        self.text += data
        if "h1" in self.open:
            self.title += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The page of two heads, its folder, and the rows of pictures that were drawn."""
    out, rows = tmp_path_factory.mktemp("heads"), []
    paint = heads.figures.picture_grid
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads.figures, "picture_grid", lambda groups, path: (rows.extend(groups[0]), paint(groups, path)))
        assert write_head_report(two_heads(), out) == out / "report.html"
    return Page(out / "report.html"), out, rows


def test_page_says_first_what_is_good_and_what_is_not(drawn):
    page, *_ = drawn
    assert page.title == "Exact beats copying the reference frame, and its lips follow the sound alone"
    assert two_heads().first_line in page.text
    for verdict in two_heads().verdicts() + two_heads().verdicts("Leaky <b>"):
        assert verdict.text in page.text
    assert page.text.index("What is good") < page.text.index("Emotions and intensities")
    assert page.text.index("Animate only people who agreed") < page.text.index("What is good")
    assert "impersonation" in page.text
    assert "what somebody feels" in page.text


def test_page_needs_no_script_and_no_network(drawn):
    page, out, _ = drawn
    source = (out / "report.html").read_text(encoding="utf-8")
    assert "script" not in page.tags
    assert "http" not in source
    assert "Leaky <b>" not in source  # all text is escaped
    assert "Leaky &lt;b&gt;" in source
    assert {"emotions.png", "strip.png", "openings.png"} <= set(page.images)
    assert sum(name.endswith(".gif") for name in page.images) == 8 + 4
    for name in page.images + page.videos + page.links:
        assert (out / name).is_file(), name


def test_record_holds_the_scores_of_the_page(drawn):
    _, out, _ = drawn
    record = json.loads((out / "record.json").read_text())
    assert record["first_line"] == two_heads().first_line
    assert set(record["tables"]) == {"pictures", "sync", "expression", "identity"}


def test_all_pictures_are_marked(drawn):
    _, out, rows = drawn
    found, pictures = two_heads(), [picture for row in rows for picture in row.pictures]
    assert [row.name for row in rows[:8]] == [emotion for emotion, alpha in found.grid if alpha == 0]
    assert len(pictures) == 8 * 3 + 4 * 8
    for picture in pictures:
        height = picture.shape[1]
        np.testing.assert_array_equal(picture, mark_synthetic(picture[None, :height])[0])
    happy = rows[5].pictures[2][:96:3, ::3]
    np.testing.assert_array_equal(happy, found.grid["happy", 1.0])
    for name in ("happy", "clip_true", "clip_model", "swapped_model"):
        with Image.open(out / "films" / f"{name}.gif") as film:
            width, height = film.size
            assert height > width
            strip = np.asarray(film.convert("L"))[width:]
            assert set(np.unique(strip > 128)) == {False, True}
            assert json.loads(film.info["comment"])["synthetic"] == "true"


def test_leak_is_beside_every_number_of_sync(drawn):
    page, *_ = drawn
    (head,) = [row for row in page.rows if any("r, swapped" in cell for cell in row)]
    start = page.rows.index(head)
    assert head[1].startswith("leak")
    leak = two_heads().row("sync", "Exact").score("swap_leak").value
    exact = next(row for row in page.rows[start:] if row[0] == "Exact")
    assert exact[1].startswith(f"{leak:.3f}")
    copied = next(row for row in page.rows[start:] if row[0].startswith(COPY))
    assert copied[1].startswith("–")
    assert f"Leak over all swapped clips: {leak:.3f}" in page.text
    counts = next(row for row in page.rows[start:] if row[0] == "n")
    assert counts[1] == "16swapped clips"
    assert any(row[0].startswith(EXACT) for row in page.rows[start:])


def test_scores_that_are_not_available_say_why(drawn):
    page, *_ = drawn
    for score in two_heads().gated:
        assert score.note in page.text
    assert "Not available: (1)" in page.text


def test_films_with_sound(drawn):
    pytest.importorskip("av")
    from brainmodels.data.media import read_audio, read_metadata

    page, out, _ = drawn
    assert sorted(page.videos) == [f"films/{name}.mp4" for name in _PAIR]
    assert len(page.links) == 8
    assert read_metadata(out / "films" / "clip_model.mp4")["synthetic"] == "true"
    case = two_heads().case
    sound = read_audio(out / "films" / "swapped_model.mp4")
    other = case.test[case.ids.index(next(iter(two_heads().videos("Exact").swapped))[1])]
    count = min(len(sound), len(other.audio))
    assert np.corrcoef(sound[:count], other.audio[:count])[0, 1] > 0.8


def test_page_without_the_package_of_films(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "find_spec", lambda name: None if name == "av" else importlib.util.find_spec(name))
    for name in ("_draw_grid", "_draw_strip", "_draw_openings"):
        monkeypatch.setattr(heads, name, lambda *_: None)
    page = Page(write_head_report(two_heads(), tmp_path))
    assert page.videos == page.links == []
    assert "need PyAV" in page.text
    assert not list(tmp_path.rglob("*.mp4"))


def test_page_of_films_whose_truth_is_not_known(tmp_path):
    page = Page(write_head_report(one_film(), tmp_path))
    assert page.title.startswith("Film does not beat copying the reference frame")
    assert "The exact renderer of these clips is not known" in page.text
    assert "The probe" not in page.text.split("Use and misuse")[0].split("Identity")[-1]
    assert "needs simulated clips" in page.text
    assert "darkness of the mouth box" in page.text
    assert (tmp_path / "openings.png").is_file()
    assert "farther from the true frames" in page.text or "no nearer" in page.text


_PAIR = ("clip_model", "clip_true", "swapped_model", "swapped_true")
