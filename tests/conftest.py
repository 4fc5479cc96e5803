"""One thread a worker, and files that share trained models in one worker: `make test` has as many workers as cores."""

import pytest
import torch

torch.set_num_threads(1)

TOGETHER = (  # what these files fit and evaluate is kept in memory, once a process
    "test_evaluation.py",
    "test_evaluation_models.py",
    "test_report.py",
    "test_recorded.py",
    "test_estimator_files.py",
    "test_estimator_neuroflow.py",
    "test_estimator_synbrain.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.path.name
        if item.path.parent.name != "kernels":  # whose tests share nothing
            item.add_marker(pytest.mark.xdist_group("fitted" if name in TOGETHER else name))
