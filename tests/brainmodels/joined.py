"""Trials as arrays and joined by hand, which the tests of fitting share."""

import pytest

from brainmodels.training.trials import Recording, TokenTable, TrialData, VoxelScale, held_out, part_rows
from tests.brainmodels.fitted import pairs

BOTH = pytest.mark.parametrize("system", ["neuroflow", "synbrain"])


def arrays(subject="sim01"):
    """(responses, image ids) of the training trials as arrays."""
    given = pairs(subject=subject)
    return given.array(), given.image_ids


def joined(values, image_ids, source, validation=0.25):
    recording = Recording.of(values, image_ids)
    rows = part_rows(recording, held_out(recording.image_ids, validation))
    scale = VoxelScale.fit(recording, rows["train"], "as_is")
    table = TokenTable(source, None, "tokens", recording.image_ids)
    return TrialData(table, {"s": recording}, {"s": scale}, {part: {"s": found} for part, found in rows.items()})
