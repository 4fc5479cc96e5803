"""`veca demo`: VECA beside a ViT on photographs, measured and drawn, ending in a report.

    record = run_demo(DemoSettings(sizes=(256, 512)))    # writes out/demo/report.html and report.json

Weights are random: what is shown is cost, correctness and mechanics, never quality.
"""

from .report import summary_lines
from .run import check_request, run_demo
from .settings import DemoSettings

__all__ = ["DemoSettings", "check_request", "run_demo", "summary_lines"]
