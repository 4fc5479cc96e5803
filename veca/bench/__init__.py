"""`veca bench`: what VECA costs beside the backbones one would use instead.

    rows = run_bench(BenchSettings(models=("veca_small_patch16", "vit_small_patch16_224"), sizes=(256, 1024)))

Writes bench.jsonl, bench.md and a curve for each pass and mode. Weights are random: cost only, never quality.
"""

from .models import LINEAR_BACKBONES
from .run import check_bench, run_bench
from .settings import BenchSettings
from .table import bench_table

__all__ = ["LINEAR_BACKBONES", "BenchSettings", "bench_table", "check_bench", "run_bench"]
