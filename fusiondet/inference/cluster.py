"""Blocks of windows on a cluster of dask.distributed.

Workers read images and weights under the same paths as this machine does; what they find comes back over the network,
so nothing else is shared.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator

from fusiondet.inference.parts import PartStore, part_bytes
from fusiondet.inference.pipeline import predict_windows
from fusiondet.inference.plan import ScenePlan
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.workers import PredictorSettings
from fusiondet.jobs.dask_cluster import run_on_workers

import torch


def predict_on_cluster(
    settings: PredictorSettings, plan: ScenePlan, store: PartStore, blocks: Iterable[int], address: str
) -> Iterator[int]:
    """Numbers of `blocks` as they get finished and are in `store`, by the workers of the scheduler at `address`.

    Raises:
        InputError: see `run_on_workers`.
    """
    results = run_on_workers(
        address,
        predict_block,
        (settings, plan),
        ((number,) for number in blocks),
        lighter="pass a smaller --window",
        again="pass --resume",
    )
    with contextlib.closing(results):
        for number, content in results:
            store.save_bytes(number, *content)
            yield number


def predict_block(
    settings: PredictorSettings, plan: ScenePlan, number: int
) -> tuple[int, tuple[bytes, bytes | None]]:
    """The number of a block, and its part as `part_bytes` gives it; on a worker.

    Raises:
        InputError: what is wrong with the input.
    """
    return number, part_bytes(list(predict_windows(_predictor(settings), plan, plan.blocks[number])))


@functools.lru_cache(maxsize=1)
def _predictor(settings: PredictorSettings) -> Predictor:
    device = settings.device
    if device in (None, "cuda") and torch.cuda.is_available():
        # Workers of one machine spread: each takes the GPU with most memory left.
        free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        device = f"cuda:{free.index(max(free))}"
    return PredictorSettings(settings.weights, device, settings.score_threshold).load()
