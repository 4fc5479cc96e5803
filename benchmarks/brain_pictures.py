"""Pictures and captions of simulated subjects, judged by the labels that a second network reads from them.

    python -m benchmarks.brain_pictures --seeds 1 3 4                   # nearest pictures of the bank that ships
    python -m benchmarks.brain_pictures --generator brainmodels/drawing/weights --shuffles 2

NeuroFlow and UniBrain are trained as `veca brain train` does, on the preset small, and evaluated as `veca brain
evaluate` does. Labels are read from every picture by a linear probe of the plain ViT that ships. It was fitted to
scenes that are neither shown nor in the bank, and sees no brain. Its row of shown pictures is what it can reach.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from brainmodels.baselines import LinearDecoder
from brainmodels.commands.evaluate import run_evaluation
from brainmodels.commands.train import TrainSettings, run_training
from brainmodels.drawing import Generator
from brainmodels.drawing.patch_code import pixels_of
from brainmodels.drawing.scenes import PIXELS
from brainmodels.evaluation import Evaluation, EvaluationSettings
from brainmodels.evaluation.drawers import Drawers
from brainmodels.evaluation.models import SAME_TOKENS
from brainmodels.evaluation.run import feature_cache
from brainmodels.features.sets import FeatureSet
from brainmodels.metrics.kid import mmd2
from brainmodels.metrics.statistics import bootstrap_mean
from brainmodels.simulated.scenes import scene_pictures, scene_stimuli

from .brain_models import how, publish, section
from .brain_studies import Table
from .record import RESULTS, Row, environment, slug, today

LABELS = ("shape", "color", "size", "background", "place")
BLOCK, RESAMPLES, SAMPLES, PROBE_SEED = 64, 1000, 4, 7200


class Probe:
    """Labels of pictures by ridge on the features of a plain ViT.

    Args:
        scenes: Number of scenes that it is fitted to.
    """

    def __init__(self, scenes: int):
        known = scene_stimuli(PROBE_SEED, scenes)
        ids = known.ids
        self.network = FeatureSet.parse("vit_nano_patch8").extractor
        features = self.seen(scene_pictures(ids, PIXELS))
        self.levels = {name: sorted(set(known.label(name, ids))) for name in LABELS}
        self.probes = {}
        for name, levels in self.levels.items():
            truth = np.asarray(known.label(name, ids))[:, None] == np.array(levels)
            self.probes[name] = LinearDecoder(calibration="none").fit(features, truth.astype(np.float32))

    def seen(self, images: np.ndarray) -> np.ndarray:
        """Features of pictures (n, H, W, 3) uint8: the pooled token and the patch tokens' mean and maximum."""
        found = []
        with torch.no_grad():
            for at in range(0, len(images), BLOCK):
                tokens, pooled = self.network.encode(pixels_of(images[at : at + BLOCK]))
                assert tokens is not None and pooled is not None  # of a ViT
                found.append(torch.cat([pooled, tokens.mean(1), tokens.amax(1)], 1))
        return torch.cat(found).numpy()

    def labels(self, features: np.ndarray) -> Mapping[str, np.ndarray]:
        """Most likely level of each label, by the features of pictures."""
        return {name: np.array(self.levels[name])[x.predict(features).argmax(1)] for name, x in self.probes.items()}


class Case:
    """One subject with its trained models; what is trained stays in a folder."""

    def __init__(self, seed: int, folder: Path, probe: Probe, options: argparse.Namespace):
        self.seed, self.folder, self.probe, self.options = seed, folder / f"seed{seed}", probe, options

    def trained(self, model: str, **settings: str) -> Path:
        out = self.folder / model
        if not (out / "model").is_dir():
            options = {"seed": self.seed, "cache": self.folder / "page" / "features", "progress": False}
            run_training(TrainSettings(model=model, data=("simulated:small",), out=out, **options, **settings))
        return out

    @cached_property
    def settings(self) -> EvaluationSettings:
        models = (self.trained("neuroflow", features="veca@64"), self.trained("unibrain"))
        pictures = "nearest" if self.options.generator is None else str(self.options.generator)
        drawn = {"pictures": pictures, "shuffles": self.options.shuffles, "curve": (), "progress": False}
        where = {"data": ("simulated:small",), "out": self.folder / "page", "seed": self.seed}
        return EvaluationSettings(features=("veca@64",), models=models, **drawn, **where)

    @cached_property
    def evaluation(self) -> Evaluation:
        return run_evaluation(self.settings)

    def samples(self) -> Table:
        """Several pictures of a generator from the tokens that ridge decodes, with other noise in each."""
        (evaluated,), evaluation = self.evaluation.models, self.evaluation
        study, dataset = evaluation.study, evaluation.dataset
        cache = feature_cache(evaluated.opened.tokens_of, dataset, study, self.settings)
        drawers = Drawers.of(evaluated, study, dataset, cache, self.options.generator, "cpu", False)
        generator = drawers.measured[SAME_TOKENS][0]
        assert isinstance(generator, Generator)
        tokens = torch.from_numpy(drawers.space.whole(evaluated.space.decode(study, study.measured)))
        drawn = generator.samples(tokens, SAMPLES).movedim(2, -1).numpy()
        images = np.round(255 * drawn).astype(np.uint8)
        mean, std = self.shown.mean(0), self.shown.std(0) + 1e-6

        def alike(pictures: np.ndarray) -> np.ndarray:
            return cosines((self.probe.seen(pictures) - mean) / std, (self.shown - mean) / std)

        scores, together = np.array([alike(x) for x in images]), alike(np.round(images.mean(0)).astype(np.uint8))
        row: Row = {
            "one sample": f"{scores[0].mean():.3f}",
            f"mean of {SAMPLES} scores": f"{scores.mean():.3f}",
            f"best of {SAMPLES}": f"{scores.max(0).mean():.3f}",
            "mean picture": f"{together.mean():.3f}",
            "spread of pixels": f"{drawn.std(0).mean():.3f}",
        }
        return Table("Samples", [row], "Cosine of the ViT's features with those of the shown picture. Ridge decodes.")

    def tables(self) -> list[Table]:
        (made,), (generated,) = self.evaluation.pictures, self.evaluation.generated
        rows = [self.row("shown", "", made.shown, None)]
        rows += [self.row(x.source, x.drawer.partition(" ")[0], x.images, x) for x in made.drawn]
        for item in generated.group("rows"):
            if item.images is not None:
                drawer = "denoised" if item.name == "denoised" else str(generated.settings["drawer"])
                rows.append(self.row(f"UniBrain, {item.name}", drawer, item.images, item))
        captions = [
            {
                "captions from": f"UniBrain, {item.name}",
                **{name: told(item, f"caption_label[{name}]") for name in LABELS[:4]},
            }
            for item in generated.group("rows")
            if item.captions is not None
        ]
        stack = made.model if not made.alone else f"{made.model}, weight {self.weight:.2f} in decoding"
        note = f"The model is {stack}. Labels by the probe, with 95 % intervals over images; KID by the ViT."
        tables = [
            Table("Pictures", rows, note),
            Table("Captions", captions, "Share with the right word of each label."),
        ]
        return tables if self.options.generator is None else [*tables, self.samples()]

    @property
    def weight(self) -> float:
        """How much NeuroFlow counts beside ridge in decoding."""
        (weights,) = self.evaluation.models[0].opened.model.meta_["stack"]["weights"].values()
        return weights["decode"]

    @cached_property
    def truth(self) -> Mapping[str, np.ndarray]:
        stimuli, ids = self.evaluation.dataset.stimuli, self.evaluation.study.test.image_ids
        return {name: np.asarray(stimuli.label(name, ids)) for name in LABELS}

    @cached_property
    def shown(self) -> np.ndarray:
        """Features of the shown pictures."""
        return self.probe.seen(self.evaluation.pictures[0].shown)

    def row(self, source: str, drawer: str, images: np.ndarray, scored: object) -> Row:
        """Labels that are found in pictures, identification by networks, and how like real pictures they are."""
        features = self.probe.seen(images)
        found = self.probe.labels(features)
        row: Row = {"tokens from": source, "drawer": drawer}
        for name in LABELS:
            right = (found[name] == self.truth[name]).astype(float)
            span = bootstrap_mean(right, RESAMPLES, self.seed)
            row[name] = f"{right.mean():.2f} ({span.low:.2f} to {span.high:.2f})"
        for name in ("two_way[vit_nano_patch8]", "two_way[grid]", "pixcorr"):
            row[name.replace("two_way", "two-way ")] = "" if scored is None else told(scored, name)
        row["KID"] = "" if scored is None else f"{kid_of(self.shown, features):.3f}"
        return row


def told(item: object, name: str) -> str:
    """A score with its interval; nothing where there is none."""
    score = item.score(name)  # type: ignore[attr-defined]
    if score is None or score.value is None:
        return ""
    return f"{score.value:.2f} ({score.interval.low:.2f} to {score.interval.high:.2f})"


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def kid_of(real: np.ndarray, made: np.ndarray) -> float:
    """Kernel distance of features, in units of their standard deviation among the shown pictures."""
    mean, std = real.mean(0), real.std(0) + 1e-6
    return mmd2((real - mean) / std, (made - mean) / std)


def main(words: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(words)
    facts = environment("cpu")
    out = args.out or RESULTS / f"{slug(facts['device'])}-brain-pictures-{today()}.md"
    command = shlex.join(["python", "-m", "benchmarks.brain_pictures", *(sys.argv[1:] if words is None else words)])
    probe = Probe(args.scenes)
    for seed in args.seeds:
        began = time.perf_counter()
        tables = Case(seed, args.workdir, probe, args).tables()
        text = section(f"seed {seed}", tables, how(command, began, facts))
        publish(out, "Pictures and captions of simulated subjects", text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[1, 3, 4], help="seeds of simulated subjects")
    add("--generator", type=Path, help="folder of `veca brain drawer`; the nearest picture is drawn too")
    add("--scenes", type=int, default=4000, help="scenes that the probe is fitted to")
    add("--shuffles", type=int, default=5, help="refits to wrong pairs")
    add("--workdir", type=Path, default=Path("out/brain_pictures"), help="folder of trained models")
    add("--out", type=Path, help="page to append to")
    return parser


if __name__ == "__main__":
    main()
