"""Page faults of inference in a fresh process, which tell what its time cannot on a machine with other users."""

import json
import subprocess
import sys

import pytest
import torch

from veca.model import heap

SCRIPT = """
import json, resource, torch
from veca.model.block import Block
torch.set_num_threads(1)
block = Block(384, 6, 1024).eval()
x, ropes = torch.randn(1, 16 + 2304, 384), [(torch.ones(n, 32), torch.zeros(n, 32)) for n in (16, 2304)]
def faults():
    before, y = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, x
    with torch.no_grad():
        for _ in range(4):
            y = block(y, 16, *ropes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([faults() for _ in range(4)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="thresholds of glibc, faults as Linux counts them")
def test_a_fresh_process_faults_its_memory_in_once():
    """Four blocks of 2,304 patches: 20 MB of activations are 5,000 pages, and code takes 4,000 in the first pass.

    Freed memory that goes back to the system costs 14,000 to 34,000 pages in every pass.
    """
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, *later = json.loads(done.stdout)
    assert first < 16_000 and max(later) < 4_000, (first, later)


def test_only_inference_on_a_cpu_moves_the_threshold(monkeypatch):
    freed = []
    monkeypatch.setattr(heap, "_free_a_large_block", lambda: freed.append(1))
    heap.keep_freed_memory(torch.zeros(1))  # gradients are on
    with torch.no_grad():
        heap.keep_freed_memory(torch.zeros(1, device="meta"))
        assert not freed
        heap.keep_freed_memory(torch.zeros(1))
    assert freed == [1]
