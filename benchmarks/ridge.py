"""Ridge with a penalty for each voxel at the size of one NSD subject: ours and himalaya's, on the same data.

    python -m benchmarks.ridge
    python -m benchmarks.ridge --images 20000 --features 1024 --contenders veca

Seconds are those of fit and prediction. CPU seconds count all threads, and are still valid where other programs run.
The peak is that of the process with its data.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from .record import JsonLines, environment, markdown_table

__all__ = ["main"]

CONTENDERS = ("veca", "himalaya")
COLUMNS = ("contender", "seconds", "CPU seconds", "peak GB", "data GB", "ratio", "same alpha", "score difference")
_HELD_OUT = 500  # number of images on which the fits are scored


def made(args: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Features and responses of train and test images, fp32. They are linear, with noise of variance 1 to 1000.

    Returns:
        X (images, features), Y (images, voxels), and the same of the test images. The variance grows with the voxel.
    """
    rng = np.random.default_rng(0)
    X = rng.standard_normal((args.images + _HELD_OUT, args.features), np.float32)
    X *= np.geomspace(3, 0.03, args.features, dtype=np.float32)  # a spectrum, as features of networks have
    Y = X @ rng.standard_normal((args.features, args.voxels), np.float32)
    noise = np.geomspace(1, 1000, args.voxels, dtype=np.float32) ** 0.5
    for rows in np.array_split(np.arange(len(Y)), 16):
        Y[rows] += noise * rng.standard_normal((len(rows), args.voxels), np.float32)
    n = args.images
    return X[:n], Y[:n], X[n:], Y[n:]


def fit_one(name: str, args: argparse.Namespace) -> dict[str, object]:
    """Fit and score in this process, and write alphas and scores to a file in `args.workdir`."""
    if args.threads:
        torch.set_num_threads(args.threads)
    X, Y, X_test, Y_test = made(args)
    alphas, data = np.logspace(-2, 7, args.alphas), peak_bytes()
    _fit(name, X[:200], Y[:200, :10], X_test, alphas, args)  # libraries allocate on first use
    start, busy = time.perf_counter(), time.process_time()
    chosen, predicted = _fit(name, X, Y, X_test, alphas, args)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    scores = 1 - np.square(Y_test - predicted).sum(0) / np.square(Y_test - Y_test.mean(0)).sum(0)
    np.savez(args.workdir / f"{name}.npz", alphas=chosen, scores=scores)
    memory = {"peak GB": peak_bytes() / 1e9, "data GB": data / 1e9}
    return {"contender": name, "seconds": seconds, "CPU seconds": busy} | memory


def _fit(name: str, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray, alphas: np.ndarray, args: argparse.Namespace):
    """Fit and predict. Returns (chosen alphas, predictions for the test images)."""
    if name == "veca":
        from brainmodels.baselines import Ridge

        model = Ridge(alphas, cv=args.folds, device=args.device).fit(X, Y)
        return model.alphas_, model.predict(X_test)
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV

    set_backend("torch_cuda" if args.device == "cuda" else "torch")
    params = {"n_targets_batch": 1000, "warn": False}
    model = RidgeCV(alphas.astype(np.float32), fit_intercept=True, cv=args.folds, solver_params=params).fit(X, Y)
    return model.best_alphas_.cpu().numpy(), model.predict(X_test).numpy()


def compare(args: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each contender. Each runs in a fresh process, because the peak of a process never falls."""
    rows = []
    with tempfile.TemporaryDirectory() as workdir:
        for name in args.contenders:
            words = [f"--{key}={getattr(args, key)}" for key in ("images", "features", "voxels", "alphas", "folds")]
            words += [f"--device={args.device}", f"--workdir={workdir}", f"--one={name}"]
            words += [f"--threads={args.threads}"] if args.threads else []
            command = [sys.executable, "-m", "benchmarks.ridge", *words]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        results = [np.load(Path(workdir) / f"{name}.npz") for name in args.contenders]
        for row, result in zip(rows, results, strict=True):
            row["ratio"] = row["seconds"] / rows[0]["seconds"]
            row["same alpha"] = float(np.isclose(result["alphas"], results[0]["alphas"], rtol=1e-4).mean())
            row["score difference"] = float(np.abs(result["scores"] - results[0]["scores"]).max())
    return rows


def peak_bytes() -> int:
    """The most resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(words: list[str] | None = None) -> None:
    args = _parser().parse_args(words)
    if args.one:
        print(json.dumps(fit_one(args.one, args)))
        return
    size = {key: getattr(args, key) for key in ("images", "features", "voxels", "alphas", "folds")}
    record = environment(args.device, args.threads)
    rows = compare(args)
    log = JsonLines(args.out)
    for row in rows:
        log.append(record | size | row)
    print(f"{record['device']}, {record.get('threads', '')} threads, torch {record['torch']}, {record['date']}")
    print(", ".join(f"{count} {name}" for name, count in size.items()), end="\n\n")
    print(markdown_table(rows, COLUMNS))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, default=9000, help="number of train images")
    add("--features", type=int, default=768, help="number of features")
    add("--voxels", type=int, default=15724, help="number of voxels")
    add("--alphas", type=int, default=10, help="number of penalties to choose from")
    add("--folds", type=int, default=5, help="number of folds of the cross-validation")
    add("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="ratios are to the first")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, help="number of torch's threads on a CPU")
    add("--out", type=Path, help="append the rows to this JSON lines file")
    add("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    add("--workdir", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
