"""UniBrain from the command line to the page, with the shipped generator and a small simulated subject."""

import json

import numpy as np
import pytest

from brainmodels.cli import main
from brainmodels.evaluation.generation import MEANINGS
from brainmodels.report import published
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
    assert {row["name"] for row in made["rows"]} == set(MEANINGS)
    rows = {name: np.mean(list(labels_of(made["rows"], name).values())) for name in MEANINGS}
    assert set(labels_of(made["rows"], "model")) == {"shape", "color", "size", "background"}
    assert rows["labels by ridge"] >= 0.85 and rows["only_z"] >= 0.75
    for chance in ("other_images", "mean latent", "noise_input", "shuffled_pairing", "prior_only"):
        assert rows[chance] <= 0.4 < rows["only_z"], rows
    scores = {x["metric"]["name"]: x for x in made["rows"][0]["scores"]}
    assert scores["caption_label[shape]"]["chance"] < 0.3
    assert {"meteor_exact_stem", "caption_two_way[words]", "pixcorr", "two_way[grid]"} <= set(scores)
    assert not scores["caption_clip_cosine"]["available"] and not scores["alexnet5"]["available"]
    for name in MEANINGS:
        assert MEANINGS[name] in page, name
    assert "UniBrain" in page and "generation_0.png" in page and made["r2"]["z_text"] > 0.2


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
