"""What fusion, heights and dense heads cost, as ratios: `turns` measures, `training`, `fusion` and `joint` compare.

Times of one machine say little about another, ratios of networks that take turns in one run do.
"""

from benchmarks.training_cost import benchmark_training
from fusiondet.analysis.timing import (
    Contestant,
    TimingSettings,
    count_flops,
    paired_ratio,
    processor,
    random_inputs,
    take_turns,
)

__all__ = [
    "Contestant",
    "TimingSettings",
    "benchmark_training",
    "count_flops",
    "paired_ratio",
    "processor",
    "random_inputs",
    "take_turns",
]
