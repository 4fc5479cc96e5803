"""Facts about the machine on which the numbers were measured."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import torch

__all__ = ["OtherPrograms", "describe_machine"]

_PACKAGES = ("torch", "triton", "timm", "numpy", "veca")


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """Collect device, processor, threads, precision, versions and date as JSON types."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {_cpu_name()}",
        "device_type": device.type,
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "dtype": str(dtype).removeprefix("torch."),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "cuda": torch.version.cuda if cuda else None,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """The processor's product name, or the architecture if the system does not tell the name."""
    if sys.platform == "linux" and (info := Path("/proc/cpuinfo")).is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return platform.processor() or platform.machine()


class OtherPrograms:
    """How many processor cores other programs use, from the moment this object is made."""

    def __init__(self):
        self.start = self._now()

    def cores(self) -> float | None:
        """Mean number of cores that other programs used until now; None where the system does not tell (not Linux)."""
        now = self._now()
        if self.start is None or now is None:
            return None
        everyone, own, clock = (b - a for a, b in zip(self.start, now, strict=True))
        return max(everyone - own, 0.0) / clock

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds of all cores that were not idle, seconds of this process and its children, and the clock."""
        path = Path("/proc/stat")
        if sys.platform != "linux" or not path.is_file():
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, path.read_text().split()[1:9])
        ticks = os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4])
        return (user + nice + system + irq + softirq + steal) / ticks, own, time.monotonic()
