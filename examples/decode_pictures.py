"""From responses to pictures: train a small NeuroFlow, and show what it decodes.

    python examples/decode_pictures.py out/decoded

The subject is simulated. The picture of a decoded image is the nearest one of a bank of training images, so nothing is
drawn that was not seen. Prints two-way identification of the decoded tokens, chance 50 %. Writes pictures.png, with
shown images above and decoded ones below, and the trained model.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import brainmodels
from brainmodels.data import fit_normalizer
from brainmodels.features import FeatureCache, extractor
from brainmodels.metrics.retrieval import correlation_matrix, two_way
from brainmodels.nn.tokens_to_image import NearestImage
from brainmodels.simulated import Preset
from brainmodels.systems.neuroflow import NeuroFlow, VAESize, nano
from brainmodels.training.recipe import TrainingStage

STEPS, SIZE = 150, 64  # of each stage; pixels
PRESET = Preset("one", voxels=(150,), box=(6, 6, 6), own=160, shared=20, sessions=3)


def main(out: Path) -> None:
    study = brainmodels.simulate(PRESET, seed=1, snr_scale=2.0)
    split, subject = study.split("shared"), study.subject("sim01")
    scale = fit_normalizer("session_z_train", subject, split)
    train = study.pairs("sim01", split, "train", transform=scale)  # single trials
    test = study.pairs("sim01", split, "test", average="repeats", transform=scale)
    cache = FeatureCache(out / "features", extractor("veca_nano_patch8", pretrained=True), study.stimuli)
    cache.extract([*np.unique(train.image_ids), *test.image_ids])
    sizes = {"reduce": (2, 32), "num_tokens": 4, "vae": VAESize(channels=(4, 8, 4), hidden=128)}
    stage = TrainingStage(steps=STEPS, lr=3e-3, batch_size=32, ema_decay=0.99)
    recipe = replace(nano(), stage1=stage, stage2=stage, **sizes)  # 2 x 2 tokens, so that it trains in seconds
    model = NeuroFlow(recipe).fit(cache, train, subject="sim01")
    model.save(out / "model")
    tokens = model.decode(test)  # (20, 64, 192), in the units of the extractor

    ids = np.unique(train.image_ids)
    seen = cache.get(ids, "tokens")
    common = seen.mean(0)  # what all images share would make every correlation high
    found = two_way(correlation_matrix(cache.get(test.image_ids, "tokens") - common, tokens - common)).mean()
    print(f"two-way identification of decoded tokens: {found:.1%}, chance 50 %")

    bank = NearestImage(seen, study.stimuli.images(ids, SIZE), ids)
    decoded = (bank(torch.from_numpy(tokens[:10])).permute(0, 2, 3, 1) * 255).byte().numpy()
    shown = study.stimuli.images(test.image_ids[:10], SIZE)
    Image.fromarray(np.concatenate([np.hstack(shown), np.hstack(decoded)])).save(out / "pictures.png")
    print(out / "pictures.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/decoded"))
