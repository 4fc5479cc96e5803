"""EmoDiffHead on drawn heads: pictures, lip sync on swapped audio, intensity and identity, beside what is exact.

    python -m benchmarks.heads --seeds 1 2 3
    python -m benchmarks.heads --seeds 1 2 --hide never jaw        # controls that leak
    python -m benchmarks.heads --seeds 1 --mixing none

Each seed has its faces, sentences and noise. Test clips show faces and sentences that were not trained on.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainmodels.data.clips import EMOTIONS, TalkingClip
from brainmodels.evaluation.heads import HeadEvaluation, HeadSettings, evaluate_heads
from brainmodels.features.audio import audio_features
from brainmodels.heads import ToyHead
from brainmodels.simulated.talking_head import SimulatedClips, simulate_clips
from brainmodels.systems.emodiffhead import EmoDiffHead, RidgeSpeech, named
from brainmodels.systems.emodiffhead.motion import blend
from brainmodels.systems.emodiffhead.recipes import HIDING

from .brain_models import how, publish, section
from .brain_studies import Table
from .record import RESULTS, environment, slug, today

NAME = "EMOdiffhead"
HEAD = """Talking heads on drawn faces

Tables of `benchmarks.heads`. Openings, emotions and visemes are read by a probe that learned exact renders of other
faces. A "swapped" clip has the expression of one clip and the sound of another."""


def fitted(clips: SimulatedClips, recipe: Any, seed: int, folder: Path | None) -> EmoDiffHead:
    """A model of the train clips, or the saved one."""
    stages = {name: replace(getattr(recipe, name), seed=seed) for name in EmoDiffHead.stages}
    if folder is not None and folder.is_dir():
        return EmoDiffHead.load(folder, "cpu")
    model = EmoDiffHead(replace(recipe, **stages), "cpu", clips.head).fit(clips.of("train"))
    if folder is not None:
        model.save(folder)
    return model


def speech_rows(model: EmoDiffHead, clips: SimulatedClips) -> list[dict[str, Any]]:
    """The generator and ridge on test sentences: correlation of the jaw with the truth, and error of coefficients."""
    extract, space = audio_features(model.recipe.audio), model.space_

    def sound(clip: TalkingClip) -> np.ndarray:
        return model.scale_.apply(extract(clip.audio, clip.sample_rate, clip.fps, clip.num_frames))

    train, test = clips.of("train"), clips.of("test")
    columns = [[sound(x) for x in train], [space.whiten(x.exp, x.jaw) for x in train]]
    labels = [EMOTIONS.index(clip.emotion or EMOTIONS[0]) for clip in train]
    ridge = RidgeSpeech(len(EMOTIONS)).fit(*columns, labels, [clip.alpha for clip in train])

    def by_ridge(clip: TalkingClip) -> np.ndarray:
        both = ridge.trajectories(sound(clip), (0, EMOTIONS.index(clip.emotion or EMOTIONS[0])))
        return blend(*both, clip.alpha)

    def by_model(clip: TalkingClip) -> np.ndarray:
        found = model.motion(clip.audio, clip.emotion, clip.alpha, sample_rate=clip.sample_rate)
        return space.whiten(found.exp, found.jaw)

    rows = []
    for name, predict in (("generator", by_model), ("ridge", by_ridge)):
        found = [predict(clip) for clip in test]
        jaws = [space.unwhiten(x)[1][:, 0] for x in found]
        r = [np.corrcoef(jaw, clip.jaw[:, 0])[0, 1] for jaw, clip in zip(jaws, test, strict=True)]
        pooled = np.corrcoef(np.concatenate(jaws), np.concatenate([clip.jaw[:, 0] for clip in test]))[0, 1]
        pairs = zip(found, test, strict=True)
        error = np.mean([np.abs(x - space.whiten(clip.exp, clip.jaw)).mean() for x, clip in pairs])
        rows.append({"row": name, "jaw r": pooled, "jaw r, least clip": min(r), "L1, whitened": error})
    return rows


def tables_of(evaluation: HeadEvaluation, speech: Sequence[dict[str, Any]]) -> list[Table]:
    """Tables of one model."""
    found = [Table("Speech to coefficients, test sentences.", list(speech))]
    for name, rows in evaluation.tables.items():
        table = []
        for row in rows:
            known = {x.metric.name: "" if x.value is None else x.value for x in row.scores}
            table.append({"row": row.name} | known)
        columns = list(dict.fromkeys(key for row in table for key in row))
        found.append(Table(f"{name.capitalize()}.", [{key: row.get(key, "") for key in columns} for row in table]))
    verdicts = [{"bound": "kept" if x.good else "missed", "what": x.text} for x in evaluation.verdicts(NAME)]
    return [*found, Table("Bounds.", verdicts, evaluation.first_line)]


def main(words: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(words)
    torch.set_num_threads(args.threads)
    command = shlex.join(["python", "-m", "benchmarks.heads", *(sys.argv[1:] if words is None else words)])
    facts = environment("cpu")
    out = args.out or RESULTS / f"{slug(facts['device'])}-heads-{today()}.md"
    head = ToyHead(mixing=None if args.mixing == "none" else args.mixing)
    for seed in args.seeds:
        recipe = named(args.recipe)
        clips = simulate_clips(head, size=recipe.size, seed=seed)
        for hide in args.hide:
            began = time.perf_counter()
            folder = None if args.models is None else args.models / f"{args.recipe}_{args.mixing}_{hide}_{seed}"
            model = fitted(clips, replace(recipe, hide=hide), seed, folder)
            settings = HeadSettings(num_clips=args.clips, steps=args.steps, seed=seed, resamples=args.resamples)
            evaluation = evaluate_heads({NAME: model}, clips, settings)
            tables = tables_of(evaluation, speech_rows(model, clips))
            seconds = {stage["name"]: round(stage["seconds"]) for stage in model.meta_["stages"]}
            title = f"{args.recipe}, coefficients mixing {args.mixing}, hide {hide}, seed {seed}"
            steps = args.steps or recipe.steps
            notes = [f"seconds of the stages: {seconds}", f"{args.clips} test clips, {steps} denoising steps"]
            publish(out, HEAD, section(title, tables, [*notes, *how(command, began, facts)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of faces, sentences, weights and noise")
    add("--recipe", default="tiny", help="recipe of the model")
    add("--hide", nargs="+", choices=HIDING, default=["flagged"], help="what training hides of the mouth")
    add("--mixing", choices=("orthogonal", "none"), default="orthogonal", help="mixing of the head's coefficients")
    add("--clips", type=int, default=16, help="number of test clips")
    add("--steps", type=int, help="denoising steps of a chunk; default: those of the recipe")
    add("--resamples", type=int, default=1000, help="number of resamples for intervals")
    add("--models", type=Path, help="folder to save the models in, and to take saved ones from")
    add("--threads", type=int, default=2, help="number of torch's threads")
    add("--out", type=Path, help="page to append to")
    return parser


if __name__ == "__main__":
    main()
