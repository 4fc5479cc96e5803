"""`veca bench`: time and memory of VECA, compared with other backbones.

    rows = run_bench(BenchSettings(models=("veca_small_patch16", "vit_small_patch16_224"), sizes=(256, 1024)))

It writes bench.jsonl, bench.md and a curve for each pass and mode. Weights are random, so it measures cost and not
quality.
"""

from .models import LINEAR_BACKBONES
from .run import check_bench, run_bench
from .settings import BenchSettings
from .table import bench_table

__all__ = ["LINEAR_BACKBONES", "BenchSettings", "bench_table", "check_bench", "run_bench"]
