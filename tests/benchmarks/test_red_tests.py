"""What a failed test concerns: its dtype, its rotation, its part of the suite, and everything where nobody knows."""

import pytest

from benchmarks.red_tests import concerns, mark_red

PLAIN = {"dtype": "bfloat16", "B": 1, "P": 4096, "C": 64, "H": 12, "D": 64, "tables": None, "mode": "graph"}
PLAIN |= {"ours": "veca-triton"}
ROTATED, EAGER, FP16 = PLAIN | {"tables": "float32"}, PLAIN | {"mode": "eager"}, PLAIN | {"dtype": "float16"}
HUGE = PLAIN | {"B": 64, "P": 65536}
MODEL = {"kind": "backbone", "dtype": "bfloat16", "mode": "eager", "model": "veca_base_patch16"}
COMPILED = MODEL | {"mode": "compiled"}
ROWS = {"plain": PLAIN, "rotated": ROTATED, "eager": EAGER, "fp16": FP16, "huge": HUGE, "model": MODEL}
ROWS |= {"compiled": COMPILED}
GPU = "tests/kernels/test_gpu.py::"


@pytest.mark.parametrize(
    ("test", "concerned"),
    [
        ("test_against_fp64[P65-C8-D32-float32-rope_shared-torch.bfloat16]", "rotated model compiled"),
        ("test_against_fp64[P65-C8-D32-float32-torch.bfloat16]", "plain rotated eager huge model compiled"),
        ("test_against_fp64[P65-C8-D32-float32-torch.float16]", "fp16"),
        ("test_against_fp64[P65-C8-D32-float32-torch.float32]", ""),
        ("test_other_entries_against_fp64[P65-C8-D32-float32-sdpa-torch.bfloat16]", ""),
        ("test_one_hundred_runs_give_the_same_bits_beside_other_work[P4097]", " ".join(ROWS)),
        ("test_more_than_two_to_the_31_elements", "huge"),
        ("test_cuda_graph_replay_with_new_inputs_and_budgets", "plain rotated fp16 huge"),
        ("test_compile_fullgraph[True]", "compiled"),
        ("test_peak_memory_is_the_tensors_and_32_mb", ""),
    ],
)
def test_kernel_tests(test, concerned):
    assert {name for name, row in ROWS.items() if concerns(GPU + test, row)} == set(concerned.split())


def test_other_tests():
    assert {name for name, row in ROWS.items() if concerns("tests/veca/test_streaming.py::test_x", row)} == {
        "model",
        "compiled",
    }
    assert all(concerns("tests/other/test_new.py::test_x", row) for row in ROWS.values())


def test_rows_name_their_tests():
    rope = GPU + "test_against_fp64[rope_shared-torch.bfloat16]"
    plain, rotated = mark_red([PLAIN, ROTATED], [rope])
    assert (plain["red"], rotated["red"]) == ([], [rope]) and "red" not in PLAIN
