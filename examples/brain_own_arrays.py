"""Your own arrays of responses, from numpy to a report.

    python examples/brain_own_arrays.py out/brain

Takes three arrays as a laboratory has them: responses, the image id of each trial and pictures. Here they come from a
simulated subject.

Prints the share of the explainable variance that ridge predicts, from features of VECA and from pixels. Prints also how
many images are found from the responses. Writes report.html, record.json and voxels.npz.
"""

import sys
from pathlib import Path

import numpy as np

import brainmodels
from brainmodels.data import ArrayImages, BrainDataset, Responses, StimulusSet, Subject, TrialTable, VoxelSpace, holdout
from brainmodels.evaluation import EvaluationSettings, evaluate
from brainmodels.features.sets import FeatureSet
from brainmodels.report import write_report
from brainmodels.simulated import Preset


def laboratory() -> tuple[np.ndarray, list[str], np.ndarray, list[str], np.ndarray]:
    """(trials, voxels) responses, their image ids and sessions, then the ids and pictures (n, 64, 64, 3) uint8."""
    study = brainmodels.simulate(Preset("lab", (150,), (6, 6, 6), own=120, shared=30, sessions=3), seed=1)
    responses = study.subject("sim01").responses
    trials, ids = responses.trials, study.stimuli.ids.tolist()
    return responses.values, trials.image_id.tolist(), trials.session, ids, study.stimuli.images(ids, 64)


def main(out: Path) -> None:
    values, shown, sessions, ids, pictures = laboratory()
    trials = TrialTable.of(shown, session=sessions)  # repeats are counted; rows are in the order of time
    mask = np.ones((values.shape[1], 1, 1), bool)  # use your brain mask and its affine where you have them
    space = VoxelSpace.from_mask("my-voxels", mask)
    subject = Subject("me", Responses(values, trials, unit="percent signal change"), space)
    split = holdout(trials, 0.2, seed=0)  # a fifth of the images, with all their repeats
    dataset = BrainDataset([subject], StimulusSet(ids, ArrayImages(pictures)), {split.name: split})

    sets = [FeatureSet.parse(word) for word in ("veca", "pixels")]
    settings = EvaluationSettings(out=out, resamples=200, curve=(50, 100), progress=False)
    evaluation = evaluate(dataset, sets, settings)
    for item in evaluation.encoded[:2]:
        print(f"{item.features}: {item.score('nr2')}")
    for item in evaluation.decoded[:2]:
        print(f"decoded into {item.features}: {item.score('image_given_brain_top1')}")
    print(write_report(evaluation, out))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/brain"))
