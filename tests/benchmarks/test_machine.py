"""Rates of the machine at hand."""

import torch

from benchmarks.machine import as_row, measured_machine


def test_rates_of_a_machine_are_measured():
    found = measured_machine(torch.device("cpu"), torch.float32)
    assert 1e8 < found.bandwidth < 1e13 and 1e8 < found.matmul < 1e16
    assert as_row(found)["exps"] is None and "measured in this run" in found.source
