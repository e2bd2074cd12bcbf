"""Blocks of windows on a cluster of dask.distributed, which hands them out again where a worker is lost.

Workers need this package, and read images and weights under the same paths as this machine does; what they find comes
back over the network, so nothing else is shared. dask's messages are pickles: whoever reaches a scheduler runs code on
its workers. Beyond localhost, use tls:// with certificates (`distributed.comm.tls` of dask's configuration).
"""

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator

from fusiondet.errors import InputError
from fusiondet.inference.parts import PartStore, part_bytes
from fusiondet.inference.pipeline import predict_windows
from fusiondet.inference.plan import ScenePlan
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.workers import PredictorSettings

import torch

# Only needed here, so it is no requirement of the package.
REQUIREMENT = "distributed>=2024.5"
_CONNECT_S = 15
_BLOCKS_AHEAD = 2
# A process has one network, and works on one block at a time: reading ahead is what its threads are for.
_ONE_AT_A_TIME = threading.Lock()


def predict_on_cluster(
    settings: PredictorSettings, plan: ScenePlan, store: PartStore, blocks: Iterable[int], address: str
) -> Iterator[int]:
    """Numbers of `blocks` as they get finished and are in `store`, by the workers of the scheduler at `address`.

    Raises:
        InputError: dask.distributed is not installed; no scheduler there, or not any more; what a worker says of its
            input; a block ended several workers.
    """
    distributed = _import_distributed()
    waiting = list(reversed(list(blocks)))
    try:
        client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--scheduler {address}: no scheduler of dask.distributed answers there within {_CONNECT_S} s "
            f"({type(error).__name__}: {error}). Start it with `dask scheduler`, and workers with "
            f"`dask worker {address}`."
        ) from None
    with client:
        done = distributed.as_completed(loop=client.loop)
        while waiting or done.count():
            with _told(distributed, address):
                while waiting and done.count() < _BLOCKS_AHEAD * max(1, len(client.nthreads())):
                    done.add(client.submit(predict_block, settings, plan, waiting.pop(), pure=False))
                number, content = next(done).result()
            if isinstance(content, str):
                raise InputError(content)
            store.save_bytes(number, *content)
            yield number


@contextlib.contextmanager
def _told(distributed, address: str):
    """What goes wrong with a cluster, as InputError."""
    try:
        yield
    except distributed.KilledWorker as error:
        raise InputError(
            f"--scheduler {address}: a block ended several workers ({error}). Give them more memory, or pass a "
            "smaller --window; --resume goes on with what is finished."
        ) from None
    except (OSError, TimeoutError, distributed.CancelledError) as error:
        raise InputError(
            f"--scheduler {address}: is gone ({type(error).__name__}). Start it again and pass --resume: what is "
            "finished is kept."
        ) from None


def _import_distributed():
    try:
        import distributed
    except ImportError:
        raise InputError(
            f"--scheduler needs dask.distributed, which is not installed: pip install '{REQUIREMENT}'."
        ) from None
    return distributed


def predict_block(
    settings: PredictorSettings, plan: ScenePlan, number: int
) -> tuple[int, tuple[bytes, bytes | None] | str]:
    """The number of a block, and its part as `part_bytes` gives it, or what is wrong with the input; on a worker."""
    with _ONE_AT_A_TIME:
        try:
            return number, part_bytes(list(predict_windows(_predictor(settings), plan, plan.blocks[number])))
        except InputError as error:  # as text: what GDAL raised on the way cannot travel
            return number, str(error)


@functools.lru_cache(maxsize=1)
def _predictor(settings: PredictorSettings) -> Predictor:
    device = settings.device
    if device in (None, "cuda") and torch.cuda.is_available():
        # Workers of one machine spread: each takes the GPU with most memory left.
        free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        device = f"cuda:{free.index(max(free))}"
    return PredictorSettings(settings.weights, device, settings.score_threshold).load()
