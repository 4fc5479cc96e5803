"""The fold is the unfolded call, and everyone who cannot run says why."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import peers as registry
from benchmarks.checks import Buffers, Oracle, verify
from benchmarks.floors import AttentionCase
from benchmarks.peers import FAMILIES, Absent, Peer, fold, fold_candidates, peers
from benchmarks.rotation import refused_tables

CPU = torch.device("cpu")


def _inputs(batch, layout="token-major"):
    case = AttentionCase(batch, 24, 5, H=3, D=8, dtype="float64")
    return Buffers(case, "write", CPU, 1).get(layout)[0]


@pytest.mark.parametrize("layout", ["token-major", "head-major"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pieces", [1, 2, 6])
def test_fold_equals_unfolded(batch, pieces, layout):
    buffers = _inputs(batch, layout)
    whole = F.scaled_dot_product_attention(*buffers.inputs)
    folded = fold(F.scaled_dot_product_attention, pieces, *buffers.inputs)
    torch.testing.assert_close(folded, whole, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(out, buffers.inputs, buffers.grad) for out in (folded, whole)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-11, atol=1e-11)


def test_fold_is_a_view_of_token_major_queries():
    q, k, v = _inputs(3).inputs
    seen = []

    def attention(q, k, v):
        seen.append((q.data_ptr(), k.stride(0)))
        return F.scaled_dot_product_attention(q, k, v)

    fold(attention, 4, q, k, v)
    assert seen[0][0] == q.data_ptr()


def test_fold_refuses_pieces_that_do_not_divide():
    with pytest.raises(ValueError, match="expected the number of pieces to divide the 24 patches, got 5"):
        fold(F.scaled_dot_product_attention, 5, *_inputs(1).inputs)


def test_fold_candidates_fill_the_device_with_pieces_of_256():
    long = AttentionCase(1, 65536, 64)
    assert fold_candidates(long, 132) == [16, 32, 64]  # 12 blocks, 264 wanted: 22 rounds up to 32
    assert fold_candidates(AttentionCase(64, 4096, 64), 132) == []  # full without folding
    assert fold_candidates(AttentionCase(1, 196, 64), 132) == []  # pieces would be too small
    for pieces in fold_candidates(AttentionCase(1, 4096, 64), 132):
        assert 4096 % pieces == 0 and 4096 // pieces >= 256


@pytest.mark.parametrize("op", ["read", "write", "whole", "full"])
def test_everyone_present_computes_the_op_and_everyone_absent_says_why(op):
    _everyone_computes(AttentionCase(2, 70, 5, H=3, D=8, dtype="float32"), op)


@pytest.mark.parametrize("op", ["read", "write", "whole"])
def test_peers_rotate_before_they_attend(op):
    """Ours takes the angles itself and has no halves; everyone else turns q or k first."""
    _everyone_computes(AttentionCase(2, 70, 5, H=3, D=8, dtype="float32", tables="float32"), op)
    names = {p.name for p in peers(op, AttentionCase(1, 70, 5, tables="float32"), CPU) if isinstance(p, Peer)}
    assert names == {"veca-sdpa"} if op == "whole" else "sdpa-flash+rope" in names and "veca-sdpa" not in names


def test_tables_that_the_op_refuses_are_absent_with_its_reason(monkeypatch):
    monkeypatch.setattr(registry, "refused_tables", lambda case: "expected other angles")
    found = list(peers("whole", AttentionCase(1, 70, 5, tables="float16"), CPU, ["veca"]))
    assert [p.reason for p in found if p.name == "veca-sdpa"] == ["expected other angles"]


def test_tables_are_refused_in_the_words_of_the_op():
    assert refused_tables(AttentionCase(1, 70, 5, tables="float32")) == ""
    assert "float64" in refused_tables(AttentionCase(1, 70, 5, tables="float64"))


def _everyone_computes(case, op):
    buffers = Buffers(case, op, CPU, 1)
    oracle = Oracle(case, op, buffers)
    present = 0
    for peer in peers(op, case, CPU, layouts=("token-major", "head-major")):
        if isinstance(peer, Absent):
            assert peer.reason and peer.op == op
        else:
            check = verify(peer, oracle, buffers)
            assert check.status == "ok", (peer.label, check.message)
            present += 1
    assert present >= 1


def test_a_backend_that_cannot_run_is_named():
    reasons = {p.name: p.reason for p in peers("read", AttentionCase(1, 70, 5), CPU) if isinstance(p, Absent)}
    assert "cudnn" in reasons["sdpa-cudnn"]
    assert "CUDA" in reasons["xformers"]
    assert {"veca-triton", "sdpa-cudnn", "flex", "xformers", "chain-compiled"} <= set(reasons)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # torch says in warnings why it refuses
def test_backends_are_forced_not_suggested():
    """Dropout is beyond torch's fused CPU kernel: forced to it, the call raises instead of falling back."""
    flash = next(p for p in peers("read", AttentionCase(1, 70, 5), CPU, ["sdpa"]) if isinstance(p, Peer))
    assert flash.name == "sdpa-flash"
    x = torch.ones(1, 2, 3)
    F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    with flash.context(), pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)


def test_unknown_families_are_refused():
    with pytest.raises(ValueError, match=r"expected peer families of .* got flash3"):
        next(peers("read", AttentionCase(1, 70, 5), CPU, [*FAMILIES, "flash3"]))
