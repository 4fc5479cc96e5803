"""Numbers that a change of structure must not move: saved models, fits, fingerprints, splits and scores.

    OMP_NUM_THREADS=1 python -m tests.recorded.values  # as tests run; writes values.json and saved models beside it

Run it only in a commit that changes numbers on purpose, and say there which ones and why.
"""

import functools
import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import veca
from brainmodels import NeuroFlow, SynBrain
from brainmodels.data import bold5000_5fold, first_session, holdout, loso
from brainmodels.features.sets import FeatureSet
from brainmodels.nn import AdapterSize, ConvDecoder, DecoderSize, TokenAdapter
from tests.brainmodels import evaluated, fitted, made
from tests.models import images, tiny_veca
from veca.report.machine import describe_machine
from veca.train import Recipe, SceneBatches, SupervisedTask, train
from veca.train.checkpoints import load_checkpoint

HERE = Path(__file__).parent
FILE = HERE / "values.json"
MODELS = {"neuroflow": NeuroFlow, "synbrain": SynBrain}
WORDS = ("veca", "veca@8", "vit_nano_patch8", "grid", "gabor", "pixels", "random_conv")


def machine():
    """What bits depend on; elsewhere the last digits may differ."""
    facts = describe_machine(torch.device("cpu"), torch.float32)
    told = {key: facts[key] for key in ("cpu", "cpu_capability", "system", "torch", "numpy")}
    return told | {"threads": 1, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def loaded(system):
    """Predictions of a model that an earlier commit saved."""
    return used(MODELS[system].load(HERE / system))


def used(model):
    """All that a model says of the images and responses of a small study, by name."""
    ids = fitted.pairs("test").image_ids[:5]
    measured = fitted.pairs("test").array()[:7]
    solved = {"mode": "sample"} if isinstance(model, NeuroFlow) else {}
    found = {"predict": model.predict(fitted.features(), image_ids=ids, **solved)}
    for noise in ("unit", "posterior", "residual"):
        found[noise] = model.predict(fitted.features(), image_ids=ids, noise=noise, n_trials=2, seed=3, **solved)
    if isinstance(model, NeuroFlow):
        found |= {"mean": model.predict(fitted.features(), image_ids=ids), "mean tokens": model.decode(measured)}
        found |= {"decode": model.decode(measured, **solved), "latents": model.latents(measured)}
        trip = model.round_trip(responses=measured, through="response")
        found |= {"trip": trip.forward.numpy(), "back": trip.back.numpy()}
    else:
        found["latents"], found["std"] = model.posterior(measured)
    return found


def trained(system):
    """Weights and statistics of a short fit and of a longer one."""
    found = {}
    for name, model in (("few", fitted.fitted(system)), ("learned", fitted.learned(system))):
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model")
            for part in ("weights", "stats"):
                tensors = load_file(Path(folder) / "model" / f"{part}.safetensors")
                found |= {f"{name}.{part}.{key}": value.numpy() for key, value in tensors.items()}
    return found


def drawn():
    """Outputs of a token adapter and of a decoder after a few steps of training."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((40, 4, 6), dtype=np.float32)
    targets = rng.standard_normal((40, 2, 5), dtype=np.float32)
    pictures = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    adapter = TokenAdapter.fit(tokens, targets, AdapterSize(4, 6, 2, 5, 8, 1, 2), steps=8, noise=0.1, seed=1)
    decoder = ConvDecoder.fit(tokens, pictures, DecoderSize(4, 6, (8, 4)), steps=8, noise=0.1, seed=1)
    x = torch.from_numpy(tokens[:3])
    return {"adapter": adapter(x).numpy(), "decoder": decoder(x).numpy()}


def backbone_training():
    """Weights, averages, optimizer state and log of short runs on drawn scenes, stopped once and resumed."""
    base = Recipe(steps=5, batch_size=8, warmup_steps=2, accumulate=2, clip_norm=0.5, ema_decay=0.9)
    base = replace(base, lr_max=3e-3, log_every=1, save_every=2)
    runs = {"adamw": {"budgets_per_step": 2}, "normuon": {"optimizer": "normuon"}, "sgd": {"optimizer": "sgd"}}
    found = {}
    for name, options in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            for stop_at in (3, None):
                model = tiny_veca(img_size=32, rope_shift=0.08, rope_scale=2.0, drop_path_rate=0.3)
                source = SceneBatches(32, 32, 16, seed=1)
                task = SupervisedTask(model, source.classes, source.patch_classes)
                path = train(task, source, replace(base, **options), folder, "cpu", stop_at=stop_at)
            saved = load_checkpoint(path)
            log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        for part in ("weights", "optimizer", "ema"):
            tensors = getattr(saved, part)
            found[f"{name}.{part}"] = np.concatenate([tensors[key].numpy().ravel() for key in sorted(tensors)])
        rows = [{key: value for key, value in row.items() if key != "images_per_s"} for row in log]
        found[f"{name}.log"] = np.array([numbers(row) for row in rows])
        found[f"{name}.budgets"] = str([row["budgets"] for row in rows])
    return found


def splits():
    """Hashes of splits and of their parts, as text."""
    study, other = fitted.study(), made.made_dataset(num_images=60, repeats=4, sessions=4)
    trials = other.subject("subj01").responses.trials
    found = [*study.splits.values(), *other.splits.values(), loso(study, "sim01", "shared", 20)]
    found += [first_session(trials, trials.image_id[:30]), bold5000_5fold(trials, 1)]
    found += [holdout(trials, 0.2, by="session"), holdout(trials, 0.2)]
    return {split.name: split.hash for split in found}


def fingerprints():
    """Of extractors, as text."""
    return {word: FeatureSet.parse(word).extractor.fingerprint() for word in WORDS}


def backbone():
    """Features of the shipped model on made images."""
    model = veca.create_model("veca_nano_patch8", pretrained=True).eval()
    with torch.no_grad():
        features = model.forward_features(images(64, 64), num_cores=16)
        streamed = veca.stream_features(model, images(64, 64)[0], chunk_patches=16)
    found = {f"dense.{key}": getattr(features, key) for key in ("patches", "cores")}
    found |= {f"streamed.{key}": torch.as_tensor(getattr(streamed, key)) for key in ("patches", "cores")}
    return {key: value.numpy() for key, value in found.items()}


def scores():
    """All numbers in the records of a linear evaluation and of one with trained models, by part of the record."""
    found = {}
    for name, evaluation in (("ridge", evaluated.simulated_evaluation()), ("models", evaluated.evaluation_of_models())):
        for part, content in evaluation.record.items():
            if part not in ("machine", "settings"):
                rows = content if isinstance(content, list) else [content]
                found |= {f"{name}.{part}.{index}": np.array(numbers(row)) for index, row in enumerate(rows)}
    return {key: value for key, value in found.items() if len(value)}


def numbers(content):
    """The floats of a record in its order; times are left out."""
    if isinstance(content, dict):
        left_out = ("seconds", "versions", "peak_memory")
        return [x for key, value in sorted(content.items()) if key not in left_out for x in numbers(value)]
    if isinstance(content, list):
        return [x for value in content for x in numbers(value)]
    return [content] if isinstance(content, float) and np.isfinite(content) else []


def summary(value):
    """What is kept of an array: its bits as a hash, and sums that other machines come close to."""
    value = np.ascontiguousarray(value)
    kept = value[np.isfinite(value)].astype(np.float64)
    digest = hashlib.sha256(value.tobytes() + str(value.dtype).encode()).hexdigest()[:16]
    return {"sha": digest, "shape": list(value.shape), "sum": float(kept.sum()), "size": float(np.abs(kept).sum())}


GROUPS = {
    **{f"loaded_{system}": functools.partial(loaded, system) for system in MODELS},
    **{f"trained_{system}": functools.partial(trained, system) for system in MODELS},
    "drawn": drawn,
    "backbone": backbone,
    "backbone_training": backbone_training,
    "scores": scores,
    "splits": splits,
    "fingerprints": fingerprints,
}


def current(group):
    """The values of a group as this code makes them, by name: text, or summaries of arrays."""
    return {key: value if isinstance(value, str) else summary(value) for key, value in GROUPS[group]().items()}


def write():
    torch.set_num_threads(1)
    for system in MODELS:
        fitted.fitted(system).save(HERE / system)
    content = {"machine": machine()} | {group: current(group) for group in GROUPS}
    FILE.write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
