"""Named splits against counts of real and small designs, and the guards against leakage."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import (
    ArrayImages,
    BrainDataset,
    Responses,
    Split,
    StimulusSet,
    Subject,
    TrialTable,
    VoxelSpace,
    bold5000_5fold,
    bold5000_repeated,
    check_duplicates,
    check_new_weights,
    first_250_images,
    first_session,
    holdout,
    loso,
    recording_cost,
    shared1000,
    shared_part,
    split_from_ids,
    validation_ids,
)
from brainmodels.data.leakage import duplicates_of
from brainmodels.data.stimuli import OptionalImageFiles
from brainmodels.errors import BrainDataError, IdError, LeakageError
from tests.brainmodels.simulations import made


def _design(num_sessions=8, per_session=75, num_images=200, num_shared=20, prefix="own", seed=0):
    """A table like that of the Natural Scenes Dataset, tenfold smaller: every image three times, in random order."""
    shared = [f"nsd:{i:05d}" for i in range(num_shared)]
    ids = shared + [f"{prefix}:{i:05d}" for i in range(num_images - num_shared)]
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(num_images), 3))
    shown = np.asarray(ids)[order][: num_sessions * per_session]
    return TrialTable.of(shown, session=np.arange(len(shown)) // per_session + 1), shared


def _study(tables):
    """Subjects of one voxel with these tables."""
    ids = sorted(set().union(*(table.image_id.tolist() for table in tables)))
    space = VoxelSpace.from_mask("one", np.ones((1, 1, 1), bool))
    people = [
        Subject(f"subj{i + 1:02d}", Responses(np.zeros((len(table), 1), np.float32), table), space)
        for i, table in enumerate(tables)
    ]
    return BrainDataset(people, StimulusSet(ids, ArrayImages(np.zeros((len(ids), 2, 2, 3), np.uint8))))


def test_validation_images_stay_when_images_are_added():
    few = [f"nsd:{i:05d}" for i in range(4000)]
    many = [f"nsd:{i:05d}" for i in range(9000)]
    assert validation_ids(few) == validation_ids(many) & set(few)
    assert 0.04 < len(validation_ids(many)) / 9000 < 0.06
    assert validation_ids(many) != validation_ids(many, seed=1)
    # golden, so that a checkpoint of today knows its validation images tomorrow
    assert sorted(validation_ids(few))[:4] == ["nsd:00014", "nsd:00015", "nsd:00020", "nsd:00052"]


@pytest.mark.parametrize(
    ("sessions", "seen", "known"), [(40, 1000, "40 sessions"), (37, 982, "37 sessions, older papers"), (8, 200, None)]
)
def test_shared1000_names_its_variant(sessions, seen, known):
    shared = [f"nsd:{i:05d}" for i in range(1000)]
    shown = shared[:seen] + [f"own:{i}" for i in range(100)]
    split = shared1000(TrialTable.of(shown), shared)
    assert split.test == set(shared[:seen])
    text = f"{seen} of 1000 shared images seen" + (f" ({known})" if known else "")
    assert split.params["variant"] == text
    assert split.train | split.val == set(shown[seen:])


def test_shared1000_with_three_repeats_for_all_subjects():
    shared = [f"nsd:{i:05d}" for i in range(1000)]
    first = TrialTable.of(shared * 2 + shared[:600] + ["own:1"])
    second = TrialTable.of(shared * 2 + shared[85:] + ["own:2"])
    split = shared1000([first, second], shared, variant="three_repeats")
    assert split.test == set(shared[85:600])
    assert split.params["variant"] == "515 of 1000 shared images with three repeats (all eight subjects, 30 sessions)"
    assert split.params["unused"] == 485
    assert split.train | split.val == {"own:1", "own:2"}  # the other shared images are in no part


def test_shared1000_refuses_ids_of_another_name():
    with pytest.raises(IdError, match="expected some of 2 shared images among 1 shown, got none"):
        shared1000(TrialTable.of(["00013"]), ["nsd:00013", "nsd:00014"])


def test_first_session_and_first_images_are_two_tasks():
    trials, shared = _design()
    session, images = first_session(trials, shared), first_250_images(trials, shared, num_images=25)
    here = trials.session == 1
    rows = np.concatenate([session.rows(trials, part) for part in ("train", "val")])
    assert set(rows) == set(np.flatnonzero(here & ~np.isin(trials.image_id, shared)))
    cost = recording_cost(trials, session)
    assert (cost.trials, cost.sessions) == (len(rows), 1)
    assert session.params["budget"] == str(cost) == f"{cost.trials} trials of {cost.images} images from 1 session"
    assert len(session.rows(trials, "test")) == 60  # of all sessions
    cost = recording_cost(trials, images)
    assert (cost.trials, cost.images) == (75, 25) and cost.sessions > 4
    chosen = images.train | images.val
    order = [name for name in dict.fromkeys(trials.image_id.tolist()) if name not in shared]
    assert chosen == set(order[:25])
    assert images.name == "first_25_images" and session.test == images.test == set(shared)


def test_nominal_sizes_of_the_two_hours_of_nsd():
    trials, shared = _design(num_sessions=40, per_session=750, num_images=10_000, num_shared=1000)
    session, images = first_session(trials, shared), first_250_images(trials, shared)
    cost = recording_cost(trials, session)
    assert 650 < cost.trials < 700 and cost.images / cost.trials > 0.95
    assert (recording_cost(trials, images).trials, images.name) == (750, "first_250_images")


def test_first_images_pass_over_those_with_fewer_repeats():
    trials = TrialTable.of(["a", "b", "b", "c", "a", "b", "c", "c", "d", "d", "d"])
    split = first_250_images(trials, ["d"], num_images=2)
    assert split.train | split.val == {"b", "c"}
    assert split.params["passed_over"] == 1
    with pytest.raises(IdError, match="expected 3 train images shown 3 times, got 2 of 3"):
        first_250_images(trials, ["d"], num_images=3)


def test_first_session_needs_sessions():
    with pytest.raises(BrainDataError, match="unknown session"):
        first_session(TrialTable.of(["a", "b"]), ["a"])


def test_loso_removes_test_images_from_every_subject():
    tables, shared = zip(*[_design(prefix=f"own{i}", seed=i) for i in range(3)], strict=True)
    dataset = _study(tables)
    test = split_from_ids("shared", [], shared[0])
    split = loso(dataset, "subj02", test, n_context=30, seed=4)
    for subject in dataset.subjects:
        trained = split.ids("train", subject) | split.ids("val", subject)
        assert not trained & set(shared[0])
        assert len(dataset.pairs(subject, split, "test", average="repeats")) == 20
    context = split.ids("train", "subj02")
    assert len(context) == 30 and all(name.startswith("own1") for name in context)
    assert len(dataset.pairs("subj02", split, "train", average="repeats")) == 30
    assert len(dataset.pairs("subj02", split, "val")) == 0 < len(dataset.pairs("subj01", split, "val"))
    assert split.params["budget"] == str(recording_cost(tables[1], split, "subj02"))
    assert "90 trials of 30 images" in split.params["budget"] and "seed 4" in split.params["budget"]


def test_loso_draws_are_disjoint_and_nested():
    tables, shared = zip(*[_design(prefix=f"own{i}", seed=i) for i in range(2)], strict=True)
    dataset = _study(tables)
    test = split_from_ids("shared", [], shared[0])
    draws = [loso(dataset, "subj01", test, 20, draw=draw).ids("train", "subj01") for draw in range(5)]
    assert len(frozenset().union(*draws)) == 100
    more = loso(dataset, "subj01", test, 34, draw=2).ids("train", "subj01")
    assert draws[2] < more
    assert loso(dataset, "subj01", test, 20, seed=1).ids("train", "subj01") != draws[0]
    with pytest.raises(IdError, match="expected 5 x 50 train images of subj01"):
        loso(dataset, "subj01", test, 50)
    with pytest.raises(BrainDataError, match="other subjects"):
        loso(_study(tables[:1]), "subj01", test, 20)


def test_some_shared_images_become_train_images_of_all():
    dataset = made("tiny")
    split = shared_part(dataset, "shared", train=20)
    common = frozenset.intersection(*(split.ids("train", name) for name in dataset.subjects))
    assert len(common) == 20 and len(split.test) == 40
    assert common | split.test == dataset.split("shared").test
    for name in dataset.subjects:
        assert split.ids("train", name) - common == dataset.split("shared").ids("train", name)
        assert split.ids("val", name) == dataset.split("shared").ids("val", name)
    assert shared_part(dataset, "shared", train=10).test > split.test
    for wrong in (0, 60):
        with pytest.raises(IdError, match=f"expected from 1 to 59 of the 60 test images of 'shared'.*got {wrong}"):
            shared_part(dataset, "shared", train=wrong)


def test_bold5000_tests_on_the_repeated_images():
    repeated, once = [f"b5k:r{i}" for i in range(113)], [f"b5k:{i}" for i in range(400)]
    trials = TrialTable.of(once + repeated * 4)
    split = bold5000_repeated(trials)
    assert split.test == set(repeated) and split.train | split.val == set(once)
    folds = [bold5000_5fold(trials, fold) for fold in range(5)]
    assert frozenset().union(*(fold.test for fold in folds)) == set(repeated)
    assert sum(len(fold.test) for fold in folds) == 113
    assert all(fold.train | fold.val | fold.test == {*repeated, *once} for fold in folds)
    with pytest.raises(IdError, match="expected repeated images"):
        bold5000_repeated(TrialTable.of(once))


def test_holdout_by_image_concept_and_session():
    trials, _ = _design(num_images=100, num_shared=0, num_sessions=4)
    by_image = holdout(trials, 0.2, seed=1)
    assert len(by_image.test) == 20 and by_image.test != holdout(trials, 0.2, seed=2).test
    concepts = {name: str(int(name[-5:]) // 10) for name in set(trials.image_id.tolist())}
    by_concept = holdout(trials, 0.3, by="concept", concepts=concepts)
    held = {concepts[name] for name in by_concept.test}
    assert len(held) == 3 and not held & {concepts[name] for name in by_concept.train | by_concept.val}
    once = TrialTable.of([f"x:{i}" for i in range(120)], session=np.repeat([1, 2, 3, 4], 30))
    by_session = holdout(once, 0.25, by="session")
    (session,) = map(int, by_session.params["held_out"])
    assert set(by_session.rows(once, "test")) == set(np.flatnonzero(once.session == session))
    assert not set(once.session[by_session.rows(once, "train")]) & {session}
    with pytest.raises(IdError, match="expected a concept of each of 100 images"):
        holdout(trials, 0.3, by="concept")
    with pytest.raises(BrainDataError, match="between 0 and 1"):
        holdout(trials, 20)


def test_held_out_session_tests_on_its_own_trials_only():
    trials = TrialTable.of(["a", "b", "c", "b", "d", "e"], session=[1, 1, 1, 2, 2, 2])
    split = holdout(trials, 0.5, by="session", percent=0)
    (session,) = split.sessions["test"]
    rows = split.rows(trials, "test")
    assert trials.session[rows].tolist() == [session] * 3
    assert "b" in split.test and "b" not in split.train  # it was seen in both


def test_chosen_ids_must_be_disjoint():
    with pytest.raises(LeakageError, match="got b in both"):
        split_from_ids("x", ["a", "b"], ["b", "c"])
    with pytest.raises(LeakageError, match="train and val"):
        split_from_ids("x", ["a", "b"], ["c"], val_ids=["a"])
    assert split_from_ids("x", ["a"], ["c"], val_ids=["b"]).val == {"b"}


def _pictures(twins):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    if twins:
        images[5] = images[1]
    captions = {"0": ["A red ball"], "4": ["a  red BALL"], "1": ["a dog"], "5": ["a cat"]}
    return StimulusSet([str(i) for i in range(6)], ArrayImages(images), captions)


def test_equal_pictures_in_two_parts_are_found(caplog):
    split = Split("x", frozenset("012"), frozenset("3"), frozenset("45"))
    assert check_duplicates(_pictures(twins=False), split) == []
    with pytest.raises(LeakageError, match=r"got 1 that are equal, such as 1 \(train\) and 5 \(test\)"):
        check_duplicates(_pictures(twins=True), split)
    (found,) = check_duplicates(_pictures(twins=True), split, allow_duplicates=True)
    assert (found.first, found.second) == ("1", "5") and "expected different pixels" in caplog.text
    same_part = replace(split, train=frozenset("0125"), test=frozenset("4"))
    assert check_duplicates(_pictures(twins=True), same_part) == []
    told = [duplicates_of(_pictures(twins), split, allow_duplicates=True) for twins in (False, True)]
    assert told[0] == "no equal pictures in two parts of the split, of 6 compared"
    assert told[1].startswith("1 of 6 pictures are duplicates") and told[1].endswith("1 (train) and 5 (test)")
    unknown = StimulusSet([str(i) for i in range(6)], OptionalImageFiles([None] * 6))
    assert "were not looked for" in duplicates_of(unknown, split)


def test_equal_captions_in_two_parts_are_found():
    split = Split("x", frozenset("012"), frozenset("3"), frozenset("45"))
    with pytest.raises(LeakageError, match=r"different captions .* such as 0 \(train\) and 4 \(test\)"):
        check_duplicates(_pictures(twins=False), split, content="captions")


def test_a_fold_must_not_start_from_the_weights_of_another():
    rng = np.random.default_rng(0)
    final = {"layer.weight": rng.normal(size=(3, 3)), "layer.bias": np.zeros(3)}
    check_new_weights({"layer.weight": rng.normal(size=(3, 3)), "layer.bias": np.zeros(3)}, final)
    with pytest.raises(LeakageError, match=r"got 'layer.weight' as the fold before left it"):
        check_new_weights({"layer.weight": final["layer.weight"].copy(), "layer.bias": np.zeros(3)}, final)
    with pytest.raises(BrainDataError, match=r"'layer.bias' in one of them only"):  # nothing in common is no proof
        check_new_weights({f"module.{name}": weights for name, weights in final.items()}, final)
