"""The command line, `veca brain ...`. The only file of the package that knows tyro."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .commands.catalog import CatalogSettings, catalog_lines
from .errors import BrainDataError

_absent: ImportError | None = None
try:
    from .commands.animate import AnimateSettings, run_animation
    from .commands.convert_optimus import convert_optimus
    from .commands.demo import run_demo
    from .commands.drawer import DrawerSettings, run_drawer
    from .commands.evaluate import run_evaluations, score_lines
    from .commands.pretrain import run_pretraining
    from .commands.train import TrainSettings, run_training, stage_lines
    from .evaluation import Evaluation, EvaluationSettings
    from .training.files import read_meta
except ImportError as error:  # the other commands work without the extra `brain`
    _absent = error
    if not TYPE_CHECKING:
        AnimateSettings = DrawerSettings = Evaluation = EvaluationSettings = TrainSettings = None

__all__ = ["main"]


def evaluate(settings: Annotated[EvaluationSettings, tyro.conf.arg(name="")]) -> None:
    """Encode and decode one subject by linear models, and by trained ones beside them; ends in an HTML report."""
    try:
        evaluations = run_evaluations(settings)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain evaluate: {error}") from error
    for evaluation in evaluations:
        print("\n".join(score_lines(evaluation)))
        print(Path(evaluation.record["settings"]["out"]) / "report.html")
    if len(evaluations) > 1 and isinstance(evaluations[0], Evaluation):  # others have no page of the group
        print(settings.out / "report.html")


def export(evaluation: Path, out: Path, data: Path | None = None, formats: tuple[str, ...] = ()) -> None:
    """Write the scores of an evaluation as maps with names of BIDS and as a table of voxels.

    Args:
        evaluation: Folder that `veca brain evaluate` has written.
        out: Folder to write to.
        data: Folder of the prepared subject; left out, the one that the evaluation names.
        formats: Some of nifti, gifti and csv; left out, all that the space allows.
    """
    from .evaluation.exports import export_scores

    try:
        for path in export_scores(evaluation, out, formats or None, data):
            print(path)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain export: {error}") from error


def train(settings: Annotated[TrainSettings, tyro.conf.arg(name="")]) -> None:
    """Train a brain model on one subject or several; ends in a folder that `evaluate --models` takes.

    Started again, it goes on from its last checkpoint. Ctrl-C, SIGTERM and SIGUSR1 end it after the current step, with
    a checkpoint; the status is 128 + the signal. Adapting a known model writes no checkpoints.
    """
    try:
        folder = run_training(settings)
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain train: {error}") from error
    if (folder / "meta.json").is_file():  # written by the first process
        print("\n".join(stage_lines(read_meta(folder))))
        print(folder)


def animate(settings: Annotated[AnimateSettings, tyro.conf.arg(name="")]) -> None:
    """Make a picture of a face talk, with a chosen emotion and intensity; ends in a video.

    Animate only people who agreed. Every file says that it is synthetic.
    """
    logging.getLogger(__package__).setLevel(logging.INFO)  # tells how long it will take
    try:
        print(run_animation(settings))
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain animate: {error}") from error


def demo(model: str = "neuro3d", out: Path | None = None) -> None:
    """Train a system on a simulated subject in minutes and write its report.

    Args:
        model: System with a demo.
        out: Folder of the run; left out, it is `out/MODEL-demo`. Started again, it goes on.
    """
    try:
        print(run_demo(model, Path("out") / f"{model}-demo" if out is None else out))
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain demo: {error}") from error


def drawer(settings: Annotated[DrawerSettings, tyro.conf.arg(name="")]) -> None:
    """Make what draws pictures from decoded tokens, from images alone; `evaluate --pictures` takes its folder."""
    try:
        print(run_drawer(settings))
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain drawer: {error}") from error


def prepare(
    layout: str,
    root: Path,
    out: Path,
    subject: str = "1",
    image_size: int = 256,
    allow_duplicates: bool = False,
    options: tuple[str, ...] = (),
) -> None:
    """Read a subject from the files of a data set, check them, and write a folder that opens at once.

    Args:
        layout: Name of the layout; `veca brain layouts` lists them.
        root: Folder of the data set, which is only read.
        out: Folder to write; it must not exist.
        subject: Number or name of the subject, as the data set has it.
        image_size: Side of the stimuli as they are written, pixels.
        allow_duplicates: Go on where equal pictures with different ids are in two parts of a split.
        options: Options of the layout as NAME=VALUE; numbers, true, false and null are read as such, all else is text.
            Layouts of EEG take the steps to epochs as words: tmin, tmax and baseline in seconds, sfreq, highpass and
            lowpass in hertz, reference and channels by name, as in tmin=-0.2 tmax=0.8 baseline=-0.2,0 highpass=0.1.
    """
    from .layouts import prepare as write

    try:
        given = dict(_option(word) for word in options)
        sizes = {"image_size": image_size, "allow_duplicates": allow_duplicates}
        print(write(layout, root, subject, out, progress=True, **sizes, **given))
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise SystemExit(f"veca brain prepare: {error}") from error
    print(out)


def pretrain(out: Path, recipe: str = "nano", seed: int | None = None, device: str | None = None) -> None:
    """Train the generator of UniBrain on drawn scenes; ends in a folder that `train --generator` takes.

    Started again, it goes on: stages that have ended are skipped.

    Args:
        out: Folder of the run; the generator is in `generator` below it.
        recipe: Name of a recipe, nano or tiny.
        seed: Seed of the scenes, which no study may share; left out, that of the recipe.
        device: Device; None is a GPU where there is one.
    """
    try:
        print("\n".join(run_pretraining(out, recipe, seed, device)))
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain pretrain: {error}") from error
    print(out / "generator")


def layouts(name: tyro.conf.Positional[str | None] = None) -> None:
    """Data sets that can be read, or the files that one of them needs.

    Args:
        name: Name of a layout; left out, all are listed with their first line.
    """
    from .layouts import LAYOUTS, layout

    try:
        if name is not None:
            print(layout(name).describe())
            return
    except BrainDataError as error:
        raise SystemExit(f"veca brain layouts: {error}") from error
    for known in LAYOUTS:
        print(f"{known:16} {(layout(known).__doc__ or '').strip().splitlines()[0]}")


_NO_FILTERS = CatalogSettings()


def catalog(
    what: tyro.conf.Positional[str | None] = None,
    settings: Annotated[CatalogSettings, tyro.conf.arg(name="")] = _NO_FILTERS,
) -> None:
    """Models, data sets, regions, generators, metrics, features and pitfalls of the field, and what is here.

    Args:
        what: models, datasets, regions, generators, metrics, features or pitfalls, or the name of a card. Left out, the
            number of models of each task and signal is shown.
        settings: Filters, and the form of the answer.
    """
    try:
        print("\n".join(catalog_lines(what, settings)))
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain catalog: {error}") from error


def convert(file: Path, out: Path) -> None:
    """Write the arrays of a pickled file as .npz, which opens without running code.

    Three kinds of files are known: betas of GLMsingle, recordings of THINGS-EEG2, and head models of FLAME.

    Args:
        file: Pickled file to read. A file that asks for more than arrays, strings and numbers is refused.
        out: File to write, .npz.
    """
    from .commands.convert import convert_file

    try:
        print(convert_file(file, out))
    except (BrainDataError, OSError) as error:
        raise SystemExit(f"veca brain convert: {error}") from error


def _option(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals:
        raise BrainDataError(f"expected options as NAME=VALUE, got {word!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(args: list[str]) -> None:
    """Run a command.

    Args:
        args: Words after `veca brain`.
    """
    logging.basicConfig(format="%(message)s")
    commands: dict[str, Any] = {
        command.__name__: command
        for command in (animate, catalog, convert, demo, drawer, evaluate, export, layouts, prepare, pretrain, train)
    }
    if _absent is None:
        commands["convert-optimus"] = convert_optimus
    else:
        for name in ("animate", "convert-optimus", "demo", "drawer", "evaluate", "export", "pretrain", "train"):
            commands.pop(name, None)
            if args[:1] == [name]:
                raise SystemExit(f"veca brain {name}: {_absent}")
    tyro.extras.subcommand_cli_from_dict(
        commands, prog="veca brain", description="Brain encoding and decoding on features of images.", args=args
    )
