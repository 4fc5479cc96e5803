"""Tests of every voxel and region of a study, and how certain its noise ceiling is.

found = significance_of(study, encoded)
found.tests[0].fdr(0.05)  # voxels (V,) that the first row predicts, at a false discovery rate of 5 %
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data import BrainDataset, Split, VoxelSpace
from ..errors import BrainDataError
from ..metrics.ceilings import CeilingInterval, ceiling_interval
from ..metrics.significance import VoxelTest, num_orders, voxel_test
from .encoding import WHOLE, Encoded, Study

__all__ = ["LEVEL", "Significance", "ceiling_of", "exchangeable_blocks", "significance_of"]

LEVEL = 0.05
_ENOUGH = 1000  # orders of the images that blocks must allow
_NEEDED = 20  # orders without which no p can be below LEVEL


@dataclass(frozen=True)
class Significance:
    """Tests of a study.

    Attributes:
        tests: A test for each row of `Evaluation.encoded`, with arrays (V,), NaN in voxels that do not count. None for
            a row that is a mean of several fits, and where there are too few test images.
        blocks: What was permuted, in words.
        level: Level of the false discovery rate and of the family-wise error.
        ceiling: Intervals of the noise ceilings. None where they were published or are unknown.
    """

    tests: Sequence[VoxelTest | None]
    blocks: str
    level: float = LEVEL
    ceiling: CeilingInterval | None = None

    def rows(self, encoded: Sequence[Encoded], study: Study) -> list[dict[str, Any]]:
        """Numbers of significant voxels of each row that was tested, in all voxels and by region."""
        found = []
        for item, test in zip(encoded, self.tests, strict=True):
            if test is None:
                continue
            fdr, strict = test.fdr(self.level), test.max_statistic(self.level)
            counts = {"voxels": int(study.voxels.sum()), "fdr": int(fdr.sum()), "max": int(strict.sum())}
            regions = {
                name: {
                    "voxels": region.voxels,
                    "fdr": int(fdr[study.rois[name]].sum()),
                    "max": int(strict[study.rois[name]].sum()),
                    "mean_r": region.mean,
                    "p": region.p,
                    "p_max": region.p_max,
                }
                for name, region in test.regions.items()
            }
            found.append({"model": item.model, "features": item.features, **counts, "regions": regions})
        return found

    def to_json(self, encoded: Sequence[Encoded], study: Study) -> dict[str, Any]:
        ceiling = None
        if self.ceiling is not None:
            means = self.ceiling.means.items()
            ceiling = {name: [float(value), interval.low, interval.high] for name, (value, interval) in means}
        permutations = next((test.permutations for test in self.tests if test is not None), 0)
        told = {"permutations": permutations, "blocks": self.blocks, "level": self.level}
        return told | {"rows": self.rows(encoded, study), "ceiling": ceiling}

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays (V,) for voxels.npz: p, p_max and q with the number of the row, and the ends of the ceilings."""
        found: dict[str, np.ndarray] = {}
        for number, test in enumerate(self.tests):
            if test is not None:
                found |= {f"p_{number}": test.p, f"p_max_{number}": test.p_max, f"q_{number}": test.q}
        if self.ceiling is not None:
            found |= {"ceiling_low": self.ceiling.low, "ceiling_high": self.ceiling.high}
        return found


def significance_of(study: Study, encoded: Sequence[Encoded], ceiling: CeilingInterval | None = None) -> Significance:
    """Test the predictions of every row by permutations of the test images.

    Args:
        study: Responses to the test images.
        encoded: Rows with their predictions.
        ceiling: Intervals of the noise ceilings, kept beside the tests.
    """
    blocks, words = exchangeable_blocks(study)
    if num_orders(len(study.test), blocks) < _NEEDED:
        return Significance(
            [None] * len(encoded), f"nothing: {len(study.test)} test images are too few", LEVEL, ceiling
        )
    measured = study.measured[:, study.voxels]
    regions = {name: mask[study.voxels] for name, mask in study.rois.items()}
    tests = []
    for item in encoded:
        if item.predicted is None:
            tests.append(None)
            continue
        test = voxel_test(measured, item.predicted, study.resamples, study.seed, blocks, regions)
        wide = {name: _widened(getattr(test, name), study.voxels) for name in ("r", "p", "p_max")}
        tests.append(replace(test, **wide))
    return Significance(tests, words, LEVEL, ceiling)


def exchangeable_blocks(study: Study) -> tuple[np.ndarray | None, str]:
    """Blocks (n,) within which the test images are permuted, and the same in words.

    Blocks are runs if each test image was shown in one run only, and else sessions if each was shown in one session
    only. Images whose repeats lie in several sessions are permuted freely, because no session then has images of its
    own.
    """
    trials = study.test.subject.responses.trials
    known = {"runs": (trials.session, trials.run), "sessions": (trials.session,)}
    for name, columns in known.items():
        if any((column[rows] < 0).any() for column in columns for rows in study.test.trials):
            continue
        places = np.stack(columns, 1)
        shown = [np.unique(places[rows], axis=0) for rows in study.test.trials]
        if all(len(place) == 1 for place in shown):
            labels = np.unique(np.concatenate(shown), axis=0, return_inverse=True)[1].reshape(-1)
            if num_orders(len(labels), labels) >= _ENOUGH:
                return labels, f"test images within {labels.max() + 1} {name}"
    return None, "all test images freely: their repeats lie in several sessions, or sessions are not known"


def ceiling_of(dataset: BrainDataset, study: Study, split: Split | None = None) -> CeilingInterval | None:
    """Intervals of the noise ceilings of a study, from resampled train images; None where there are none.

    Args:
        dataset: The data set of the study.
        study: Responses of its subject.
        split: Split whose train trials the ceilings were estimated from. None is that of the study.
    """
    space, test = study.test.subject.space, study.test
    if study.ceiling is None or (isinstance(space, VoxelSpace) and space.ncsnr is not None):
        return None
    singles = dataset.pairs(test.subject.id, split or test.split, "train", "none", test.transform)
    names, rows = np.unique(singles.image_ids, return_inverse=True)
    groups = [np.flatnonzero(rows == number) for number in range(len(names))]
    repeats = [len(rows) for rows in test.trials]
    masks = {WHOLE: study.voxels, **study.rois}
    found = ceiling_interval(singles.array(), groups, repeats, masks, study.resamples, study.seed)
    if not np.array_equal(found.value, study.ceiling, equal_nan=True):
        raise BrainDataError("expected intervals of the noise ceiling of the study, got those of other trials")
    return found


def _widened(values: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Values of the voxels that count, in the places of all; elsewhere NaN."""
    out = np.full(len(voxels), np.nan)
    out[voxels] = values
    return out
