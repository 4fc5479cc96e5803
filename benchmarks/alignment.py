"""MindAligner and its closed forms on simulated subjects: from two sessions of sim01 to the voxels of sim02.

    python -m benchmarks.alignment --seeds 1 2 3

r is the mean over voxels of the correlation with the response of sim02 without noise. Top-1 is the share of the 60 test
images that are found in what the decoder of sim02 reads. Embeddings are 16 components of the planted features.
"""

import argparse
from dataclasses import replace

import numpy as np

from brainmodels.data import Split, fit_normalizer
from brainmodels.evaluation.alignment import OWN, aligned_predictions, planted_map
from brainmodels.evaluation.encoding import Study
from brainmodels.features import ArrayFeatures
from brainmodels.metrics.encoding import voxel_r
from brainmodels.metrics.retrieval import image_given_brain, similarity
from brainmodels.simulated import planted_features, simulate
from brainmodels.systems.mindaligner import MindAligner, tiny

from .record import environment, markdown_table

NEW, KNOWN = "sim01", "sim02"
FACTS = ("date", "device", "threads", "python", "torch", "numpy", "commit")
VARIANTS = {
    "MindAligner": ({}, "embedding"),
    "MindAligner, decoder=None": ({}, None),
    "MindAligner, random pairs": ({"pairs": "random"}, "embedding"),
    "MindAligner, init encode_align": ({"init": "encode_align"}, "embedding"),
}


def measured(seed: int) -> tuple[list[tuple[str, float | None, float]], str]:
    """Name, r and top-1 of every map in one study; and a note on the trials and the steps that were kept."""
    dataset = simulate("tiny", seed=seed)
    ids, split = dataset.stimuli.ids.tolist(), dataset.split("shared")
    few = replace(split, name="two sessions", sessions={"train": frozenset({1, 2})})

    def pairs(subject: str, split: Split, part: str, average: str = "repeats"):
        scale = fit_normalizer("session_z_train", dataset.subject(subject), split)
        return dataset.pairs(subject, split, part, average, scale)

    train = {NEW: pairs(NEW, few, "train", "none"), KNOWN: pairs(KNOWN, split, "train", "none")}
    features, labels = ArrayFeatures(planted_features(dataset, ids), ids), dataset.stimuli.label("shape", ids).tolist()
    options = {"new": NEW, "labels": dict(zip(ids, labels, strict=True)), "alignment": "off"}
    fits = {
        name: MindAligner(replace(tiny(), **changes)).fit(features, train, decoder=decoder, **options)
        for name, (changes, decoder) in VARIANTS.items()
    }
    first, test, own = fits["MindAligner"], pairs(NEW, split, "test"), pairs(KNOWN, split, "test")
    study = Study.of(pairs(KNOWN, split, "train"), own, None, 0.1, 2, seed)
    maps = {name: model.transform(test) for name, model in fits.items()}
    maps |= aligned_predictions(first, study, test, features)
    maps |= {OWN: own.array(), "oracle": planted_map(dataset, NEW, KNOWN, repeats=3).transform(test.array())}
    truth, tokens = dataset.truth[KNOWN].signal(test.image_ids), first.tokens(features, test.image_ids)
    read = {name: first.decode(aligned, subject=KNOWN) for name, aligned in maps.items()}
    read["ridge without alignment"] = first.reference_decodings(test)["ridge without alignment"]
    r = {name: float(np.mean(voxel_r(truth, aligned))) for name, aligned in maps.items()}
    top1 = {name: image_given_brain(similarity(first.tokens(decoded), tokens)) for name, decoded in read.items()}
    steps = ", ".join(str(model.meta_["best_step"]) for model in fits.values())
    return [(name, r.get(name), top1[name]) for name in read], f"seed {seed}: {len(train[NEW])} trials, steps {steps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of the simulated subjects")
    seeds, table = parser.parse_args().seeds, {}
    found = {seed: measured(seed) for seed in seeds}
    for seed, (rows, _) in found.items():
        for name, r, top1 in rows:
            table.setdefault(name, {"map": name}).update({f"r, seed {seed}": r, f"top-1, seed {seed}": top1})
    columns = ["map", *(f"{what}, seed {seed}" for what in ("r", "top-1") for seed in seeds)]
    told = ", ".join(f"{key} {value}" for key, value in environment("cpu").items() if key in FACTS)
    print(markdown_table(table.values(), columns), "", *(note for _, note in found.values()), told, sep="\n")


if __name__ == "__main__":
    main()
