"""The path from a call to its launches, on CPU tensors with a Triton driver that runs nothing.

The driver holds every argument of every launch against the binary, so a plan that reuses a wrong one fails here.
"""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

import triton
from veca_kernels import core_periphery_attention, core_periphery_attention_qkvpacked, registration
from veca_kernels.options import Options
from veca_kernels.triton import launch, ops, plan

from benchmarks import host_path
from benchmarks.fake_driver import fake_driver
from benchmarks.record import read_rows
from tests.kernels.cases import (
    GRADS,
    LAYOUTS,
    OPTIONS,
    SCALE,
    Case,
    forward_backward,
    joint_options,
    make_grad,
    make_options,
    make_qkv,
)
from tests.kernels.test_api import BAD_OPTIONS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter launches nothing")


@pytest.fixture
def driver():
    with fake_driver(compiles=False) as driver:
        yield driver


def test_the_fake_driver_refuses_a_binary_of_another_dtype(driver):
    forward_backward("triton", Case(dtype=torch.bfloat16))
    first = next(x for x in driver.launches if x.kernel == "sum_partials" or "forward" in x.kernel)
    kernel = next(b for b in driver.binaries if b.src.fn.__name__ == first.kernel)
    lse = kernel.src.fn.arg_names.index("lse")
    memory = first.arguments[lse]
    for x, message in [(memory.half(), r"lse \(\): torch.float16 for \*fp32"), (torch.empty(9)[1:], "not aligned")]:
        wrong = (*first.arguments[:lse], x, *first.arguments[lse + 1 :])
        with pytest.raises(AssertionError, match=message):
            kernel.run(1, 1, 1, 0, 0, (), None, None, None, *wrong)


def planned(launch):
    """Whether a launch came from a plan, which passes addresses."""
    return not any(isinstance(y, Tensor) for x in launch.arguments for y in (x if isinstance(x, tuple) else (x,)))


def named_launches(driver, body, *arguments):
    """(results, launches) of one call. Addresses are told by the tensor they are in, scratch by its first use."""
    start = len(driver.launches)
    results = plan.run(body, launch.JOINT, *arguments)
    outputs = (results,) if isinstance(results, Tensor) else results
    owners = [x for x in (*tree_leaves(arguments), *outputs) if isinstance(x, Tensor) and x.numel()]
    scratch: list[int] = []

    def name(kind, x):
        if isinstance(kind, tuple):
            return tuple(name(*pair) for pair in zip(kind, x, strict=True))
        if not kind.startswith("*"):
            return x
        address = x.data_ptr() if isinstance(x, Tensor) else x
        for number, owner in enumerate(owners):
            memory = owner.untyped_storage()
            if memory.data_ptr() <= address < memory.data_ptr() + memory.nbytes():
                return number, address - memory.data_ptr()
        if address not in scratch:
            scratch.append(address)
        return "scratch", scratch.index(address)

    launches = [
        (x.kernel, x.programs, tuple(name(*pair) for pair in zip(x.signature, x.arguments, strict=True)))
        for x in driver.launches[start:]
    ]
    return results, launches


def body_arguments(case):
    """The arguments of the forward's body for a case, of fresh tensors."""
    (q, k, v), (leaf, *_) = make_qkv(case)
    options = make_options(case)
    tensors = (
        (leaf.detach(), None, None) if case.layout == "packed" else (x.detach().transpose(1, 2) for x in (q, k, v))
    )
    return (*tensors, joint_options(case, options))


PLANNED = [x for x in (*OPTIONS, *LAYOUTS, Case(P=0), Case(P=5, C=0), Case(P=900, C=16, B=1)) if x.layout != "sliced"]


@pytest.mark.parametrize("case", [*PLANNED, *(x.at(dtype=torch.bfloat16, D=64, B=1) for x in PLANNED[-4:])], ids=str)
def test_a_plan_launches_what_the_long_way_launches(case, driver):
    """Forward and backward: same kernels, grids, numbers, and the same places in the same tensors."""
    seen = []
    keep = []  # fresh tensors lie elsewhere
    for _ in range(4):
        arguments = body_arguments(case)
        (out, *saved), forward = named_launches(driver, ops.core_periphery_forward, *arguments)
        grad = make_grad(case, out.transpose(1, 2).shape).to(case.dtype).transpose(1, 2).contiguous()
        core_rows = saved[0] if len(saved) == 2 else out[:, : case.C].clone()
        backward = (grad, *arguments[:3], core_rows, saved[-1], *arguments[3:], case.layout == "packed")
        seen.append((forward, named_launches(driver, ops.core_periphery_backward, *backward)[1]))
        keep.append((arguments, out, backward))
    assert seen[1:] == seen[:1] * 3
    assert planned(driver.launches[-1])


def test_aligned_and_unaligned_pointers_get_binaries_of_their_own(driver):
    numbers = 110 * 3 * 2 * 32
    memory = torch.randn(1 + numbers)
    turns = [(0, False, 2), (0, False, 2), (0, True, 2), (1, False, 4), (0, True, 4), (1, False, 4)]
    for offset, by_plan, binaries in turns:
        qkv = memory[offset : offset + numbers].view(1, 110, 3, 2, 32).requires_grad_()
        core_periphery_attention_qkvpacked(qkv, 10, impl="triton").sum().backward()
        assert planned(driver.launches[-1]) == by_plan
        assert len(driver.binaries) == binaries


@contextlib.contextmanager
def precision(value):
    """torch's switch for fp32 products; pytest's monkeypatch cannot undo it."""
    saved, torch.backends.cuda.matmul.fp32_precision = torch.backends.cuda.matmul.fp32_precision, value
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = saved


def test_switches_of_the_compiler_have_plans_of_their_own(driver, monkeypatch):
    """torch's tf32 switch counts for fp32 only; Triton's own switches count always."""

    def attend(dtype=torch.float32):
        core_periphery_attention_qkvpacked(torch.randn(1, 50, 3, 1, 16, dtype=dtype), 8, impl="triton")
        return planned(driver.launches[-1])

    assert [attend() for _ in range(4)] == [False, False, True, True]
    with precision("tf32"):
        assert [attend() for _ in range(4)] == [False, False, True, True]
        assert [attend(torch.float16) for _ in range(4)] == [False, False, True, True]
    assert attend() and attend(torch.float16)
    monkeypatch.setattr(triton.knobs.runtime, "debug", True)
    assert [attend() for _ in range(4)] == [False, False, True, True]


def test_sizes_budgets_and_strides_share_binaries(driver):
    """Neither the long way nor plans compile for another size, budget, layout or number of heads."""
    case = Case(B=1, H=3, P=2000, C=33, D=64, dtype=torch.bfloat16)
    for _ in range(3):
        forward_backward("triton", case)
    binaries = len(driver.binaries)
    for change in (dict(P=2001), dict(P=3333), dict(C=64), dict(H=5), dict(active=1), dict(active=16)):
        for _ in range(3):
            forward_backward("triton", case.at(**change))
        assert planned(driver.launches[-1])
        assert len(driver.binaries) == binaries
    for change in (dict(active=(16,)), dict(lengths=(5,)), dict(rope="shared"), dict(dtype=torch.float16)):
        for _ in range(3):
            forward_backward("triton", case.at(**change))
        assert len(driver.binaries) > binaries
        binaries = len(driver.binaries)


def test_numbers_of_launches(driver):
    """One each way, and one more where the read is in splits."""
    long, short = (torch.randn(1, 64 + n, 3, 12, 64, dtype=torch.bfloat16) for n in (4096, 100))
    for qkv, launches in ((long, 4), (short, 2)):
        for _ in range(4):
            start = len(driver.launches)
            core_periphery_attention_qkvpacked(qkv.requires_grad_(), 64, impl="triton").sum().backward()
            assert len(driver.launches) - start == launches


def test_views_of_one_memory_are_told_apart(driver):
    """The dispatcher hands over q, k and v as views of one memory; the same tensor three times leaves no plan."""
    qkv = torch.randn(1, 40, 3, 2, 32)
    x = torch.randn(1, 40, 2, 32)
    options = Options(8, 8, None, None, SCALE, core_self=True, patch_self=False)
    for q, k, v in (qkv.unbind(2), qkv.flip(2).unbind(2), (x, x, x), qkv.unbind(2)):
        for _ in range(3):
            launches = named_launches(driver, ops.core_periphery_forward, q, k, v, options)[1]
        assert [launches[0][2][i][0][1] for i in range(3)] == [y.storage_offset() * 4 for y in (q, k, v)]


def test_gradients_of_any_layout_and_repeated_backward(driver):
    for case in GRADS:
        for _ in range(3):
            forward_backward("triton", case)
        assert planned(driver.launches[-1])


def test_remembered_calls_do_not_hide_errors(driver):
    qkv = torch.randn(2, 12, 3, 3, 16)
    for _ in range(3):
        core_periphery_attention_qkvpacked(qkv, 4, impl="triton")
        core_periphery_attention_qkvpacked(qkv, 1, core_self=True, impl="triton")
    for options, error, message in BAD_OPTIONS:
        with pytest.raises(error, match=message):
            core_periphery_attention_qkvpacked(qkv, **{"num_cores": 4, "impl": "triton"} | options)
        with pytest.raises(error, match=message):
            core_periphery_attention(*qkv.transpose(1, 3).unbind(2), **{"num_cores": 4, "impl": "triton"} | options)
    with pytest.raises(ValueError, match="contiguous last dimension"):
        core_periphery_attention_qkvpacked(qkv.transpose(1, 4).contiguous().transpose(1, 4), 4, impl="triton")


def test_many_threads_and_a_bounded_number_of_plans(driver, monkeypatch):
    """Every thread's launches point into its own tensors, while plans come and go."""
    monkeypatch.setattr(plan, "_slot", plan.functools.lru_cache(8)(plan._slot.__wrapped__))
    launches: dict[int, list] = {}

    class PerThread(list):
        def append(self, launch):
            launches.setdefault(threading.get_ident(), []).append(launch)

    driver.launches = PerThread()

    def work(seed: int) -> int:
        for turn in range(60):
            patches = 20 + (seed + turn // 3) % 12
            qkv = torch.randn(1, 8 + patches, 3, 2, 32)
            mine = launches.setdefault(threading.get_ident(), [])
            mine.clear()
            with torch.no_grad():
                out = core_periphery_attention_qkvpacked(qkv, 8, impl="triton")
            assert out.shape == (1, 8 + patches, 2, 32)
            q = mine[0].arguments[0][0]
            assert (q.data_ptr() if isinstance(q, Tensor) else q) == qkv.data_ptr()
            assert len(mine) == 1
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == list(range(16))
    assert plan._slot.cache_info().currsize <= 8


def test_launch_hooks_see_launches_of_plans():
    """What Triton's profilers attach to: real binaries here."""
    seen = []
    hook = lambda metadata: seen.append(metadata.get()["name"])  # noqa: E731
    with fake_driver() as driver, torch.no_grad():
        qkv = torch.randn(1, 50, 3, 1, 16, dtype=torch.float16)
        for _ in range(3):
            core_periphery_attention_qkvpacked(qkv, 8, impl="triton")
        triton.knobs.runtime.launch_enter_hook.add(hook)
        try:
            core_periphery_attention_qkvpacked(qkv, 8, impl="triton")
        finally:
            triton.knobs.runtime.launch_enter_hook.remove(hook)
        assert planned(driver.launches[-1])
        assert seen == [x.kernel for x in driver.launches[-len(seen) :]] != []


def test_another_current_device_is_switched(driver, monkeypatch):
    entered = []

    class Device:
        def __init__(self, index):
            entered.append(index)

        __enter__ = __exit__ = lambda self, *_: None

    monkeypatch.setattr(torch.cuda, "device", Device)
    qkv = torch.randn(1, 50, 3, 1, 16)
    for _ in range(3):
        core_periphery_attention_qkvpacked(qkv, 8, impl="triton")
    assert entered == []
    monkeypatch.setattr(driver, "get_current_device", lambda: 3)
    core_periphery_attention_qkvpacked(qkv, 8, impl="triton")
    assert entered == [0]


def test_who_watches_the_dispatcher_sees_the_op(driver):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    seen: list[str] = []
    qkv = torch.randn(1, 50, 3, 1, 16, requires_grad=True)
    with Watch():
        core_periphery_attention_qkvpacked(qkv, 8, impl="triton").sum().backward()
    assert [x for x in seen if x.startswith("veca")] == [
        "veca_kernels.core_periphery_forward.default",
        "veca_kernels.core_periphery_backward.default",
    ]
    with torch.profiler.profile() as profile:
        core_periphery_attention_qkvpacked(qkv, 8, impl="triton")
    assert "veca_kernels::core_periphery_forward" in [event.key for event in profile.key_averages()]


def test_transforms_compilers_and_second_derivatives(driver):
    qkv = torch.randn(3, 1, 50, 3, 1, 16)
    attend = lambda x: core_periphery_attention_qkvpacked(x, 8, impl="triton").sum()  # noqa: E731
    assert torch.func.vmap(torch.func.grad(attend))(qkv).shape == qkv.shape
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    leaf = qkv[0].clone().requires_grad_()
    for _ in range(3):
        compiled(leaf).backward()
    assert planned(driver.launches[-1])
    (grad,) = torch.autograd.grad(attend(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        grad.sum().backward()


def test_autocast_casts_before_the_plan_is_chosen(driver):
    qkv = torch.randn(1, 50, 3, 1, 16, requires_grad=True)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            out = core_periphery_attention_qkvpacked(qkv, 8, impl="triton")
        assert out.dtype == torch.bfloat16
        out.sum().backward()
    assert planned(driver.launches[-1]) and qkv.grad.dtype == torch.float32
    assert core_periphery_attention_qkvpacked(qkv, 8, impl="triton").dtype == torch.float32


@pytest.mark.parametrize("lengths", [None, (30,)])
def test_the_halves_have_plans(driver, lengths):
    q, k, v = (torch.randn(1, n, 2, 32, requires_grad=True) for n in (8, 40, 40))
    counts = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    for turn in range(4):
        sum(x.sum() for x in registration.read(q, k, v, counts, SCALE)).backward()
        assert planned(driver.launches[-1]) == (turn > 1)
        registration.write(k, q, q.detach() + 1, 8, SCALE).sum().backward()
    assert planned(driver.launches[-1])


def test_the_benchmark_prints_and_keeps_its_rows(tmp_path, capsys):
    assert host_path.main(["--runs", "2", "--calls", "3", "--out", str(tmp_path / "rows.jsonl")]) == 0
    rows = {row["part"]: row for row in read_rows(tmp_path / "rows.jsonl")}
    assert set(host_path.TARGETS) < set(rows)
    assert all(0 < row["min us"] <= row["median us"] and row["commit"] for row in rows.values())
    assert rows["forward"]["min us"] < rows["  the same without a plan"]["min us"]
    assert "| forward + backward |" in capsys.readouterr().out
