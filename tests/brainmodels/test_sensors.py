"""Regions of channels by name, bins of time, and the comparison of two sets of sensors."""

from dataclasses import replace

import numpy as np
import pytest

from brainmodels.data import SensorSpace
from brainmodels.data.sensors import REGIONS, binned, check_space, region_of, regions_of, time_slices
from brainmodels.errors import AxisError, BrainDataError, UnitsError
from brainmodels.layouts.eeg3d import EEG3D_CHANNELS

SPACE = SensorSpace(EEG3D_CHANNELS, 250.0, np.arange(250) / 250 - 0.2, unit="z")


def test_regions_of_eeg3d():
    regions = regions_of(EEG3D_CHANNELS)
    assert {name: len(channels) for name, channels in regions.items()} == {
        "frontal": 14,
        "central": 21,
        "temporal": 8,
        "parietal": 9,
        "occipital": 12,
    }
    assert list(regions) == list(REGIONS)
    assert sorted(sum(regions.values(), ())) == sorted(EEG3D_CHANNELS)
    assert regions["temporal"] == ("FT7", "FT8", "T7", "T8", "M1", "TP7", "TP8", "M2")
    assert regions["occipital"][-2:] == ("O2", "CB2")


def test_names_in_any_case_keep_their_spelling():
    assert regions_of(["Fp1", "POz", "Cz", "fc5"]) == {
        "frontal": ("Fp1",),
        "central": ("Cz", "fc5"),
        "occipital": ("POz",),
    }
    assert region_of("Oz") == "occipital" and region_of("P10") == "parietal" and region_of(" TP9 ") == "temporal"


@pytest.mark.parametrize("name", ["EEG001", "A1", "HEOG", "F", "Status", "C5h", "X3"])
def test_a_channel_of_no_region_is_named(name):
    with pytest.raises(BrainDataError, match=f"got '{name}'"):
        regions_of(["O1", name])


def test_bins_are_means_and_the_last_one_may_be_shorter():
    values = np.random.default_rng(0).normal(size=(3, 2, 23))
    found = binned(values, sfreq=100.0, seconds=0.05)
    assert found.shape == (3, 2, 5)
    for place, (start, stop) in enumerate([(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]):
        np.testing.assert_allclose(found[:, :, place], values[:, :, start:stop].mean(2))
    assert binned(values.astype(np.float32), 100.0, 0.05).dtype == np.float32


def test_bins_of_the_two_streams():
    assert len(time_slices(250, 250.0, 0.04)) == 25 and len(time_slices(600, 100.0, 0.2)) == 30
    assert time_slices(250, 250.0, 0.04)[-1] == slice(240, 250)


def test_bins_that_are_too_short_or_of_no_trials():
    with pytest.raises(BrainDataError, match="expected slices of one sample or more"):
        time_slices(100, 100.0, 0.001)
    with pytest.raises(AxisError, match="expected trials"):
        binned(np.zeros((3, 20)), 100.0, 0.05)


def test_equal_sensors_pass():
    check_space(SPACE, replace(SPACE, times=SPACE.times + 1e-9), "static")


def test_the_first_channel_that_differs_is_named():
    names = list(EEG3D_CHANNELS)
    names[5], names[9] = names[9], names[5]
    with pytest.raises(AxisError, match="expected channel F7 of static at position 5 as in the fit, got FZ"):
        check_space(SPACE, replace(SPACE, ch_names=tuple(names)), "static")


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"ch_names": EEG3D_CHANNELS[:60]}, AxisError, "expected 64 channels of dynamic as in the fit, got 60"),
        ({"times": SPACE.times[:240]}, AxisError, "expected 250 times of dynamic as in the fit, got 240"),
        ({"times": SPACE.times + 0.2}, AxisError, "from -0.2 s as in the fit, got 0 s"),
        (
            {"sfreq": 200.0, "times": np.arange(250) / 200 - 0.2},
            AxisError,
            "expected 250 Hz of dynamic as in the fit, got 200 Hz",
        ),
        ({"unit": "V"}, UnitsError, "expected dynamic in z as in the fit, got V"),
    ],
)
def test_other_sensors_say_what_differs(change, error, message):
    with pytest.raises(error, match=message):
        check_space(SPACE, replace(SPACE, **change), "dynamic")
