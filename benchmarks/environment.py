"""Device, versions and measured rates as rows. Each row is more complete than the one before.

    python -m benchmarks.environment --device cuda --out environment.json

The first row is on disk before torch is imported. The import may take half a minute on a machine that has just started.
"""

import argparse
import platform
import shutil
import subprocess
from pathlib import Path

from .record import PACKAGES, JsonLines, commit, cpu_name, environment, today, version


def first_record(device: str) -> dict[str, object]:
    """The facts that are known without torch. The name of the GPU comes from nvidia-smi, if it is installed."""
    name = cpu_name() if device == "cpu" else _gpu_name()
    versions = {package: version(package) for package in PACKAGES}
    return {"date": today(), "device": name, "python": platform.python_version(), "commit": commit(), **versions}


def _gpu_name() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = (tool, "--query-gpu=name", "--format=csv,noheader")
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout.strip().splitlines() or [None])[0] if done.returncode == 0 else None


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    sink = JsonLines(args.out)
    sink.append(first_record(args.device))

    import torch

    record = environment(args.device)
    sink.append(record)

    from .machine import KNOWN, as_row, measured_machine

    rates = as_row(measured_machine(torch.device(args.device), torch.bfloat16))
    known = KNOWN.get(record["device"])
    sink.append(record | {"measured_rates": rates, "floor_rates": as_row(known) if known else rates})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file, appended to")
    return parser


if __name__ == "__main__":
    main()
