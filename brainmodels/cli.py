"""The command line, `veca brain ...`. The only file of the package that knows tyro."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import tyro

from .commands.evaluate import run_evaluation
from .commands.train import TrainSettings, run_training, stage_lines
from .errors import BrainDataError
from .evaluation import EvaluationSettings
from .training.files import read_meta

__all__ = ["main"]


def evaluate(settings: Annotated[EvaluationSettings, tyro.conf.arg(name="")]) -> None:
    """Encode and decode one subject by linear models, and by trained ones beside them; ends in an HTML report."""
    try:
        evaluation = run_evaluation(settings)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain evaluate: {error}") from error
    for item in evaluation.encoded:
        print(f"{item.model}, {item.features}: {item.score('nr2') or item.scores[0]}")
    for item in evaluation.decoded:
        print(f"decoded into {item.features}: {item.scores[0]}")
    for model in evaluation.models:
        for item in model.decoded:
            print(f"{item.scores[0].decoder}, found in {item.features}: {item.scores[0]}")
    print(settings.out / "report.html")


def train(settings: Annotated[TrainSettings, tyro.conf.arg(name="")]) -> None:
    """Train NeuroFlow or SynBrain on one subject or several; ends in a folder that `evaluate --models` takes."""
    try:
        folder = run_training(settings)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"veca brain train: {error}") from error
    if (folder / "meta.json").is_file():  # written by the first process
        print("\n".join(stage_lines(read_meta(folder))))
        print(folder)


def prepare(
    layout: str,
    root: Path,
    out: Path,
    subject: str = "1",
    image_size: int = 256,
    options: tuple[str, ...] = (),
) -> None:
    """Read a subject from the files of a data set, check them, and write a folder that opens at once.

    Args:
        layout: see `veca brain layouts`.
        root: folder of the data set, which is only read.
        out: folder to write; it must not exist.
        subject: number or name, as the data set has it.
        image_size: side of the stimuli as they are written, pixels.
        options: of the layout, as NAME=VALUE; numbers, true, false and null are read as such, all else is text.
    """
    from .layouts import prepare as write

    try:
        given = dict(_option(word) for word in options)
        print(write(layout, root, subject, out, image_size=image_size, progress=True, **given))
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise SystemExit(f"veca brain prepare: {error}") from error
    print(out)


def layouts(name: tyro.conf.Positional[str | None] = None) -> None:
    """Data sets that can be read, or the files that one of them needs.

    Args:
        name: of a layout; left out, all are listed with their first line.
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


def convert(file: Path, out: Path) -> None:
    """Write what a pickled file of THINGS-EEG2 holds as .npz, which opens without running code.

    Args:
        file: to read. To ask for this is to allow its pickle: do so only with files whose maker you trust.
        out: .npz to write.
    """
    from .layouts.things_eeg2 import convert_pickle

    try:
        print(convert_pickle(file, out))
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
        args: words after `veca brain`.
    """
    logging.basicConfig(format="%(message)s")
    commands = {command.__name__: command for command in (convert, evaluate, layouts, prepare, train)}
    tyro.extras.subcommand_cli_from_dict(
        commands, prog="veca brain", description="Brain encoding and decoding on features of images.", args=args
    )
