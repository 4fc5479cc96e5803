"""Simulated studies that several test files look at, made once a process."""

import functools

from brainmodels.simulated import simulate

made = functools.cache(simulate)
SUBJECTS = ("sim01", "sim02", "sim03")
OTHER_SCENES = [f"sim7:{index:06d}" for index in range(400)]


def parts(dataset, subject):
    """(images that the subject alone saw, shared images)."""
    split = dataset.split("shared")
    return sorted(split.ids("train", subject) | split.ids("val", subject)), sorted(split.test)
