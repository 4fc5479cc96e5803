"""Small data sets made by hand, for tests that need any responses at all rather than simulated ones."""

import numpy as np

from brainmodels.data import ArrayImages, BrainDataset, Responses, Split, StimulusSet, Subject, TrialTable, VoxelSpace


def made_dataset(num_images=12, repeats=3, box=(3, 2, 4), sessions=2, dtype=np.float32, prefix="sim:", seed=0):
    """One subject; every image `repeats` times in random order over the sessions; the last third is the test part.

    The values of a trial are a code of its image plus noise, so that rows and images can be told to belong together.
    """
    rng = np.random.default_rng(seed)
    ids = [f"{prefix}{number:05d}" for number in range(num_images)]
    images = rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8)
    stimuli = StimulusSet(ids, ArrayImages(images), {name: [f"picture {name}"] for name in ids})
    shown = rng.permutation(np.repeat(np.arange(num_images), repeats))
    session = np.sort(np.arange(len(shown)) % sessions) + 1
    mask = rng.random(box) < 0.7
    mask[0, 0, 0] = True
    space = VoxelSpace.from_mask("made", mask, np.diag([2.0, 2.0, 2.0, 1.0]), rois={"V1": np.arange(mask.sum()) < 3})
    codes = rng.normal(size=(num_images, len(space)))
    values = codes[shown] + 0.3 * rng.normal(size=(len(shown), len(space)))
    values = np.round(values * 300).astype(np.int16) if dtype == np.int16 else values.astype(dtype)
    trials = TrialTable.of(np.asarray(ids)[shown], session=session, run=1)
    responses = Responses(values, trials, scale=1 / 300 if dtype == np.int16 else 1.0)
    cut = num_images * 2 // 3
    split = Split("made", frozenset(ids[: cut - 1]), frozenset(ids[cut - 1 : cut]), frozenset(ids[cut:]))
    return BrainDataset([Subject("subj01", responses, space)], stimuli, {"made": split})
