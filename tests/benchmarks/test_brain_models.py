"""Every study of the brain models at toy size: rows that must agree do, and those with a truth have it."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("sklearn")

from benchmarks import brain_studies
from benchmarks.brain_cases import Settings, Workshop
from benchmarks.brain_models import main
from benchmarks.brain_studies import STUDIES

TOY = {"voxels": 40, "images": 40, "test": 16, "steps": 0.001, "resamples": 20}
COUNTS = (30,)


class Quick(Workshop):
    """With a flow of one block and few steps: in a toy, sampling takes the time."""

    def neuroflow(self, **changes):
        recipe = super().neuroflow(**changes)
        return replace(recipe, flow=replace(recipe.flow, depth=1), steps=3, validation=0.2)

    def synbrain(self, **changes):
        return super().synbrain(**changes, validation=0.2)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Quick(Settings(workdir=tmp_path_factory.mktemp("brain"), counts=COUNTS, **TOY))


@pytest.fixture(scope="module")
def tables(workshop):
    made = {}

    def study(name):
        if name not in made:
            made[name] = STUDIES[name](workshop, 1)
        return made[name]

    return study


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(brain_studies, "FACTORS", (0, 1))
    monkeypatch.setattr(brain_studies, "COMPONENTS", (1, "full"))


def value(cell):
    """The number before an interval."""
    return float(str(cell).split()[0])


def column(table, name, key="model"):
    return {row[key]: value(row[name]) for row in table.rows if name in row}


def test_systems_stand_between_the_mean_map_and_the_planted_signal(tables):
    encoding, decoding, latents, *nonlinear = tables("systems")
    scores = column(encoding, "nr2")
    linear = ["mean map", "nearest neighbour", "ridge", "reduced-rank ridge", "prior ridge"]
    trained = ["SynBrain", "NeuroFlow", "SynBrain + ridge", "NeuroFlow + ridge"]
    assert list(scores) == [*linear, *trained, "planted signal"]
    assert scores["mean map"] == 0 and max(scores, key=scores.get) == "planted signal"
    assert scores["planted signal"] > 0.8 and {"V1", "SEM"} < set(encoding.rows[0])
    assert column(decoding, "two-way")["ridge"] > 0.6
    assert column(latents, "round trip, tokens", "model")["NeuroFlow"] < 1e-3
    assert nonlinear[0].title == "Encoding, nonlinear tuning." and len(nonlinear) == 3


def test_stacking_repeats_the_rows_of_systems(tables):
    """The same fitted models, so that scores must be equal; and each way of use has a row."""
    linear, nonlinear = tables("stacking")
    before, now = column(tables("systems")[0], "nr2"), column(linear, "nr2")
    same = {"ridge": "ridge", "NeuroFlow, mean": "NeuroFlow", "SynBrain, its readout": "SynBrain"}
    same |= {f"{name} + reduced_rank": f"{name} + ridge" for name in ("NeuroFlow", "SynBrain")}
    assert {name: now[name] for name in same} == {name: before[other] for name, other in same.items()}
    assert {"NeuroFlow, solver", "NeuroFlow + ridge", "NeuroFlow + prior"} < set(now)
    assert list(now) == list(column(nonlinear, "nr2"))


@pytest.mark.slow
def test_higher_orders_come_back_nearer_on_every_path(tables):
    (table,) = tables("solvers")
    assert [row["path"] for row in table.rows[::4]] == ["linear", "cos_sin", "cos2_sin2"]
    assert [row["evaluations"] for row in table.rows[:4]] == [20, 40, 40, 80]
    for row in range(0, 12, 4):
        euler, *second, fourth = (value(x["round trip, tokens"]) for x in table.rows[row : row + 4])
        assert euler > max(second) and fourth < 0.01


@pytest.mark.slow
def test_ridge_misses_half_of_the_variance_of_conjunctions(tables):
    (table,) = tables("nonlinear")
    ridge, planted = table.rows[2], table.rows[-1]
    assert (ridge["model"], planted["model"]) == ("ridge", "planted signal")
    assert value(ridge["V1"]) > value(ridge["SHAPE"]) + 0.2
    assert value(planted["nr2"]) > value(ridge["nr2"]) + 0.15


@pytest.mark.slow
def test_fewshot_shows_every_way_beside_ridge(tables):
    (table,) = tables("fewshot")
    assert table.title == "30 images x 3 of a new subject."
    names = [row["model"] for row in table.rows]
    assert names[:3] == ["ridge", "SynBrain, zero-shot", "SynBrain, adapted"] and len(set(names)) == 8
    assert all("decoding top-1" in row for row in table.rows if "NeuroFlow" in row["model"])


def test_without_synthetic_pairs_scales_do_not_matter(tables):
    (table,) = tables("augment")
    plain, matched = (next(r for r in table.rows if r["noise, scale"] == f"none, {s}") for s in ("as_is", "matched"))
    assert plain["pairs"] == "30 + 0" and plain["two-way"] == matched["two-way"]
    pairs = [row["pairs"] for row in table.rows if row["model"] == "NeuroFlow"]
    assert pairs == ["90 + 0", "90 + 90"]


def test_residual_noise_varies_as_trials_do(tables):
    (table,) = tables("variance")
    for row in table.rows:
        if row["noise"] == "none":
            assert value(row["all"]) == 0
        elif row["noise"] == "residual":
            assert 0.7 < value(row["all"]) < 1.4
    assert len(table.rows) == 8


@pytest.mark.slow
def test_budgets_are_four_tests_of_three_trainings(tables):
    (table,) = tables("budgets")
    assert [(row["trained on"], row["tested at"]) for row in table.rows] == [
        (trained, tested) for trained in ("64", "8", "mix") for tested in (64, 32, 16, 8)
    ]
    ridge = [value(row["nr2, ridge"]) for row in table.rows]
    assert min(ridge) > 0.05 and len(set(ridge)) > 3


def test_all_components_are_no_bottleneck(tables):
    (table,) = tables("bottleneck")
    ridge = column(tables("systems")[1], "two-way")["ridge"]
    found = next(row for row in table.rows if row["model"] == "ridge" and row["metric"] == "two-way")
    assert value(found["k = full"]) == ridge and value(found["k = 1"]) < ridge


def test_a_page_says_how_it_was_made(tmp_path, capsys, monkeypatch):
    table = brain_studies.Table("Encoding.", [{"model": "ridge", "nr2": 0.5}, {"model": "mean map"}], "A note.")
    monkeypatch.setitem(STUDIES, "nonlinear", lambda workshop, seed: [table])
    words = ["nonlinear", "--threads", "1", "--out", str(tmp_path / "page.md"), "--workdir", str(tmp_path)]
    words += [word for name, size in TOY.items() for word in (f"--{name}", str(size))]
    main(words)
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# SynBrain and NeuroFlow on simulated subjects\n")
    assert "## nonlinear, seed 1" in text and "python -m benchmarks.brain_models nonlinear --threads 1" in text
    assert re.search(r"date 20\d\d-\d\d-\d\d, device .+, threads 1, torch ", text)
    assert "**Encoding.** A note.\n\n| model | nr2 |\n|---|---|\n| ridge | 0.5 |\n| mean map |  |\n" in text
    assert capsys.readouterr().out.strip() in text
    main(words)
    again = (tmp_path / "page.md").read_text()
    assert again.startswith(text) and again.count("## nonlinear, seed 1") == 2


def test_scenes_that_trained_the_backbone_are_refused():
    with pytest.raises(ValueError, match="got 0, whose scenes trained the backbone"):
        Settings(seeds=(1, 0))
