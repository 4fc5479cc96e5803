"""Writes a simulated subject as an EEG-BIDS folder: recordings, events, channels, electrodes and stimuli."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from brainmodels.data.dataset import BrainDataset
from tests.brainmodels.written.raw_eeg import VOLTS, write_brainvision, write_edf, write_fif

__all__ = ["write_eeg_bids"]

_WRITERS = {"fif": write_fif, "vhdr": write_brainvision, "edf": write_edf}


def write_eeg_bids(
    dataset: BrainDataset,
    root: str | Path,
    subject: str = "sim01",
    label: str = "01",
    sessions: int = 1,
    runs: int = 2,
    form: str = "vhdr",
    eog: Sequence[str] = (),
    image_size: int = 64,
) -> dict[str, str]:
    """Write the trials of a subject with half a second of zeros before and after each, over sessions and runs.

    Every run also has a line of trial_type "rest" that names no image.

    Args:
        dataset: Data set of `simulate_eeg`. One unit of its values becomes 10 microvolts.
        root: Folder to write to.
        subject: Id of the subject in `dataset`.
        label: Label of the subject in the names of files.
        sessions: Number of sessions. With 1 there is no folder of sessions.
        runs: Number of runs of each session.
        form: Format of the recordings: "fif", "vhdr" or "edf".
        eog: Channels that channels.tsv calls EOG.
        image_size: Side of the PNG files in pixels.

    Returns:
        Ids that `layouts.eeg_bids.load` gives to the images, by their ids in `dataset`.
    """
    root, person = Path(root), dataset.subject(subject)
    shown = np.unique(person.responses.trials.image_id).tolist()
    names = {image: f"scenes/{image.replace(':', '_')}.png" for image in shown}
    (root / "stimuli/scenes").mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "simulated", "BIDSVersion": "1.9.0"}')
    for image, name in names.items():
        Image.fromarray(dataset.stimuli.image(image, image_size)).save(root / "stimuli" / name)
    sfreq, count = person.space.sfreq, len(person.responses)
    onset = -round(person.space.times[0] * sfreq)
    pause = np.zeros((len(person.space), round(sfreq / 2)))
    places = [(session, run) for session in range(1, sessions + 1) for run in range(1, runs + 1)]
    for (session, run), trials in zip(places, np.array_split(np.arange(count), len(places)), strict=True):
        inside = f"ses-{session:02d}/" if sessions > 1 else ""
        folder = root / f"sub-{label}/{inside}eeg"
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"sub-{label}_{inside.replace('/', '_')}task-see_run-{run}_"
        pieces, lines, start = [pause], ["0.0\t0.1\trest\tn/a"], pause.shape[1]
        for trial, row in zip(person.responses.batch(trials), trials, strict=True):
            image = names[str(person.responses.trials.image_id[row])]
            lines.append(f"{(start + onset) / sfreq:.6f}\t0.1\timage\t{image}")
            pieces += [trial.astype(np.float64) * VOLTS, pause]
            start += trial.shape[1] + pause.shape[1]
        _WRITERS[form](folder / f"{stem}eeg", np.concatenate(pieces, 1), person.space.ch_names, sfreq, [])
        (folder / f"{stem}events.tsv").write_text("\n".join(["onset\tduration\ttrial_type\tstim_file", *lines, ""]))
        kinds = [f"{name}\t{'EOG' if name in eog else 'EEG'}\tuV\tgood" for name in person.space.ch_names]
        extra = ["STI\tTRIG\tV\tgood"] if form == "fif" else []
        (folder / f"{stem}channels.tsv").write_text("\n".join(["name\ttype\tunits\tstatus", *kinds, *extra, ""]))
        electrodes = [f"{name}\t0.0\t0.0\t0.1" for name in person.space.ch_names]
        own = f"sub-{label}_{inside.replace('/', '_')}electrodes.tsv"
        (folder / own).write_text("\n".join(["name\tx\ty\tz", *electrodes, ""]))
    return names
