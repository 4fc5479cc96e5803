"""The benchmark of new subjects: what it calls top-1, and a page from short trainings."""

import numpy as np

from benchmarks.new_subject import main, top1


def test_top1_is_the_share_of_images_that_are_found_first():
    truth = np.eye(4)
    guess = np.array([[2.0, 0, 0, 0], [0, 0.1, 0, 0.2], [0, 0, 3, 1], [1, 0, 0, 1.1]])  # the second finds the fourth
    assert top1(guess, truth) == 0.75


def test_a_page_has_every_method_that_predicts_responses(tmp_path):
    words = ["--seeds", "1", "--counts", "8", "--draws", "1", "--encoding-only", "--extend-steps", "20"]
    main([*words, "--workdir", str(tmp_path / "work"), "--out", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    assert {"ridge", "prior ridge of other subjects", "BraInCoRL"} <= set(rows) and "Decoding" not in page
    values = {name: [float(x) for x in row.split("|")[2:4] if x.strip()] for name, row in rows.items() if "." in row}
    assert 0 < values["ridge"][0] < values["ridge"][1] < 1  # all images say more than eight
    assert values["prior ridge of other subjects"][0] > values["ridge"][0]
