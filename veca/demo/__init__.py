"""`veca demo`: a report that compares VECA with a ViT on photographs.

    record = run_demo(DemoSettings(sizes=(256, 512)))    # writes out/demo/report.html and report.json

The weights are random. The report shows cost and correctness, and how the model works, but not its quality.
"""

from .report import summary_lines
from .run import check_request, run_demo
from .settings import DemoSettings

__all__ = ["DemoSettings", "check_request", "run_demo", "summary_lines"]
