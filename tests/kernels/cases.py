"""One way to build a case, one way to judge it: every implementation is held against the reference in fp64."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor
from veca_kernels import core_periphery_attention, core_periphery_attention_qkvpacked, registration
from veca_kernels.masks import allowed_pairs, masked_softmax, pad_rotation, rotate_pairs
from veca_kernels.options import Options

SCALE = 0.37  # never D ** -0.5: a scale applied twice or not at all must show

# dtype: (max error / max |reference|, rms(error) / rms(reference)), both against the reference in fp64. Where dense
# attention with every step in that dtype errs by more than half as much, twice its error is the bound: cancellation.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2 * torch.finfo(torch.float16).eps, 0.005),
    torch.bfloat16: (2 * torch.finfo(torch.bfloat16).eps, 0.005),
}


@dataclass(frozen=True)
class Case:
    """A call of the op. Integers B, H, P, C, D; the rest as in `core_periphery_attention`, by name where a tensor."""

    P: int = 65
    C: int = 8
    D: int = 32
    B: int = 2
    H: int = 2
    dtype: torch.dtype = torch.float32
    layout: str = "head_major"
    grad_layout: str = "contiguous"
    active: int | tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    rope: str | None = None
    core_self: bool = True
    patch_self: bool = False
    offset: float = 0.0  # added to v: exposes a delta that is rounded before it cancels
    scale: float = SCALE
    tables: torch.dtype = torch.float32  # of the rotation
    gain: float = 1.0  # multiplies q and k: scores of hundreds overflow where the maximum is not subtracted

    def __str__(self) -> str:
        words = [f"P{self.P}-C{self.C}-D{self.D}", str(self.dtype).removeprefix("torch.")]
        words += [w for w in (self.layout, self.grad_layout) if w not in ("head_major", "contiguous")]
        words += [f"active{self.active}"] * (self.active is not None)
        words += [f"lengths{self.lengths}"] * (self.lengths is not None)
        words += [f"rope_{self.rope}"] * (self.rope is not None)
        words += [f"offset{self.offset:g}"] * bool(self.offset) + [f"gain{self.gain:g}"] * (self.gain != 1)
        words += [f"scale{self.scale:g}"] * (self.scale != SCALE) + ["half_tables"] * (self.tables == torch.float16)
        words += ["no_core_self"] * (not self.core_self) + ["patch_self"] * self.patch_self
        return "-".join(words).replace(" ", "")

    def at(self, **changes: object) -> "Case":
        return replace(self, **changes)


def make_qkv(case: Case, device: str = "cpu", seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """(q, k, v as (B, H, T, D) in the layout of the case, leaf tensors that own the memory)."""
    generator = torch.Generator().manual_seed(seed)
    B, H, T, D = case.B, case.H, case.C + case.P, case.D

    def draw(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(device=device, dtype=case.dtype).requires_grad_()

    if case.layout == "packed":
        leaf = draw(B, T, 3, H, D)
        return [x.transpose(1, 2) for x in leaf.unbind(2)], [leaf]
    if case.layout == "head_major":
        leaves = [draw(B, H, T, D) for _ in range(3)]
        views = list(leaves)
    elif case.layout == "token_major":
        leaves = [draw(B, T, H, D) for _ in range(3)]
        views = [x.transpose(1, 2) for x in leaves]
    elif case.layout == "sliced":  # strides that are no multiple of 8, an odd storage offset
        leaves = [draw(B, H + 1, T + 3, D + 5) for _ in range(3)]
        views = [x[:, 1:, 2:-1, 3 : 3 + D] for x in leaves]
    elif case.layout == "expanded":  # one head for all: stride 0
        leaves = [draw(B, 1, T, D) for _ in range(3)]
        views = [x.expand(B, H, T, D) for x in leaves]
    elif case.layout == "mixed":  # three tensors, three layouts
        leaves = [draw(B, H, T, D), draw(T, H, B, D), draw(H, B, T, 2 * D)]
        views = [leaves[0], leaves[1].permute(2, 1, 0, 3), leaves[2].transpose(0, 1)[..., :D]]
    else:
        raise ValueError(f"unknown layout {case.layout}")
    return views, leaves


def make_grad(case: Case, shape: torch.Size, device: str = "cpu") -> Tensor:
    """An incoming gradient of that shape (B, H, T, D) in the layout of the case."""
    generator = torch.Generator().manual_seed(7)
    B, H, T, D = shape
    if case.grad_layout == "contiguous":
        grad = torch.randn(B, H, T, D, generator=generator)
    elif case.grad_layout == "stride0":  # what .sum() sends
        grad = torch.randn(1, 1, 1, 1, generator=generator).expand(B, H, T, D)
    elif case.grad_layout == "stride0_tokens":  # what .mean over tokens sends
        grad = torch.randn(B, H, 1, D, generator=generator).expand(B, H, T, D)
    elif case.grad_layout == "transposed":  # last stride is not 1
        grad = torch.randn(B, H, D, T, generator=generator).transpose(2, 3)
    elif case.grad_layout == "token_major":
        grad = torch.randn(B, T, H, D, generator=generator).transpose(1, 2)
    else:
        raise ValueError(f"unknown gradient layout {case.grad_layout}")
    return grad.to(device=device, dtype=case.dtype)


def make_options(case: Case, device: str = "cpu") -> dict:
    """The keywords of the public function."""
    options = dict(scale=case.scale, core_self=case.core_self, patch_self=case.patch_self)
    counts = lambda x: torch.tensor(x, dtype=torch.int32, device=device)  # noqa: E731
    options["active_cores"] = counts(case.active) if isinstance(case.active, tuple) else case.active
    options["patch_lengths"] = None if case.lengths is None else counts(case.lengths)
    if case.rope is not None:
        generator = torch.Generator().manual_seed(3)
        shape = (case.P, case.D // 2) if case.rope == "shared" else (case.B, case.P, case.D // 2)
        angles = 6 * torch.rand(shape, generator=generator)
        options["patch_rope"] = tuple(x.to(device, case.tables) for x in (angles.cos(), angles.sin()))
    return options


def run(impl: str, case: Case, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """One forward. "ops" calls the registered ops. "dense" takes every step in the dtype of the inputs."""
    if impl == "packed_triton":
        return core_periphery_attention_qkvpacked(
            torch.stack([x.transpose(1, 2) for x in (q, k, v)], 2), case.C, impl="triton", **options
        ).transpose(1, 2)
    if impl == "dense":
        record = joint_options(case, options)
        if record.patch_rope is not None:
            q, k = (rotate_pairs(x, *pad_rotation(*record.patch_rope, case.C)) for x in (q, k))
        mask = allowed_pairs(record, case.P, q.device)[:, None]
        return masked_softmax(q @ k.transpose(-2, -1) * case.scale, mask) @ v
    if impl != "ops":
        return core_periphery_attention(q, k, v, case.C, impl=impl, **options)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return registration.core_periphery_attention(q, k, v, joint_options(case, options)).transpose(1, 2)


def joint_options(case: Case, options: dict) -> Options:
    """The record behind the keywords of the public function, filled in."""
    active = case.C if options["active_cores"] is None else options["active_cores"]
    lengths, rope = options["patch_lengths"], options.get("patch_rope")
    return Options(case.C, active, lengths, rope, options["scale"], case.core_self, case.patch_self)


def forward_backward(impl: str, case: Case, device: str = "cpu", dtype: torch.dtype | None = None) -> list[Tensor]:
    """[output, gradients of the leaves] of a case; `dtype` computes on the same values in another precision."""
    views, leaves = make_qkv(case, device)
    if case.offset:
        views[2] = views[2] + case.offset
    if case.gain != 1:
        views[:2] = [x * case.gain for x in views[:2]]
    if dtype is not None:
        views = [x.to(dtype) for x in views]
    options = make_options(case, device)
    if dtype is not None and case.rope is not None:
        options["patch_rope"] = tuple(x.float() for x in options["patch_rope"])
    out = run(impl, case, *views, options)
    grad = make_grad(case, out.shape, device).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close(results: list[Tensor], case: Case, device: str = "cpu", slack: float = 1.0) -> None:
    """Hold results of `forward_backward` against the reference in fp64, pointwise and in the mean square."""
    truth = forward_backward("reference", case, device, torch.float64)
    yardstick = forward_backward("dense", case, device)
    bounds = TOLERANCES[case.dtype]
    for name, x, ref, same in zip(["out", "dq", "dk", "dv"], results, truth, yardstick, strict=False):
        assert x.shape == ref.shape
        assert x.dtype == case.dtype
        if x.numel() == 0:
            continue
        assert torch.isfinite(x).all(), f"{name}: {(~torch.isfinite(x)).sum()} of {x.numel()} values are not finite"
        x, ref, same = x.double(), ref.double(), same.double()
        measures = [
            ("max", torch.linalg.vector_norm, {"ord": float("inf")}),
            ("rms", torch.linalg.vector_norm, {}),
        ]
        for (measure, norm, order), relative in zip(measures, bounds, strict=True):
            error, size, usual = norm(x - ref, **order), norm(ref, **order), norm(same - ref, **order)
            exact_zero = ref.abs().max() < torch.finfo(case.dtype).eps  # by symmetry: one key has no softmax gradient
            floor = 32 * torch.finfo(case.dtype).eps * ref.numel() ** 0.5 if exact_zero else 0.0
            bound = slack * max(relative * size * case.gain, 2 * usual, floor)
            assert error <= bound, f"{name}: {measure} error {error:.3g} > {bound:.3g} (reference {size:.3g})"


SIZES = [
    Case(P=P, C=C, D=D)
    for P, C, D in [
        (0, 1, 32), (0, 8, 64), (1, 1, 32), (1, 64, 64), (63, 7, 80), (64, 8, 96), (65, 16, 128), (65, 65, 8),
        (196, 63, 64), (197, 64, 64), (197, 128, 32), (1025, 64, 64), (1025, 7, 72), (33, 129, 40), (5, 0, 32),
    ]
]  # fmt: skip
OPTIONS = [
    Case(active=5),
    Case(active=0),
    Case(active=(3, 8)),
    Case(active=(0, 99)),  # clamped
    Case(lengths=(65, 17)),
    Case(lengths=(0, -4)),  # clamped
    Case(active=(0, 4), lengths=(30, 0)),
    Case(core_self=False),
    Case(core_self=False, P=0),
    Case(core_self=False, lengths=(0, 9)),
    Case(patch_self=True),
    Case(patch_self=True, active=0),
    Case(patch_self=True, core_self=False, active=(0, 2), lengths=(64, 3)),
    Case(rope="shared"),
    Case(rope="per_image", patch_self=True, active=3, lengths=(60, 1)),
    Case(offset=30.0),
    Case(gain=7.0, patch_self=True),
    Case(scale=-0.37, rope="shared"),
    Case(scale=-0.37, patch_self=True, active=(0, 3), lengths=(65, 17)),
    Case(scale=0.0, rope="shared"),
    Case(scale=0.0, patch_self=True, active=(0, 3), lengths=(65, 17)),
]
HALF_TABLES = [Case(rope=x, tables=torch.float16, D=40) for x in ("shared", "per_image")]
LAYOUTS = [Case(layout=x) for x in ("token_major", "packed", "sliced", "expanded", "mixed")]
GRADS = [Case(grad_layout=x) for x in ("stride0", "stride0_tokens", "transposed", "token_major")]


def drawn_cases(**fixed: object) -> st.SearchStrategy[Case]:
    """Small cases with any combination of sizes, counts, flags and layouts."""
    choices = dict(
        P=st.integers(0, 90),
        C=st.integers(0, 20),
        D=st.sampled_from([8, 24, 40]),
        H=st.integers(1, 3),
        active=st.none() | st.tuples(st.integers(-1, 21), st.integers(-1, 21)),
        lengths=st.none() | st.tuples(st.integers(-1, 91), st.integers(-1, 91)),
        rope=st.sampled_from([None, "shared", "per_image"]),
        core_self=st.booleans(),
        patch_self=st.booleans(),
        layout=st.sampled_from(["head_major", "packed", "sliced", "mixed"]),
    )
    return st.builds(Case, **{**choices, **fixed})
