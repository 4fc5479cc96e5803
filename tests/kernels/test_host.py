"""The path from a call to its launches, on CPU tensors with a Triton driver that runs nothing."""

import os

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.fake_driver import fake_driver
from tests.kernels.cases import Case, forward_backward

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter launches nothing")


@pytest.fixture
def driver():
    with fake_driver(compiles=False) as driver:
        yield driver


def test_the_fake_driver_refuses_a_binary_of_another_dtype(driver):
    forward_backward("triton", Case(dtype=torch.bfloat16))
    kernel = next(b for b in driver.binaries if b.src.fn.__name__ == "read_forward")
    arguments = next(x for x in driver.launches if x.kernel == "read_forward").arguments
    lse = kernel.src.fn.arg_names.index("lse")
    wrong = (*arguments[:lse], arguments[lse].half(), *arguments[lse + 1 :])
    with pytest.raises(AssertionError, match=r"argument lse \(\): torch.float16 for \*fp32"):
        kernel.run(1, 1, 1, 0, 0, (), None, None, None, *wrong)
    misaligned = torch.empty(arguments[lse].numel() + 1)[1:]
    wrong = (*arguments[:lse], misaligned, *arguments[lse + 1 :])
    with pytest.raises(AssertionError, match="a pointer that is not aligned"):
        kernel.run(1, 1, 1, 0, 0, (), None, None, None, *wrong)
