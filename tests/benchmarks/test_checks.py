"""The check lets right answers pass in every form, and nothing else."""

import dataclasses
import functools

import pytest
import torch
from torch.testing import assert_close
from veca_kernels import core_periphery_attention, core_periphery_attention_qkvpacked

from benchmarks.checks import Buffers, Oracle, verify
from benchmarks.floors import AttentionCase
from benchmarks.peers import Peer, chain
from benchmarks.rotation import angle_tables, rotate

CPU = torch.device("cpu")
CASE = AttentionCase(2, 70, 5, H=3, D=8, dtype="float32")


def _verify(call, op="read", case=CASE, layout="token-major", **options):
    buffers = Buffers(case, op, CPU, 1)
    return verify(Peer("candidate", "test", op, layout, call, **options), Oracle(case, op, buffers), buffers)


def _break_at(where, change):
    """The chain with one value of its output changed."""

    def call(q, k, v):
        out = chain(q, k, v).clone()
        out[where] = change(out[where])
        return out

    return call


def test_layouts_hold_the_same_values():
    buffers = Buffers(CASE, "whole", CPU, 2)
    for index in range(2):
        token, head, packed = (buffers.get(x)[index] for x in ("token-major", "head-major", "packed"))
        assert_close(head.inputs, token.inputs, rtol=0, atol=0)
        assert_close(packed.inputs[0].unbind(2), tuple(x.transpose(1, 2) for x in token.inputs), rtol=0, atol=0)
        assert_close(packed.grad.transpose(1, 2), token.grad, rtol=0, atol=0)
        assert token.inputs[0].transpose(1, 2).is_contiguous() and head.inputs[0].is_contiguous()


@pytest.mark.parametrize("layout", ["token-major", "head-major", "packed"])
def test_sets_are_copies_of_their_own(layout):
    first, second = Buffers(CASE, "whole", CPU, 2).get(layout)
    for x, y in zip((*first.inputs, first.grad), (*second.inputs, second.grad), strict=True):
        assert_close(x, y, rtol=0, atol=0)
        assert x.data_ptr() != y.data_ptr() and x.stride() == y.stride()
        assert y.is_leaf and x.requires_grad == y.requires_grad


def test_whole_is_the_dense_definition():
    """The oracle composes halves, since the T x T mask would not fit: it must be the same function."""
    whole = functools.partial(core_periphery_attention, num_cores=CASE.C, impl="reference")
    assert _verify(whole, "whole").status == "ok"
    packed = functools.partial(core_periphery_attention_qkvpacked, num_cores=CASE.C, impl="reference")
    assert _verify(packed, "whole", layout="packed").status == "ok"


@pytest.mark.parametrize("tables", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["token-major", "head-major"])
def test_the_rotated_oracle_is_the_rotated_definition(layout, tables):
    """The dense reference with patch_rope, through tables as exact as those of the contender."""
    case = dataclasses.replace(CASE, tables=tables)
    cos, sin = (table.float() for table in angle_tables(case.P, case.D, tables, CPU))
    whole = functools.partial(core_periphery_attention, num_cores=case.C, impl="reference", patch_rope=(cos, sin))
    assert _verify(whole, "whole", case, layout).status == "ok"
    backwards = functools.partial(whole, patch_rope=(cos, -sin))
    assert _verify(backwards, "whole", case, layout).status == "wrong"
    assert _verify(functools.partial(whole, patch_rope=None), "whole", case, layout).status == "wrong"
    for op, turned in (
        ("read", lambda q, k, v: chain(q, rotate(k, cos, sin), v)),
        ("write", lambda q, k, v: chain(rotate(q, cos, sin), k, v)),
    ):
        assert _verify(turned, op, case, layout).status == "ok"
        assert _verify(chain, op, case, layout).status == "wrong"


def test_bf16_is_judged_by_what_bf16_can_do():
    case = AttentionCase(1, 70, 5, H=3, D=8)
    assert _verify(chain, case=case).status == "ok"
    coarse = _verify(lambda q, k, v: chain(q, k, v) * 1.03, case=case)
    assert coarse.status == "wrong" and coarse.share > 1


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda q, k, v: chain(q * 1.001, k, v), id="scale"),
        pytest.param(lambda q, k, v: chain(q, k[:, :, :-1], v[:, :, :-1]), id="one key lost"),
        pytest.param(lambda q, k, v: chain(q, k, v.detach()) + 0 * v.sum(), id="gradient lost"),
        pytest.param(_break_at((1, 2, 4, 0), lambda x: x + 1e-3), id="one value of the last head"),
        pytest.param(_break_at((0, 0, 0, 0), lambda x: x * float("nan")), id="NaN"),
    ],
)
def test_wrong_answers_are_wrong(call):
    check = _verify(call)
    assert check.status == "wrong"
    assert not check.share <= 1
    assert "of image" in check.message


def test_what_a_peer_raises_is_its_reason():
    def refuse(q, k, v):
        raise RuntimeError("expected a longer key, got 70")

    check = _verify(refuse)
    assert (check.status, check.message) == ("error", "RuntimeError: expected a longer key, got 70")


def test_forward_only_peers_are_checked_forward():
    def forward_only(q, k, v):
        return chain(q, k, v).detach()

    assert _verify(forward_only, differentiable=False).status == "ok"
    assert _verify(forward_only).status == "error"


def test_full_attention_is_compared_by_rows():
    case = AttentionCase(1, 300, 5, H=2, D=8, dtype="float32")  # more rows than are compared
    assert _verify(chain, "full", case).status == "ok"
    assert _verify(_break_at((0, 0, 255, 0), lambda x: x + 1), "full", case).status == "wrong"
    assert _verify(lambda q, k, v: chain(q, k[:, :, :-1], v[:, :, :-1]), "full", case).status == "wrong"
