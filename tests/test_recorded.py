"""A change of structure moves no number: models saved by an earlier commit, short fits, fingerprints, splits, scores.

`tests/recorded/values.py` says what is recorded and how to record it again. Where the processor and the versions are
those of the recording, bits must be equal. Elsewhere sums must agree to 0.1 %. In a training the roundings of other
processors grow: then the sum of absolute values of all weights of a fit must agree to 5 %. Signs of factors are free.
"""

import json

import pytest

from tests.recorded import values

RECORDED = json.loads(values.FILE.read_text()) if values.FILE.is_file() else {}


@pytest.mark.parametrize("group", values.GROUPS)
def test_numbers_are_those_of_the_recording(group):
    now, before = values.current(group), RECORDED[group]
    assert before.keys() <= now.keys()  # parts that came later have tests of their own
    exact = values.machine() == RECORDED["machine"]
    near = 0.15 if group == "scores" else 0.001
    if not exact and group in ("trained_neuroflow", "trained_synbrain"):
        _check_trained(now, before)
        return
    for name, value in before.items():
        if isinstance(value, str) or exact:
            assert now[name] == value, name
        else:
            assert now[name]["shape"] == value["shape"], name
            if not name.endswith(".factors"):
                assert abs(now[name]["sum"] - value["sum"]) <= near * value["size"] + 1e-6, name
            assert now[name]["size"] == pytest.approx(value["size"], rel=near, abs=1e-6), name


def _check_trained(now, before):
    """Compare fits on two processors: shapes of all arrays, and the size of all weights of a fit together."""
    assert {name: x["shape"] for name, x in now.items()} == {name: x["shape"] for name, x in before.items()}
    for start in ("few.weights.", "learned.weights."):
        sizes = [sum(x["size"] for name, x in fit.items() if name.startswith(start)) for fit in (now, before)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05), start


def test_a_changed_bit_is_seen():
    import numpy as np

    array = np.arange(6, dtype=np.float32)
    changed = array.copy()
    changed[2] = np.nextafter(changed[2], np.float32(9))
    assert values.summary(array) != values.summary(changed)
