"""A new subject with few trials: which method says most about it?

    python -m benchmarks.new_subject --seeds 1 2 3                         # preset tiny, planted features
    python -m benchmarks.new_subject --preset small --features veca --counts 20 50 100 180
    python -m benchmarks.new_subject --individuality 1 --encoding-only     # a cohort that shares no tuning
    python -m benchmarks.new_subject --preset small --subjects 6 --tuning nonlinear --features veca --encoding-only

Subject sim01 is left out, and all methods see the same images of it. Networks are trained on the other subjects, and
MindAligner on sim02. Encoding is nr2, over voxels whose noise ceiling is above 0.1. Decoding is top-1 among all test
images, by the embedding that a method reads from responses. "Seconds" are those of the new subject alone.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainmodels.baselines import LinearDecoder, Ridge
from brainmodels.data import Pairs, Split, fit_normalizer
from brainmodels.data.subject_splits import context_split
from brainmodels.evaluation.encoding import standardized
from brainmodels.features import ArrayFeatures, FeatureCache
from brainmodels.features.sets import FeatureSet
from brainmodels.metrics.encoding import nr2, voxel_r
from brainmodels.simulated import planted_features, simulate
from brainmodels.systems.braincodec import BrainCoDec, InContextEncoder, in_context
from brainmodels.systems.braincodec.recipes import named
from brainmodels.systems.mindaligner import MindAligner
from brainmodels.systems.synbrain import SynBrain

from .brain_models import how, publish, section
from .brain_studies import Table
from .record import RESULTS, Row, environment, slug, today

NEW, KNOWN, LEAST_CEILING = "sim01", "sim02", 0.1
SCALES = {"context": "session_z_unlabelled", "train": "session_z_train"}


class Case:
    """One simulated cohort, and the models that are trained without the new subject."""

    def __init__(self, seed: int, args: argparse.Namespace):
        self.seed, self.args = seed, args
        options = {"individuality": args.individuality, "tuning": args.tuning}
        snr = {"snr_scale": {NEW: args.snr}}
        subjects = {} if args.subjects is None else {"n_subjects": args.subjects}
        self.dataset = simulate(args.preset, seed=seed, **options, **snr, **subjects)
        self.split = self.dataset.split("shared")
        truth = self.dataset.truth[NEW]
        self.ceiling = truth.ceiling()
        self.counted = self.ceiling > LEAST_CEILING
        if not self.counted.any():  # noise alone: all voxels are alike
            self.ceiling, self.counted = np.ones_like(self.ceiling), np.ones_like(self.counted)

    @cached_property
    def source(self) -> Any:
        """Features of all images."""
        ids = sorted({str(x) for person in self.dataset.subjects.values() for x in person.responses.trials.image_id})
        if self.args.features == "planted":
            return ArrayFeatures(planted_features(self.dataset, ids), ids)
        item = FeatureSet.parse(self.args.features)
        cache = FeatureCache(
            self.args.workdir / f"features-{self.args.preset}-{self.seed}", item.extractor, self.dataset.stimuli
        )
        cache.extract(ids, device="cpu", progress=False)
        return cache

    def pairs(self, subject: str, split: Split, part: str, average: str, scale: str = "train") -> Pairs:
        """Responses of a subject to the images of a part, z-scored by session."""
        normalizer = fit_normalizer(SCALES[scale], self.dataset.subject(subject), split)
        return self.dataset.pairs(subject, split, part, average, normalizer)

    @cached_property
    def codec(self) -> BrainCoDec | InContextEncoder:
        """BrainCoDec of all other subjects, or its first stage alone. It is kept, since it has not seen the new one."""
        args = self.args
        system = InContextEncoder if args.encoding_only else BrainCoDec
        kind = (args.preset, args.features, args.recipe, args.individuality, args.tuning, args.subjects, self.seed)
        kind = (system.__name__, *kind, args.extend_steps, args.embed_width)
        folder = args.workdir / "-".join(map(str, kind))
        if folder.is_dir():
            return system.load(folder)
        others = [name for name in self.dataset.subjects if name != NEW]
        pairs = {name: self.pairs(name, self.split, "train", "none") for name in others}
        model = system(self.recipe()).fit(self.source, pairs, alignment="off")
        model.save(folder)
        return model

    def recipe(self) -> Any:
        """The recipe with what the arguments change of its first stage."""
        args, first = self.args, in_context(self.args.recipe)
        if args.extend_steps is not None and first.extend is not None:
            first = replace(first, extend=replace(first.extend, steps=args.extend_steps))
        if args.embed_width is not None:
            first = replace(first, embed_width=args.embed_width, width=2 * args.embed_width)
        if args.encoding_only:
            return first
        return replace(named(args.recipe), stage1=first, embed_width=first.embed_width)

    @cached_property
    def synbrain(self) -> SynBrain:
        """SynBrain of the known subject, which is adapted to the new one by training."""
        pairs = self.pairs(KNOWN, self.split, "train", "none")
        return SynBrain("nano").fit(self.source, pairs, subject=KNOWN, alignment="off")

    def encoding(self, predicted: np.ndarray, test: Pairs) -> float:
        """nr2 over the voxels that count."""
        r = np.nan_to_num(voxel_r(test.array(), predicted))
        return float(nr2(r, self.ceiling, self.counted).total)

    def rows(self) -> tuple[list[Row], list[Row]]:
        """Tables of encoding and of decoding, a row a method and a column a number of images."""
        found: dict[tuple[str, str, int], list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for count in self.args.counts:
            for draw in range(self.args.draws):
                for kind, name, value, took in self.scored(count, draw):
                    found.setdefault((kind, name, count), []).append(value)
                    if took is not None:
                        seconds.setdefault(f"{kind} {name}", []).append(took)
        for kind, name, value in self.full():
            found[kind, name, -1] = [value]
        tables = []
        for kind in ("encoding", "decoding"):
            names = list(dict.fromkeys(name for k, name, _ in found if k == kind))
            tables.append([self._row(kind, name, found, seconds.get(f"{kind} {name}")) for name in names])
        return tables[0], tables[1]

    def _row(self, kind: str, name: str, found: Mapping, seconds: Sequence[float] | None) -> Row:
        columns = {f"{count} images": found.get((kind, name, count)) for count in self.args.counts}
        columns["all images"] = found.get((kind, name, -1))
        shown = {key: "" if values is None else f"{np.mean(values):.3f}" for key, values in columns.items()}
        return {"method": name, **shown, "seconds": "" if not seconds else f"{np.mean(seconds):.1f}"}

    def scored(self, count: int, draw: int) -> list[tuple[str, str, float, float | None]]:
        """Scores of every method that sees so many images of the new subject."""
        few = context_split(self.dataset, NEW, self.split, count, self.seed, draw, self.args.draws)
        context, test = (
            self.pairs(NEW, few, part, how, "context") for part, how in (("train", "none"), ("test", "repeats"))
        )
        ids, trained, began = test.image_ids, self.codec, time.perf_counter()
        model = trained.adapt(self.source, context, subject=NEW)
        took = time.perf_counter() - began
        X = model.tokens(self.source, ids)[:, 0]
        told = [("encoding", *row) for row in self._encoded(model, X, test, took)]
        if isinstance(model, BrainCoDec):
            told += [("decoding", *row) for row in self._decoded(model, X, few, context, test, took)]
        if self.args.trained:
            told += self._trained(few, test)
        return told

    def _encoded(
        self, model: BrainCoDec | InContextEncoder, X: np.ndarray, test: Pairs, took: float
    ) -> list[tuple[str, float, float | None]]:
        names = {"ridge": "ridge", "prior ridge of other subjects": "prior_ridge", "BraInCoRL": "in_context"}
        rows = []
        for name, method in names.items():
            guess = model.scales_[NEW].undo(model.voxel_model(NEW, method).predict(X))
            rows.append((name, self.encoding(guess, test), took if method == "in_context" else None))
        return rows

    def _decoded(
        self, model: BrainCoDec, X: np.ndarray, few: Split, context: Pairs, test: Pairs, took: float
    ) -> list[tuple[str, float, float | None]]:
        averaged = self.pairs(NEW, few, "train", "repeats", "context")
        direct = LinearDecoder(calibration="none").fit(
            averaged.array(), model.tokens(self.source, averaged.image_ids)[:, 0]
        )
        rows = [("ridge to the embedding", top1(direct.predict(test.array()), X), None)]
        for name in ("ridge", "prior_ridge"):
            features = model.decode(test, mode="inversion", method=name)
            name = f"inversion of {name.replace('_', ' ')}"
            rows.append((name, top1(model.tokens(features)[:, 0], X), None))
        for mode in ("network", "inversion"):
            chosen = ", chosen" if mode == model.mode_ else ""
            read = model.tokens(model.decode(test, mode=mode))[:, 0]
            rows.append((f"BrainCoDec, {mode}{chosen}", top1(read, X), took if chosen else None))
        shuffled = test.array()[np.random.default_rng(self.seed).permutation(len(test))]
        rows.append(
            ("BrainCoDec, responses of another image", top1(model.tokens(model.decode(shuffled))[:, 0], X), None)
        )
        known, began = self.pairs(KNOWN, self.split, "train", "none"), time.perf_counter()
        if len(context) >= 90:  # some of the images validate
            aligner = MindAligner(self.args.recipe if self.args.recipe in ("tiny", "nano") else "nano")
            labels = dict(zip(self.dataset.stimuli.ids.tolist(), self.dataset.stimuli.labels["shape"], strict=True))
            pairs = {NEW: context, KNOWN: known}
            aligner.fit(self.source, pairs, new=NEW, labels=labels, alignment="off", validation=0.25)
            took = time.perf_counter() - began
            E = aligner.tokens(self.source, test.image_ids)[:, 0]
            for name, features in aligner.reference_decodings(test).items():
                if name.startswith(("encode_", "cross")):
                    rows.append(
                        (
                            name.replace("same decoder", "decoder of sim02"),
                            top1(aligner.tokens(features)[:, 0], E),
                            None,
                        )
                    )
            rows.append(("MindAligner", top1(aligner.tokens(aligner.decode(test))[:, 0], E), took))
        return rows

    def _trained(self, few: Split, test: Pairs) -> list[tuple[str, str, float, float | None]]:
        """SynBrain, adapted by some minutes of training, and ridge on the patch tokens that it sees."""
        averaged = self.pairs(NEW, few, "train", "repeats", "context")
        X, X_test = (self.source.get(x.image_ids, "tokens") for x in (averaged, test))
        X, X_test = standardized(X.reshape(len(X), -1), X_test.reshape(len(X_test), -1))
        ridge = Ridge().fit(X, averaged.array()).predict(X_test)
        rows = [("encoding", "ridge, patch tokens", self.encoding(ridge, test), None)]
        context, began = self.pairs(NEW, few, "train", "none", "context"), time.perf_counter()
        model = self.synbrain.adapt(self.source, context, subject=NEW, alignment="off")
        guess = model.predict(self.source, image_ids=test.image_ids, subject=NEW)
        name = "SynBrain, patch tokens, adapted"
        return [*rows, ("encoding", name, self.encoding(guess, test), time.perf_counter() - began)]

    def full(self) -> list[tuple[str, str, float]]:
        """Ridge on all images of the new subject, in both directions: what its own data say in the end."""
        train, test = (self.pairs(NEW, self.split, part, "repeats") for part in ("train", "test"))
        X, X_test = (self.codec.tokens(self.source, x.image_ids)[:, 0] for x in (train, test))
        guess = Ridge().fit(X, train.array()).predict(X_test)
        rows = [("encoding", "ridge", self.encoding(guess, test))]
        if not self.args.encoding_only:
            direct = LinearDecoder(calibration="none").fit(train.array(), X)
            rows.append(("decoding", "ridge to the embedding", top1(direct.predict(test.array()), X_test)))
        return rows


def top1(guess: np.ndarray, truth: np.ndarray) -> float:
    """Share of images whose own embedding has the largest cosine with what was decoded."""
    guess, truth = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (guess, truth))
    return float(((guess @ truth.T).argmax(1) == np.arange(len(truth))).mean())


def main(words: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(words)
    torch.set_num_threads(1)
    facts = environment("cpu")
    out = args.out or RESULTS / f"{slug(facts['device'])}-new-subject-{today()}.md"
    command = shlex.join(["python", "-m", "benchmarks.new_subject", *(sys.argv[1:] if words is None else words)])
    for seed in args.seeds:
        began = time.perf_counter()
        case = Case(seed, args)
        encoded, decoded = case.rows()
        gallery = len(case.split.test)
        tables = [Table("Encoding,", encoded, f"nr2 of sim01, mean of {args.draws} draws.")]
        if decoded:
            note = f"top-1 of {gallery} images (chance {1 / gallery:.3f}), mean of {args.draws} draws."
            tables.append(Table("Decoding,", decoded, note))
        title = f"{args.preset}, {args.features} features, seed {seed}"
        extra = {"individuality": args.individuality or None, "snr": None if args.snr == 1 else args.snr}
        extra |= {"tuning": None if args.tuning == "linear" else args.tuning, "subjects": args.subjects}
        extra |= {"embed width": args.embed_width, "synthetic steps": args.extend_steps}
        title += "".join(f", {key} {value}" for key, value in extra.items() if value is not None)
        text = section(title, tables, how(command, began, facts))
        publish(out, "A new subject with few trials", text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[1], help="seeds of the cohort")
    add("--preset", default="tiny", help="preset of the simulation")
    add("--subjects", type=int, help="number of subjects; the preset's by default")
    add("--features", default="planted", help="planted, or a set of features such as veca")
    add("--recipe", default="tiny", help="recipe of BrainCoDec and MindAligner")
    add("--counts", nargs="+", type=int, default=[8, 16, 32, 48], help="numbers of images of the new subject")
    add("--draws", type=int, default=4, help="disjoint draws of these images")
    add("--individuality", type=float, default=0.0, help="share of tuning that no other subject has")
    add("--tuning", default="linear", help="linear or nonlinear")
    add("--snr", type=float, default=1.0, help="factor of the new subject's signal-to-noise ratio")
    add("--encoding-only", action="store_true", help="train and score the first stage alone")
    add("--extend-steps", type=int, help="steps of the first stage on synthetic voxels; the recipe's by default")
    add("--embed-width", type=int, help="width of the embeddings; the recipe's by default")
    add("--trained", action="store_true", help="adapt SynBrain too, which takes minutes")
    add("--workdir", type=Path, default=Path("out/new_subject"), help="folder of features")
    add("--out", type=Path, help="page to append to")
    return parser


if __name__ == "__main__":
    main()
