"""VECA against a plain ViT of the same size, from 224 px, where it loses, to 4096 px.

    python -m benchmarks.backbone                                     # this machine's defaults
    python -m benchmarks.backbone --models base --sizes 1024 4096 --passes train --modes eager compiled

The ViT is timm's vit_{small,base}_patch16_224 with dynamic_img_size=True and global_pool="avg", its class
token and torch's choice of attention kernel. Both sides run in one process and one dtype, on images of the
same values: inference with weights of that dtype, training (forward, backward, AdamW) with fp32 weights under
autocast. Modes: "eager"; "blocks", every block under torch.compile, which compiles one block of each model
for each size; "compiled", the whole model, minutes a size. A side is skipped, with the reason, when a run is
predicted to take too long or does not fit.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .backbone_summary import backbone_table
from .machine import machine_for
from .memory import peak_bytes
from .record import JsonLines, environment
from .timing import OUT_OF_MEMORY, Budget, Contender, Timing, measure, short_error

MODELS = {
    "small": ("veca_small_patch16", "vit_small_patch16_224"),
    "base": ("veca_base_patch16", "vit_base_patch16_224"),
}
PATCH = 16
_TOKENS_PER_BATCH = 32768  # batch "auto": as many images as give about this many patches, at most 64


@dataclass(frozen=True)
class Job:
    """One comparison: a pair of models, one size, one pass, eager or compiled."""

    pair: str
    size: int
    batch: int
    pass_: str
    mode: str
    dtype: str
    num_cores: int

    @property
    def patches(self) -> int:
        return (self.size // PATCH) ** 2

    def row(self, model: str) -> dict[str, Any]:
        names = {"pair": self.pair, "model": model, "size": self.size, "P": self.patches, "batch": self.batch}
        options = {"pass": self.pass_, "mode": self.mode, "dtype": self.dtype, "C": self.num_cores}
        return {"kind": "backbone", **names, **options}


@dataclass
class Limits:
    """How long to measure, and the rates seen so far, from which slow runs are predicted."""

    budget: Budget
    longest_run: float
    matmul: float
    rates: dict[tuple[str, str, str], tuple[float, int]] = field(default_factory=dict)  # FLOP/s, size

    def too_long(self, job: Job, model: str, flops: int) -> str | None:
        """Why a run is skipped, judged by the rate this model reached at its last size."""
        rate, size = self.rates.get((model, job.pass_, job.mode), (self.matmul, 0))
        seconds = flops * (3 if job.pass_ == "train" else 1) / rate
        if seconds <= self.longest_run:
            return None
        basis = f"at the rate it reached at {size} px" if size else "at the matmul rate of this machine"
        return f"{seconds:.3g} s a run predicted {basis}, limit {self.longest_run:.3g} s"


def forward_flops(model: nn.Module, patches: int, num_cores: int | None) -> int:
    """FLOP of one image: matmuls and convolutions, 2 a multiply-add; no norms, softmax or rotations.

        VECA  L (8 T E^2 + 4 E (2 P C + C^2) + 6 T E h) + 4 C E (L - 1),  T = C + P
        ViT   L (8 T E^2 + 4 E T^2 + 4 T E h),                            T = 1 + P
        both  2 P E 3 patch^2

    Args:
        model: a VECA (`num_cores` given) or a timm ViT with a class token (`num_cores` None).
        patches: P.
        num_cores: C.
    """
    width, depth = model.embed_dim, len(model.blocks)
    hidden = model.blocks[0].mlp.fc2.in_features
    embed = 2 * patches * width * 3 * PATCH**2
    if num_cores is None:
        tokens = 1 + patches
        block = 8 * tokens * width**2 + 4 * width * tokens**2 + 4 * tokens * width * hidden
        return depth * block + embed
    tokens = num_cores + patches
    attention = 4 * width * (2 * patches * num_cores + num_cores**2)
    block = 8 * tokens * width**2 + attention + 6 * tokens * width * hidden
    return depth * block + 4 * num_cores * width * (depth - 1) + embed


def run_job(job: Job, device: torch.device, limits: Limits, sink: JsonLines) -> None:
    """Both sides of one comparison; one row each."""
    torch._dynamo.reset()  # sizes share a recompile limit, past which torch falls back to eager silently
    sides = {name: _side(name, job, device) for name in MODELS[job.pair]}
    for name in list(sides):
        if reason := limits.too_long(job, name, sides[name].flops * job.batch):
            sink.append(job.row(name) | {"status": "skipped", "reason": reason})
            del sides[name]
    contenders = {name: Contender(side.calls, side.context, kept=True) for name, side in sides.items()}
    timings = measure(contenders, "eager" if device.type == "cuda" else "cpu", limits.budget)
    for name, timing in timings.items():
        side = sides[name]
        if isinstance(timing, Timing):
            rate = side.flops * job.batch / timing.median
            limits.rates[name, job.pass_, job.mode] = (rate * (3 if job.pass_ == "train" else 1), job.size)
            sink.append(job.row(name) | {"status": "ok", "reason": ""} | _fields(job, side, timing, rate, limits))
        else:
            status = "skipped" if OUT_OF_MEMORY in timing else "error"
            sink.append(job.row(name) | {"status": status, "reason": timing})


def _fields(job: Job, side: "Side", timing: Timing, rate: float, limits: Limits) -> dict[str, Any]:
    inference = job.pass_ == "inference"
    return {
        "median_ms": timing.median * 1e3,
        "low_ms": timing.low * 1e3,
        "high_ms": timing.high * 1e3,
        "runs": timing.runs,
        "images_per_s": job.batch / timing.median,
        "peak_bytes": side.peak(),
        "forward_gflop": side.flops / 1e9,
        "matmul_share": rate / limits.matmul if inference else None,
        "parameters": sum(p.numel() for p in side.model.parameters()),
    }


@dataclass
class Side:
    """One model with what it needs to be timed."""

    job: Job
    device: torch.device
    model: nn.Module
    features: Callable[[Tensor], Tensor]
    flops: int

    def calls(self) -> list[Callable[[], object]]:
        """A call per batch of images."""
        dtype = getattr(torch, self.job.dtype)
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (self.job.batch, 3, self.job.size, self.job.size)
        batches = [torch.randn(shape, generator=generator, device=self.device) for _ in range(2)]
        features = torch.compile(self.features, dynamic=False) if self.job.mode == "compiled" else self.features
        if self.job.pass_ == "inference":
            return self._compiled([functools.partial(features, x.to(dtype)) for x in batches])
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=self.device.type == "cuda")

        def step(images: Tensor) -> None:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                out = features(images)
            out.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return self._compiled([functools.partial(step, x) for x in batches])

    def _compiled(self, calls: list[Callable[[], object]]) -> list[Callable[[], object]]:
        """The calls, after a first one that compiles: it takes longer than anything it would be timed with."""
        if self.job.mode != "eager":
            calls[0]()
        return calls

    @contextmanager
    def context(self) -> Iterator[None]:
        with torch.set_grad_enabled(self.job.pass_ == "train"):
            yield

    def peak(self) -> int | None:
        """Bytes beyond weights and images; None where a compiled CPU graph hides them."""
        if self.job.mode != "eager" and self.device.type == "cpu":
            return None
        with self.context():
            call = self.calls()[0]
            call()  # optimizer states and workspaces exist from here on
            held = [*self.model.parameters(), *self.model.buffers()]
            return peak_bytes(call, self.device, held)


def _side(name: str, job: Job, device: torch.device) -> Side:
    """Build a model. What is timed returns every token: dense features are what large images are for."""
    torch.manual_seed(0)
    if name.startswith("veca"):
        import veca

        with device:
            model = veca.create_model(name, num_cores=job.num_cores)
        flops = forward_flops(model, job.patches, job.num_cores)

        def features(images: Tensor) -> Tensor:
            record = model.forward_features(images, num_cores=job.num_cores)
            return torch.cat((record.cores, record.patches), 1)  # (B, C + P, E)

    else:
        import timm

        with device:
            model = timm.create_model(name, num_classes=0, dynamic_img_size=True, global_pool="avg")
        flops, features = forward_flops(model, job.patches, None), model.forward_features  # (B, 1 + P, E)
    inference = job.pass_ == "inference"
    model.to(getattr(torch, job.dtype) if inference else torch.float32).train(not inference)
    if job.mode == "blocks":
        for block in model.blocks:
            block.compile(dynamic=False)
    return Side(job, device, model, features, flops)


def jobs_of(args: argparse.Namespace, cuda: bool) -> list[Job]:
    """Every comparison, eager ones and small sizes first."""
    models = args.models or (["small", "base"] if cuda else ["small"])
    sizes = args.sizes or ([224, 256, 384, 512, 1024, 2048, 4096] if cuda else [224, 256, 384, 512, 768])
    passes = args.passes or (["inference", "train"] if cuda else ["inference"])
    modes = args.modes or (["eager", "blocks", "compiled"] if cuda else ["eager"])
    jobs = []
    for mode, model, pass_ in itertools.product(modes, models, passes):
        for size in sizes if mode == "eager" else args.compiled_sizes or sizes:
            patches = (size // PATCH) ** 2
            automatic = max(1, min(64, _TOKENS_PER_BATCH // patches)) if cuda else 1
            dtype = args.dtype or ("bfloat16" if cuda else "float32")
            jobs.append(Job(model, size, args.batch or automatic, pass_, mode, dtype, args.cores))
    return jobs


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = device.type == "cuda"
    if args.threads:
        torch.set_num_threads(args.threads)
    deadline = time.monotonic() + (args.seconds or (3600.0 if cuda else 120.0))
    sink = JsonLines(args.out)
    record = environment(device.type)
    sink.append({"kind": "environment", **record})
    jobs = jobs_of(args, cuda)
    machine = machine_for(device, getattr(torch, jobs[0].dtype))
    budget = Budget(args.runs or (100 if cuda else 5), screening=3, max_seconds=args.max_seconds)
    limits = Limits(budget, args.longest_run or (3.0 if cuda else 20.0), machine.matmul)
    for job in tqdm(jobs, desc="backbone", file=sys.stderr, disable=None):
        if time.monotonic() > deadline:
            for name in MODELS[job.pair]:
                sink.append(job.row(name) | {"status": "skipped", "reason": "the time for this run was used up"})
            continue
        before = len(sink.rows)
        try:
            run_job(job, device, limits, sink)
        except Exception as error:  # a model that cannot be built, a compiler that breaks: other sizes go on
            reason = {"status": "error", "reason": short_error(error)}
            known = {row["model"] for row in sink.rows[before:]}
            for name in MODELS[job.pair]:
                if name not in known:
                    sink.append(job.row(name) | reason)
    print(f"{record['device']}, {record['date']}, commit {record['commit']}, torch {record['torch']}, ", end="")
    print(f"timm {record['timm']}; matmul peak {machine.matmul / 1e12:.4g} TFLOP/s ({machine.source})\n")
    print(backbone_table(sink.rows))
    return 1 if any(row.get("status") == "error" for row in sink.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--models", nargs="+", choices=tuple(MODELS), help="default: both on CUDA, small on CPU")
    add("--sizes", type=int, nargs="+", help="pixels a side; default 224 to 4096 on CUDA, to 768 on CPU")
    add("--compiled-sizes", type=int, nargs="+", help="sizes of the compiled modes; default: --sizes")
    add("--passes", nargs="+", choices=("inference", "train"), help="default: both on CUDA, inference on CPU")
    add("--modes", nargs="+", choices=("eager", "blocks", "compiled"), help="default: all on CUDA, eager on CPU")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA")
    add("--batch", type=int, help=f"images; default 1 on CPU, about {_TOKENS_PER_BATCH} patches on CUDA")
    add("--cores", type=int, default=64)
    add("--runs", type=int, help="runs per side; default 100 on CUDA, 5 on CPU")
    add("--max-seconds", type=float, default=4.0, help="seconds per side after which fewer runs have to do")
    add("--longest-run", type=float, help="skip a side whose run is predicted to take longer; 3 s, CPU 20 s")
    add("--seconds", type=float, help="seconds for everything; the rest is skipped; CUDA 3600, CPU 120")
    add("--threads", type=int, help="CPU threads")
    add("--out", type=Path, help="JSON lines file, appended to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
