"""One picture under two names, in train and test, is found before anything is prepared, trained or scored."""

import json
from dataclasses import replace

import numpy as np
import pytest

from brainmodels.commands.train import TrainSettings, run_training
from brainmodels.data import ArrayImages, BrainDataset, Responses, StimulusSet, TrialTable, save_prepared
from brainmodels.errors import LeakageError
from tests.brainmodels.evaluated import evaluation_of
from tests.brainmodels.made import made_dataset


def test_equal_pictures_are_looked_for_wherever_data_are_used(tmp_path):
    """The third presentations of 9 train images, under names of their own, are tested on."""
    dataset = made_dataset(num_images=45)
    person, split = dataset.subject("subj01"), dataset.split("made")
    trials, rows = person.responses.trials, split.rows(person.responses.trials, "train")
    copied = sorted(split.train)[:9]
    names = trials.image_id.astype("U20")
    third = rows[(trials.repeat[rows] == 2) & np.isin(names[rows], copied)]
    names[third] = np.char.add("copy:", names[third])
    pictures = np.concatenate([dataset.stimuli.images(part, 32) for part in (dataset.stimuli.ids, copied)])
    copies = [f"copy:{name}" for name in copied]
    stimuli = StimulusSet([*dataset.stimuli.ids, *copies], ArrayImages(pictures))
    responses = Responses(person.responses.values, TrialTable.of(names, session=trials.session))
    leaking = BrainDataset(
        [replace(person, responses=responses)], stimuli, {"made": replace(split, test=frozenset(copies))}
    )
    found = r"got 9 that are equal, such as sim:00000 \(train\) and copy:sim:00000 \(test\)"
    with pytest.raises(LeakageError, match=found):
        evaluation_of(leaking, ["grid"], resamples=20, curve=())
    told = evaluation_of(leaking, ["grid"], resamples=20, curve=(), allow_duplicates=True).record["duplicates"]
    assert told.startswith("9 of 39 pictures are duplicates of pictures in another part (allowed)")
    with pytest.raises(LeakageError, match=found):
        save_prepared(leaking, "subj01", tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
    save_prepared(leaking, "subj01", tmp_path / "prepared", allow_duplicates=True)
    meta = json.loads((tmp_path / "prepared" / "meta.json").read_text())
    assert meta["duplicates"]["made"].startswith("9 of")
    settings = TrainSettings(data=(str(tmp_path / "prepared"),), features="grid", out=tmp_path / "run", progress=False)
    with pytest.raises(LeakageError, match=found):
        run_training(settings)
