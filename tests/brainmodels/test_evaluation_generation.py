"""UniBrain from the command line to the page, with the shipped generator and a small simulated subject."""

import json
from unittest import mock

import numpy as np
import pytest

from brainmodels.cli import main
from brainmodels.evaluation import EvaluationSettings, generation
from brainmodels.evaluation.generation import MEANINGS
from brainmodels.evaluation.opened import open_models
from brainmodels.evaluation.run import study_of
from brainmodels.report import published
from brainmodels.simulated import simulate
from brainmodels.systems import load_model
from tests.brainmodels.unibrain_small import shipped

DATA = ["--data", "simulated:tiny", "--seed", "1", "--no-progress"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained and evaluated model: its folder, and the record and the page of the evaluation."""
    root = tmp_path_factory.mktemp("unibrain")
    main(["train", "--model", "unibrain", "--recipe", "tiny", "--out", str(root / "run"), *DATA])
    words = [
        "--features",
        "grid",
        "--models",
        str(root / "run"),
        "--resamples",
        "30",
        "--shuffles",
        "2",
        "--curve",
        "50",
    ]
    main(["evaluate", *words, "--out", str(root / "report"), *DATA])
    record = json.loads((root / "report" / "record.json").read_text())
    return root, record, (root / "report" / "report.html").read_text()


def labels_of(rows, name):
    row = next(row for row in rows if row["name"] == name)
    found = {x["metric"]["name"]: x for x in row["scores"] if x["metric"]["name"].startswith("caption_label")}
    return {name[14:-1]: score["value"] for name, score in found.items()}


def test_every_row_is_there_with_ceiling_and_chance(run):
    _, record, page = run
    (made,) = record["generation"]
    assert {row["name"] for row in made["rows"]} == {*MEANINGS} - {"denoised"}
    rows = {name: np.mean(list(labels_of(made["rows"], name).values())) for name in {*MEANINGS} - {"denoised"}}
    assert set(labels_of(made["rows"], "model")) == {"shape", "color", "size", "background"}
    assert rows["labels by ridge"] >= 0.85 and rows["only_z"] >= 0.75
    for chance in ("other_images", "mean latent", "noise_input", "shuffled_pairing", "prior_only"):
        assert rows[chance] <= 0.4 < rows["only_z"], rows
    scores = {x["metric"]["name"]: x for x in made["rows"][0]["scores"]}
    assert scores["caption_label[shape]"]["chance"] < 0.3
    assert {"meteor_exact_stem", "caption_two_way[words]", "pixcorr", "two_way[grid]"} <= set(scores)
    assert not scores["caption_clip_cosine"]["available"] and not scores["alexnet5"]["available"]
    for name in rows:
        assert MEANINGS[name] in page, name
    assert "opening.png" in page and "UniBrain writes captions in which" in page
    assert "UniBrain" in page and "generation_0.png" in page and made["r2"]["z_text"] > 0.2


@pytest.mark.slow
def test_ablations_take_away_what_they_name(run):
    """Without a region, its words fall; alone it knows them; random voxels know less than the region of the words."""
    root, _, _ = run
    short = {"WEIGHTS": (0.0, 1.0), "STRENGTHS": (0.0,), "GUIDANCES": (1.0,), "COMPONENTS": (2,), "RANDOM_SETS": 2}
    dataset, model = simulate("tiny", seed=1, n_subjects=1), open_models([root / "run"], [], "cpu")[0]
    settings = EvaluationSettings(resamples=20, shuffles=2, seed=1)
    study = study_of(dataset, dataset.subject("sim01"), dataset.split("shared"), settings)
    with mock.patch.multiple(generation, **short):
        made = generation.evaluate_generation(model, study, dataset, ablations=True)
    value = {row.name: row.labels for row in made.rows}
    assert value["strength 0"] == value["only_z"] and value["image_weight 1"] < value["image_weight 0"]
    assert value["components 2"] < value["model"] and value["only_c_image"] < value["only_z"]
    assert made.row("image_weight 1").captions == made.row("without_c_text").captions
    assert set(made.curves) == {"image_weight", "strength", "guidance", "components"}
    shape = {row.name: row.score("caption_label[shape]").value for row in made.group("regions")}
    assert len(shape) == 3 * len(study.rois) - sum(f"without {x}" not in shape for x in study.rois)
    assert shape["SHAPE alone"] > shape["V1 alone"] + 0.2 and shape["V1 alone"] < 0.5
    assert made.row("random voxels, as many as SHAPE").score("caption_label[shape]").interval is not None


def test_no_published_number_stands_beside_simulated_ones(run):
    _, _, page = run
    assert not any(row.model in page for row in published.GENERATION)
    assert len(published.IMAGES) == len(published.GENERATION[0].images)


def test_the_model_in_the_folder_has_its_generator(run):
    root, record, _ = run
    model = load_model(root / "run")
    assert model.generator_.fingerprint == shipped().fingerprint == record["generation"][0]["generator"]["fingerprint"]
    assert model.meta_["run"]["split"] == "shared" and "features" not in model.meta_["run"]
    assert model.subjects_ == ("sim01",) and (root / "run" / "model" / "generator" / "generator.json").is_file()


def test_what_the_system_does_not_take_is_refused(tmp_path, run):
    words = ["train", "--model", "unibrain", "--out", str(tmp_path / "a"), *DATA]
    with pytest.raises(SystemExit, match="veca brain pretrain"):
        main([*words, "--steps", "10"])
    with pytest.raises(SystemExit, match="expected a generator in"):
        main([*words, "--generator", str(tmp_path)])
    with pytest.raises(SystemExit, match="expected no generator with neuroflow"):
        main(
            [
                "train",
                "--model",
                "neuroflow",
                "--features",
                "grid",
                "--generator",
                "x",
                "--out",
                str(tmp_path / "b"),
                *DATA,
            ]
        )
    with pytest.raises(SystemExit, match="expected UniBrain of split"):
        main(["evaluate", "--features", "grid", "--models", str(run[0] / "run"), "--out", str(tmp_path), *DATA[:2]])
