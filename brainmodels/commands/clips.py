"""From trained talking heads to a report: what `veca brain evaluate --models` does with models such as EmoDiffHead."""

from pathlib import Path

from ..errors import BrainDataError, LeakageError
from ..evaluation import EvaluationSettings
from ..evaluation.checks import refuse_changed
from ..evaluation.heads import HeadEvaluation, HeadSettings, evaluate_heads
from ..report.heads import write_head_report
from ..systems import load_model
from ..training.files import model_folder, read_meta
from .opening import data_of_study, open_clips, open_head

__all__ = ["clip_lines", "run_clip_evaluations"]

_CLIPS = 12  # test clips of an evaluation, each of which a model renders about 14 times
_OF_SUBJECTS = (
    "features", "pictures", "ablations", "published", "subject", "context", "draws", "split", "normalizer", "threshold",
    "check_alignment", "allow_duplicates", "shuffles", "curve",
)  # fmt: skip


def run_clip_evaluations(settings: EvaluationSettings) -> list[HeadEvaluation]:
    """Evaluate talking heads on test clips, and write one report with all of them.

    Without data, the models are evaluated on the data of their training.

    Raises:
        BrainDataError: Data of another kind, a setting of other studies, or models of different sizes or heads.
        LeakageError: A model was trained on other train clips.
    """
    refuse_changed(settings, _OF_SUBJECTS, "talking heads, which do not have it")
    folders = [model_folder(folder) for folder in settings.models]
    words = {str(read_meta(folder).get("run", {}).get("head", "toy")) for folder in folders}
    if len(words) > 1:
        raise BrainDataError(f"expected models of one head, got {', '.join(sorted(words))}")
    word = words.pop()
    head = None if word == "toy" else open_head(word)  # a model knows its own drawn head
    models = {}
    for folder in folders:
        model = load_model(folder, settings.device, head=head)
        place = folder.parent if folder.name == "model" else folder
        name = model.label if len(folders) == 1 else f"{model.label} {place.name}"
        if name in models:
            raise BrainDataError(f"expected models in folders with names of their own, got {name} twice")
        models[name] = model
    sizes = {model.recipe.size for model in models.values()}
    if len(sizes) > 1:
        raise BrainDataError(f"expected models of pictures of one size, got {sorted(sizes)}")
    word, seed = data_of_study(settings, models.values(), "clips", "clips:toy or clips:MANIFEST for talking heads")
    clips = open_clips(word, next(iter(models.values())).head, sizes.pop(), seed)
    for name, model in models.items():
        known = model.meta_.get("run", {}).get("split_hash")
        if known is not None and known != clips.split_hash:
            raise LeakageError(f"expected the split {known} with which {name} was trained, got {clips.split_hash}")
    options = HeadSettings(
        data=word,
        out=Path(settings.out),
        num_clips=_CLIPS,
        resamples=settings.resamples,
        seed=settings.seed,
        progress=settings.progress,
    )
    evaluation = evaluate_heads(models, clips, options)
    write_head_report(evaluation, Path(settings.out))
    return [evaluation]


def clip_lines(evaluation: HeadEvaluation) -> list[str]:
    """The first line of the report, then a line for each row and its scores."""
    tables = evaluation.tables.values()
    return [evaluation.first_line, *(f"{row.name}: {score}" for rows in tables for row in rows for score in row.scores)]
