"""Blocks of windows, predicted in this process, in others of this machine or on a Dask cluster; resumable.

What a block's windows give depends on the plan alone, so it does not matter who predicts it, nor in which order.
"""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fusiondet.errors import InputError
from fusiondet.inference.options import SceneOptions
from fusiondet.inference.pieces import block_bytes, finished_blocks, load_block, save_block
from fusiondet.inference.pipeline import WindowResult, predict_windows
from fusiondet.inference.plan import BLOCK_WINDOWS, ScenePlan
from fusiondet.inference.predictor import Predictor
from fusiondet.io.scene_reader import SceneReader
from fusiondet.jobs.executors import completed, open_executor, slot
from fusiondet.jobs.store import Store

import torch

# So often a block whose piece cannot be read is predicted again.
_MOST_TRIES = 3
# Yields a block's number with the results of its windows, or None for them where they are in the store already.
Computed = Iterator[tuple[int, Iterable[WindowResult] | None]]


def window_results(
    predictor: Predictor,
    plan: ScenePlan,
    reader: SceneReader,
    options: SceneOptions,
    store: Store | None = None,
) -> Iterator[WindowResult]:
    """Yield the results of all windows of a scene, in order; those of blocks that are in `store` from there.

    Args:
        reader: of the plan's grid.
        options: who predicts: `workers`, `scheduler`, `device`.
        store: where finished blocks are kept; None: nowhere, and this process predicts.

    Raises:
        InputError: see `predict_windows`; also where blocks end their workers, or the cluster is gone.
        OSError: a block could not be stored.
    """
    if options.elsewhere and store is not None:
        compute = functools.partial(_compute_elsewhere, predictor, plan, options, store)
    else:
        compute = functools.partial(_compute_here, predictor, plan, reader)
    yield from results_in_order(range(len(plan.blocks)), compute, store)


def results_in_order(
    blocks: range, compute: Callable[[list[int]], Computed], store: Store | None
) -> Iterator[WindowResult]:
    """Yield the results of `blocks` in order; those that are not in `store` are computed, and kept there.

    Args:
        compute: takes the numbers of blocks that are wanted, and yields each of them, in any order.

    Raises:
        InputError: the piece of a block cannot be read although it was made again.
    """
    finished = finished_blocks(store) & set(blocks) if store is not None else set()
    computed = compute([block for block in blocks if block not in finished])
    tries = Counter()
    try:
        for block in blocks:
            while True:
                if block in finished:
                    results = load_block(store, block)
                    if results is not None:
                        yield from results
                        break
                    _count_try(tries, block, store)
                    # Its place is before all that is still to come.
                    finished.discard(block)
                    computed.close()
                    computed = compute([b for b in blocks[block - blocks.start :] if b not in finished])

                number, results = next(computed)
                if results is not None:
                    yield from _kept(results, number, store)
                    break
                finished.add(number)
    finally:
        computed.close()


def _count_try(tries: Counter, block: int, store: Store) -> None:
    if tries[block] == _MOST_TRIES:
        raise InputError(
            f"{store.folder}: block {block} was made again {_MOST_TRIES} times, and cannot be read each time. Do the "
            "workers run the same version of fusiondet as this process?"
        )
    tries[block] += 1


def _kept(results: Iterable[WindowResult], block: int, store: Store | None) -> Iterator[WindowResult]:
    """Yield `results` of a block, which is in `store` before the last of them is."""
    found = []
    for result in results:
        if found:
            yield found[-1]
            if store is None:
                found.clear()
        found.append(result)
    if store is not None:
        save_block(store, block, *block_bytes(found))
    yield found[-1]


def _compute_here(predictor: Predictor, plan: ScenePlan, reader: SceneReader, blocks: list[int]) -> Computed:
    indices = (index for block in blocks for index in plan.blocks[block])
    # One stream for all of them: windows of the next block are read while the network works on this one.
    with contextlib.closing(predict_windows(predictor, plan, reader, indices)) as results:
        yield from itertools.groupby(results, key=lambda result: result.index // BLOCK_WINDOWS)


def _compute_elsewhere(
    predictor: Predictor, plan: ScenePlan, options: SceneOptions, store: Store, blocks: list[int]
) -> Computed:
    if not blocks:
        return
    network = Network.of(predictor, options)
    executor = open_executor(
        options.workers,
        options.scheduler,
        initializer=torch.set_num_threads,
        initargs=(max(1, torch.get_num_threads() // max(1, options.workers)),),
        preload=(__name__,),
        lighter="pass a smaller `window_px`",
        again="pass `resume=True`",
    )
    with executor:
        tasks = ((block,) for block in blocks)
        for block, content in completed(executor, predict_block, (network, plan), tasks, unit="block"):
            save_block(store, block, *content)
            yield block, None


@dataclass(frozen=True)
class Network:
    """A trained network that another process can load; see `Predictor` for the arguments."""

    weights: str
    weights_sha256: str
    device: str | None
    score_threshold: float
    on_cluster: bool = False

    @classmethod
    def of(cls, predictor: Predictor, options: SceneOptions) -> "Network":
        """Return that of a predictor, which need not have been built."""
        return cls(
            str(predictor.weights.absolute()),
            predictor.weights_sha256,
            options.device,
            float(predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST),
            options.scheduler is not None,
        )


def predict_block(network: Network, plan: ScenePlan, block: int) -> tuple[int, tuple[bytes, bytes | None]]:
    """Return the number of a block and its `block_bytes`; what a worker does.

    Raises:
        InputError: what is wrong with the input.
    """
    predictor = _loaded(network)
    results = predict_windows(predictor, plan, _opened(predictor, plan), plan.blocks[block])
    return block, block_bytes(list(results))


@functools.lru_cache(maxsize=1)
def _loaded(network: Network) -> Predictor:
    return Predictor(network.weights, worker_device(network), network.score_threshold)


def worker_device(network: Network) -> str | None:
    """Return the device of this worker: GPUs in turn, unless one is named.

    Workers of a cluster are not numbered: there each takes the GPU with most memory left.
    """
    if network.device not in (None, "cuda") or not torch.cuda.is_available():
        return network.device
    count = torch.cuda.device_count()
    if not network.on_cluster:
        return f"cuda:{slot() % count}"
    free = [torch.cuda.mem_get_info(i)[0] for i in range(count)]
    return f"cuda:{free.index(max(free))}"


# The scene that this worker reads: opened once, closed when another one comes.
_scene: tuple[ScenePlan, SceneReader] | None = None


def _opened(predictor: Predictor, plan: ScenePlan) -> SceneReader:
    global _scene
    if _scene is None or _scene[0] != plan:
        if _scene is not None:
            _scene[1].close()
        _scene = None
        _scene = plan, plan.open(predictor.bands)
    return _scene[1]
