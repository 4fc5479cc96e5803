"""`veca brain catalog`: what it prints, its JSON, and its page."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from brainmodels import catalog
from brainmodels.cli import main
from brainmodels.report.catalog import write_catalog


def printed(capsys, *words: str) -> str:
    main(["catalog", *words])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return write_catalog(tmp_path_factory.mktemp("page") / "new" / "catalog.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Ids, links within the page, and names of elements."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.loaded += [given[x] for x in ("src", "srcset", "data") if x in given]


def test_the_page_has_an_anchor_for_each_card(page):
    found = Elements(page)
    assert len(found.ids) == len(set(found.ids))
    assert {card.anchor for card in catalog.all_cards()} <= set(found.ids)
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_the_page_has_no_script_and_nothing_from_outside(page):
    found = Elements(page)
    assert not found.tags & {"script", "link", "iframe", "object", "embed", "img"} and not found.loaded
    assert "url(" not in page and "@import" not in page and "javascript:" not in page
    assert not re.search(r"\son\w+=", page)


def test_the_menus_choose_by_classes_that_rows_have(page):
    """Each choice of a menu has a rule, and the rows that it keeps are those of the filter."""
    for signal in catalog.SIGNALS:
        assert f'option[value="{signal}"]:checked' in page
        rows = len(re.findall(rf'<tr class="entry [^"]*\bsignal-{signal}\b', page))
        models = sum(max(1, len(x.task)) for x in catalog.list_models(signal=signal))  # a row for each task
        assert rows == models + len(catalog.list_datasets(signal=signal))
    assert all(f'option[value="{word}"]:checked' in page for word in catalog.HERE)
    assert all(f'option[value="{task}"]:checked' in page for task in ("IBI", "IBI+IBT", "MBM"))


def test_the_page_shows_metrics_with_formula_and_chance(page):
    row = re.search(r'<td id="metrics-two-way--features--">.*?</tr>', page, re.DOTALL)
    assert row and "0.5" in row[0] and "strictly less" in row[0]
    assert "controls:block_shuffle" in page and "our reading" in page


def test_coverage_is_printed(capsys):
    out = printed(capsys)
    cells = {(x.task, x.signal): x.models for x in catalog.coverage()}
    row = next(line for line in out.splitlines() if line.startswith("IBI "))
    assert row.split()[1:4] == [str(cells["IBI", x]) for x in ("fmri", "eeg", "meg")]
    assert "UniBrain" in out and f"{len(catalog.list_datasets())} datasets" in out


def test_filters_are_those_of_the_library(capsys):
    out = printed(capsys, "models", "--task", "IBI", "--modality", "eeg", "--family", "BPFA")
    assert [line.split()[0] for line in out.splitlines()] == ["name", "DreamDiffusion", "1"]
    assert printed(capsys, "models", "--signal", "meg") == printed(capsys, "models", "--modality", "meg")
    years = json.loads(printed(capsys, "models", "--year", "2016", "2018", "--json"))
    assert [x["name"] for x in years] == [x.name for x in catalog.list_models(year=(2016, 2018))]
    assert "image_given_brain_top{k:d}@{gallery:d}" in printed(capsys, "metrics", "--level", "identification")


def test_json_has_every_field(capsys):
    found = json.loads(printed(capsys, "datasets", "--stimulus", "image", "--here", "reads", "--json"))
    assert [x["name"] for x in found] == [x.name for x in catalog.list_datasets(stimulus="image", here="reads")]
    nsd = found[0]
    assert nsd["layouts"] == ["nsd_native", "nsd_prepared", "mindeye1", "mindeye2"] and nsd["checked"] is None
    assert nsd["sources"][0]["confidence"] == "listed"
    [mindeye] = json.loads(printed(capsys, "mindeye", "--json"))
    assert mindeye["family"] == "Map" and mindeye["facts"]["generator"] == "frozen"
    assert json.loads(printed(capsys, "--json"))[0]["task"] == "IBI"
    [clip] = json.loads(printed(capsys, "pixcorr", "--json"))
    assert clip["direction"] == "up" and clip["protocol"].startswith("RGB pixels")


def test_one_card_with_pitfalls_and_what_runs_here(capsys):
    out = printed(capsys, "MindEye")
    assert "what runs here instead: NeuroFlow" in out and "veca brain train --model neuroflow" in out
    assert "label)" in out and "our reading" in out
    assert "runs here: Neuro-3D" in printed(capsys, "neuro3d")
    data = printed(capsys, "EEG-ImageNet")
    assert data.startswith("EEG-VOA (datasets)") and "pitfall: Stimuli of one class follow each other." in data
    assert "veca brain layouts god" in printed(capsys, "GOD")
    both = printed(capsys, "DIR")
    assert "DIR (datasets)" in both and "DIR (models)" in both


def test_the_page_is_written(capsys, tmp_path):
    file = tmp_path / "out" / "catalog.html"
    assert printed(capsys, "--html", str(file)).splitlines()[-1] == str(file)
    assert file.is_file()


def test_the_command_needs_no_extra():
    """Models and data sets are listed where the packages of `veca[brain]` are not installed."""
    block = "import sys\nfor name in 'h5py sklearn skimage himalaya mne'.split():\n    sys.modules[name] = None\n"
    code = "from brainmodels import catalog\nfrom brainmodels.cli import main\nmain(['catalog', 'NSD'])\n"
    code += "main(['catalog', 'NeuroFlow'])\n"
    code += "main(['catalog', 'metrics', '--level', 'voxel'])"
    result = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "NSD (datasets)" in result.stdout and "voxel_r" in result.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (("MindEy",), "got 'MindEy'; near: MindEye"),
        (("modls",), "or a section; near: models"),
        (("models", "--task", "IBB"), "got 'IBB'; near: "),
        (("models", "--stimulus", "image"), "expected a filter of models .*got --stimulus"),
        (("--task", "IBI"), "expected one of models before --task, got nothing"),
        (("models", "--signal", "eeg", "--modality", "meg"), "expected one signal, got 'eeg' and the modality 'meg'"),
        (("models", "--year", "1", "2", "3"), "expected one year, or the first and the last"),
        (("--add", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_wrong_words_end_the_command(words, message):
    with pytest.raises(SystemExit, match=f"veca brain catalog: .*{message}"):
        main(["catalog", *words])
