"""The catalogue: counts, families, names, filters against brute force, and the check that keeps it true."""

import re
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from brainmodels import catalog
from brainmodels.catalog import FamilyFacts, PublishedNumber, derive_family
from brainmodels.catalog import store as catalog_store
from brainmodels.catalog.cards import registered_metrics
from brainmodels.errors import BrainDataError
from brainmodels.layouts import LAYOUTS
from brainmodels.metrics import list_metrics, metric

CARDS = catalog.all_cards()
MODELS = catalog.list_models()
SURVEY = [x for x in MODELS if x.listed and x.setting == "passive"]
MEMBERS = {  # families as listed in the specification of the taxonomy
    "Map": "BrainSD, BrainSD-TGD, BrainDiffuser, MindDiffuser, MindEye, BrainCLIP, DREAM, Mind Reader, BrainSCN, "
    "BrainICG, SBD, BrainBBG, BigGAN-Bayes, Faces, DIR, BrainDCG, UniBrain, Brain Captioning, MEG-BD, BSR, "
    "Brain2Music, GIC-RL, DSR, GNLD",
    "BPM": "LEA",
    "BPFA": "MindVis, CMVDM, CAD, DreamDiffusion, Mind-Video",
    "MTF": "Brain2Image, NeuroVision, EEG-GAN, EEG-VGD, DM-RE2I, BrainSSG, BrainHSG, NeuroImagen",
    "End-to-End": "E-DIR, f-CVGAN, Brain2Pix, ETCAS, UniCoRN, GIC-CT, GIC-PTL, DreamCatcher, NDMusic, DNV",
    "CAEA": "SSNIR, SSNIR-SC, SSDR, SSRNM",
    None: "VQ-fMRI, BrainHVAE, BrainViVAE, BrainDVG, DBDM, CLSR",
}


@pytest.fixture
def own_cards(monkeypatch):
    """Cards that a test adds are forgotten after it."""
    monkeypatch.setattr(catalog_store, "_added", [])


def test_numbers_of_the_survey():
    """58 passive models by task and signal, 25 data sets of which 4 are read."""
    assert len(SURVEY) == 58
    tasks = Counter("VBT or SBT" if {"VBT", "SBT"} & set(x.task) else x.task[0] for x in SURVEY)
    assert tasks == {"IBI": 38, "IBI+IBT": 2, "IBT": 4, "VBV": 6, "SBS": 2, "MBM": 2, "VBT or SBT": 4}
    assert Counter(x.signal for x in SURVEY if x.task == ("IBI",)) == {"fmri": 30, "eeg": 7, "meg": 1}
    data = [x for x in catalog.list_datasets() if x.listed]
    assert Counter(x.here for x in data) == {"reads": 4, "outside": 21}


def test_derived_families_are_the_listed_ones():
    found = {family: {x.name for x in SURVEY if x.family == family} for family in MEMBERS}
    assert found == {family: set(names.split(", ")) for family, names in MEMBERS.items()}
    newer = {x.name: x.family for x in MODELS if x.here == "implements" and not x.listed}
    assert newer["NeuroFlow"] == "Map" and newer["MindAligner"] == "BPM" and newer["Neuro-3D"] == "MTF"
    assert newer["SynBrain"] is newer["BraInCoRL"] is newer["EMOdiffhead"] is None


@pytest.mark.parametrize("joint", (False, True))
def test_rules_of_families_in_their_order(joint):
    """The first rule that holds decides, against the rules written as a list."""
    for pretrained, finetuned, mapping, generator, alignment, search in product(
        (False, True),
        (False, True),
        ("none", "ridge"),
        ("none", "frozen", "trained", "finetuned"),
        ("none", "cycle", "contrastive"),
        (False, True),
    ):
        rules = [
            (search, None),
            (alignment == "cycle", "CAEA"),
            (joint, "End-to-End"),
            (pretrained and finetuned, "BPFA"),
            (pretrained, "BPM"),
            (generator == "trained", "MTF"),
            (mapping != "none" and generator == "frozen", "Map"),
            (True, None),
        ]
        facts = FamilyFacts(pretrained, finetuned, mapping, generator, alignment, joint, search)
        assert derive_family(facts) == next(family for holds, family in rules if holds)


def test_nothing_is_wrong():
    assert catalog.check() == []


def changed(section: str, name: str, **values) -> list:
    """All cards, one of them changed."""
    return [replace(x, **values) if (x.section, x.name) == (section, name) else x for x in CARDS]


DEFECTS = {
    "dead reference": (
        changed("datasets", "GOD", ref=("brainmodels.layouts.gone:load",)),
        "gone:load does not resolve",
    ),
    "private name": (changed("datasets", "GOD", ref=("brainmodels.layouts.god:Path",)), "is not in __all__"),
    "no function": (changed("datasets", "GOD", ref=("brainmodels.layouts:LAYOUTS",)), "is not callable"),
    "no proof": (changed("datasets", "GOD", proof=()), "needs ref and proof"),
    "lost test": (changed("datasets", "GOD", proof=("tests/brainmodels/gone.py",)), "there is no test file"),
    "silent test": (changed("datasets", "GOD", proof=("tests/test_readme.py",)), "do not name god"),
    "outside with a reference": (changed("datasets", "GOD", here="outside"), "has no ref and no proof"),
    "orphan layout": (changed("datasets", "GOD", layouts=()), "expected one card for the layout god, got 0"),
    "layout twice": (changed("datasets", "DIR", layouts=("god",)), "expected one card for the layout god, got 2"),
    "unknown layout": (changed("datasets", "DIR", layouts=("dir",)), "there is no layout dir"),
    "orphan metric": ([x for x in CARDS if x.name != "voxel_r"], "expected one card for the metric voxel_r, got 0"),
    "orphan region": ([x for x in CARDS if x.name != "V1v"], "expected one card for the region V1v, got 0"),
    "orphan system": (
        [x for x in CARDS if x.name != "SynBrain"],
        "system brainmodels.systems.synbrain:SynBrain, got 0",
    ),
    "orphan simulator": ([x for x in CARDS if x.name != "SIM EEG"], "simulator brainmodels.simulated:simulate_eeg"),
    "orphan features": ([x for x in CARDS if x.name != "Gabor"], "expected one card for the features Gabor, got 0"),
    "orphan generator": ([x for x in CARDS if x.name != "Blend"], "the generator brainmodels.nn:Blend, got 0"),
    "planned but registered": (
        changed("models", "SynBrain", here="planned", ref=(), proof=()),
        "models/SynBrain: it is planned, but it is among the systems",
    ),
    "no recipe": (changed("models", "SynBrain", ref=("brainmodels.baselines:Ridge",)), "is paper() or full()"),
    "family": (
        changed("models", "MindEye", facts=FamilyFacts(generator="trained")),
        "give the family MTF, listed is Map",
    ),
    "alias twice": (changed("datasets", "DIR", aliases=("EEG-ImageNet",)), "2 cards have the name 'eeg-imagenet'"),
    "no source": (changed("models", "MindEye", sources=()), "models/MindEye: it has no source"),
    "unknown data set": (changed("models", "MindEye", datasets=("NSB",)), "there is no card 'NSB' of datasets"),
    "unknown metric": (changed("models", "MindEye", reports=("ssim",)), "there is no card 'ssim' of metrics"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_rule_finds_a_planted_defect(name):
    cards, message = DEFECTS[name]
    assert any(message in problem for problem in catalog.check(cards)), name


def test_a_new_layout_metric_or_system_without_a_card_is_found(monkeypatch):
    monkeypatch.setattr("brainmodels.layouts.LAYOUTS", (*LAYOUTS, "csv_study"))
    monkeypatch.setitem(
        catalog.check.__globals__["resolved"]("brainmodels.systems:SYSTEMS"), "new", "brainmodels.x:New"
    )
    assert [x for x in catalog.check() if "expected one card" in x] == [
        "expected one card for the layout csv_study, got 0",
        "expected one card for the system brainmodels.x:New, got 0",
    ]


def test_published_numbers_need_all_conditions():
    row = PublishedNumber("MindEye2", "pixcorr", 0.322, "shared1000", 0, "averaged", "40 sessions", "arXiv 2403.11207")
    assert catalog.check(numbers=[row]) == []
    assert catalog.check(numbers=[replace(row, gallery=None, budget="")]) == [
        "published/MindEye2, pixcorr: expected all conditions, without budget, gallery"
    ]
    assert "there is no such model" in catalog.check(numbers=[replace(row, model="MindEye9")])[0]
    assert (
        "expected a metric of list_metrics(), got 'pixcor'" in catalog.check(numbers=[replace(row, metric="pixcor")])[0]
    )


def test_filters_equal_brute_force():
    values = {
        "task": tuple(catalog.TASKS),
        "signal": catalog.SIGNALS,
        "here": ("implements", "outside"),
        "setting": ("passive", "active", "invasive"),
    }
    for chosen in product(*((None, *known) for known in values.values())):
        filters = dict(zip(values, chosen, strict=True))
        expected = [
            x.name
            for x in MODELS
            if all(
                value is None or (value in x.task if name == "task" else getattr(x, name) == value)
                for name, value in filters.items()
            )
        ]
        assert [x.name for x in catalog.list_models(**filters)] == expected
    assert [x.name for x in catalog.list_models(task="IBI", signal="eeg", family="BPFA")] == ["DreamDiffusion"]
    assert {x.name for x in catalog.list_models(family="none")} == {x.name for x in MODELS if x.family is None}
    assert {x.year for x in catalog.list_models(year=(2016, 2018))} == {2016, 2017, 2018}
    assert all(x.year == 2020 for x in catalog.list_models(year=2020))


def test_filters_by_names_of_other_cards():
    assert {x.name for x in catalog.list_models(dataset="BLOD")} == {"MindVis", "CMVDM", "CAD", "LEA"}
    gans = {x.name for x in catalog.list_models(generator="gan")}
    assert {"Mind Reader", "BrainSCN", "DIR"} <= gans  # by StyleGAN2, IC-GAN, and by the kind alone
    assert {x.name for x in catalog.list_models(generator="stylegan2")} == {"Mind Reader"}
    assert {"NeuroFlow", "SynBrain"} <= {x.name for x in catalog.list_models(direction="encode")}
    assert [x.name for x in catalog.list_regions(dataset="Algonauts 2023", role="words")] == [
        *("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words")
    ]
    assert [x.name for x in catalog.list_pitfalls(dataset="EEG-V")] == ["block design"]
    assert {x.name for x in catalog.list_datasets(offline=True)} == {"SIM", "SIM EEG", "SIM objects", "SIM clips"}
    assert {x.kind for x in catalog.list_generators(kind="vae")} == {"vae"}
    assert [x.name for x in catalog.list_features(weights="shipped")] == ["VECA"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: catalog.list_models(task="IBB"), "expected task to be one of IBI.*got 'IBB'; near: .*IBI"),
        (lambda: catalog.list_models(family="BPFE"), "got 'BPFE'; near: BPFA"),
        (
            lambda: catalog.list_models(generator="gann"),
            "expected a generator or a kind of vae.*got 'gann'; near: .*gan",
        ),
        (lambda: catalog.list_models(dataset="NSB"), "expected a name of datasets, got 'NSB'; near: NSD"),
        (lambda: catalog.list_models(year=(2020, 2019)), "expected the first year before the last, got 2020 and 2019"),
        (lambda: catalog.list_datasets(here="read"), "got 'read'; near: reads"),
        (lambda: catalog.list_metrics(level="semantics"), "got 'semantics'; near: semantic"),
        (lambda: catalog.card("mindey"), "expected a name of the catalogue, got 'mindey'; near: MindEye"),
        (lambda: catalog.card("DIR"), "expected a section .datasets, models. for 'DIR'"),
        (lambda: catalog.card("DIR", "model"), "got 'model'; near: models"),
        (lambda: catalog.card("DIR", "models").confidence("yeer"), "got 'yeer'; near: year"),
    ],
)
def test_wrong_words_are_refused_with_near_ones(call, message):
    with pytest.raises(BrainDataError, match=message):
        call()


def test_every_name_and_alias_finds_its_card():
    for card in CARDS:
        for name in card.names:
            assert catalog.card(name, card.section) is card
            assert catalog.card(name.upper(), card.section) is card
    assert catalog.card("EEG-ImageNet").name == "EEG-VOA"


def test_metrics_are_those_of_the_registry():
    """Every registered metric is a card, and its level, direction and chance are not written twice."""
    here = {x.name: x for x in catalog.list_metrics() if x.definition is not None}
    assert sorted(here) == registered_metrics() == list_metrics()
    assert [x.name for x in catalog.list_metrics(level="voxel", offline=True)] == [
        name for name in here if name in list_metrics("voxel", True)
    ]
    for card in here.values():
        assert card.definition == metric(card.example)
        assert card.definition.protocol
    assert here["image_given_brain_top{k:d}@{gallery:d}"].definition.chance == pytest.approx(0.01)
    outside = {x.name for x in catalog.list_metrics(here="outside")}
    assert {"LPIPS", "BLEU", "CIDEr", "SPICE", "WER", "BERTScore", "MuLan identification", "fid", "fvd"} <= outside
    assert all(x.note for x in catalog.list_metrics(here="outside"))


def test_coverage_counts_decoders():
    cells = {(x.task, x.signal): x for x in catalog.coverage()}
    for (task, signal), cell in cells.items():
        found = [x for x in MODELS if task in x.task and x.signal == signal and x.setting == "passive"]
        found = [x for x in found if x.direction != "encode"]
        assert cell.models == len(found) and set(cell.here) == {x.name for x in found if x.here == "implements"}
    assert cells["IBI+IBT", "fmri"].here == ("UniBrain",)
    assert "SynBrain" not in cells["IBI", "fmri"].here
    assert ("IBI", "meg") in cells and ("IBT", "meg") not in cells


def test_what_runs_here_instead():
    assert next(iter(catalog.here_instead(catalog.card("MindEye")))).name == "NeuroFlow"  # the same family
    assert catalog.here_instead(catalog.card("NeuroFlow")) == []


def test_every_fact_has_a_confidence():
    mindeye = catalog.card("MindEye")
    assert [mindeye.confidence(x) for x in ("year", "label", "facts")] == ["listed", "label", "ours"]
    assert catalog.card("EEG-VOA").confidence("access") == "digest"
    for card in CARDS:
        assert card.confidence("name") in ("listed", "label", "read", "digest", "ours")


def test_what_is_unknown_stays_unknown():
    assert catalog.card("UMBRAE").task == () and catalog.card("UMBRAE").signal is None
    assert catalog.card("Vim-1").subjects is None and catalog.card("Vim-1").licence == "unknown"
    assert catalog.card("EEG-3D").licence == "none"


def test_notes_repeat_no_long_sentence_of_each_other():
    """A note is a remark on one card. Copied sentences are facts that belong elsewhere."""
    notes = Counter(x.note for x in CARDS if x.note and x.section == "datasets")
    assert max(notes.values()) <= 1


def test_own_cards_are_added_and_checked(tmp_path, own_cards):
    file = tmp_path / "mine.toml"
    source = 'sources = [{id = "mine", kind = "paper", confidence = "ours"}]'
    file.write_text(f'[[models]]\nname = "Mine"\ntask = ["IBI"]\nsignal = "meg"\n{source}\n')
    assert [x.name for x in catalog.load(file)] == ["Mine"]
    assert [x.name for x in catalog.list_models(signal="meg")] == ["MEG-BD", "Mine"]
    assert catalog.check() == []
    with pytest.raises(BrainDataError, match=r"expected new names of models in .*, got 'Mine', a name of Mine"):
        catalog.load(file)
    file.write_text(f'[[datasets]]\nname = "Another"\naliases = ["blod"]\n{source}\n')
    with pytest.raises(BrainDataError, match="got 'blod', a name of BOLD5000"):
        catalog.load(file)
    assert [x.name for x in catalog.all_cards()[len(CARDS) :]] == ["Mine"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[[models]\n", "expected TOML in .*mine.toml"),
        ("[[model]]\nname = 'a'\n", "expected section of .*mine.toml to be one of .*got 'model'; near: models"),
        ("[[models]]\ntask = ['IBI']\n", "expected a name of each card in .*mine.toml"),
        ("[[models]]\nname = 'a'\nyeer = 2020\n", "expected keys of .*mine.toml, a .*got 'yeer'; near: year"),
        ("[[models]]\nname = 'a'\ntask = ['IBB']\n", "expected task of models/a .*got 'IBB'.*mine.toml"),
        ("[[models]]\nname = 'a'\nfacts = {mapping = 'rigde'}\n", "got 'rigde'; near: ridge"),
        ("[[models]]\nname = 'a'\nsources = [{id = 'x', kind = 'y', confidence = 'sure'}]\n", "got 'sure'"),
    ],
)
def test_files_with_mistakes_are_refused(tmp_path, own_cards, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(BrainDataError, match=message):
        catalog.load(file)
    assert len(catalog.all_cards()) == len(CARDS)


def test_anchors_are_addresses():
    assert all(re.fullmatch(r"[\w-]+", x.anchor) for x in CARDS)
