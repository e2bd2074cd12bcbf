"""Blocks of windows on several processes of this machine.

Each process holds one network, reads and predicts blocks, and puts them into the folder of parts; this one hands out
their numbers and merges what is finished, in order. A process that is lost is replaced, and its blocks are given out
again: what was finished is on disk.
"""

import contextlib
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.inference.parts import PartStore, save_part
from fusiondet.inference.pipeline import predict_windows
from fusiondet.inference.plan import BLOCK_WINDOWS, ScenePlan
from fusiondet.inference.predictor import Predictor

import torch

# A process has the next block at hand before it is done with one: it reads ahead.
_BLOCKS_AHEAD = 2
# So often a block may end the process that works on it.
_MOST_LOSSES = 3


@dataclass(frozen=True)
class PredictorSettings:
    """How a process gets at the network; see `Predictor`."""

    weights: str
    device: str | None
    score_threshold: float

    @classmethod
    def of(cls, predictor: Predictor, device: str | None) -> "PredictorSettings":
        """Those of a predictor, which may not have been built; `device` as the user gave it."""
        threshold = predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        return cls(str(predictor.weights.absolute()), device, float(threshold))

    def load(self) -> Predictor:
        """The predictor."""
        return Predictor(self.weights, self.device, self.score_threshold)


@dataclass
class _Worker:
    process: multiprocessing.Process
    tasks: Connection
    answers: Connection
    blocks: list[int] = field(default_factory=list)

    def give(self, block: int) -> None:
        self.blocks.append(block)
        with contextlib.suppress(OSError):  # it is gone, which is found out soon
            self.tasks.send(block)


def predict_on_workers(
    settings: PredictorSettings, plan: ScenePlan, store: PartStore, blocks: Iterable[int], count: int
) -> Iterator[int]:
    """Numbers of `blocks` as they get finished and are in `store`, by `count` processes.

    Raises:
        InputError: what a process says of its input; or a block ended its process several times.
        OSError: a part could not be written.
        RuntimeError: another failure of a process; its traceback.
    """
    waiting, losses = deque(blocks), Counter()
    devices = _devices(settings.device, count)
    threads = max(1, torch.get_num_threads() // count)
    workers = {}

    def start(slot: int) -> None:
        workers[slot] = _start(settings, plan, store, devices[slot], threads)

    try:
        for slot in range(min(count, len(waiting))):
            start(slot)
        while waiting or any(w.blocks for w in workers.values()):
            for _ in range(_BLOCKS_AHEAD):
                for worker in workers.values():
                    if waiting and len(worker.blocks) < _BLOCKS_AHEAD:
                        worker.give(waiting.popleft())
            wait([w.answers for w in workers.values()])
            for slot, worker in list(workers.items()):
                answers, alive = _answers(worker)
                for block in answers:
                    worker.blocks.remove(block)
                    yield block
                if not alive:
                    yield from _take_back(worker, store, waiting, losses)
                    start(slot)
    finally:
        for worker in workers.values():
            _stop(worker)


def _start(settings, plan, store: PartStore, device: str | None, threads: int) -> _Worker:
    context = _context()
    theirs, tasks = context.Pipe(duplex=False)
    answers, back = context.Pipe(duplex=False)
    settings = PredictorSettings(settings.weights, device, settings.score_threshold)
    arguments = (theirs, back, settings, plan, store.folder, threads)
    process = context.Process(target=_work, args=arguments, daemon=True, name="fusiondet-worker")
    process.start()
    # The only open ends are the worker's then, so that its end is seen here.
    theirs.close()
    back.close()
    return _Worker(process, tasks, answers)


def _context():
    """How processes are started: CUDA and threads survive no fork of this one, but one that has only imported does."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _devices(device: str | None, count: int) -> list[str | None]:
    """A device for each process: GPUs in turn, unless one is named."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device in (None, "cuda") and gpus:
        return [f"cuda:{i % gpus}" for i in range(count)]
    return [device] * count


def _work(tasks: Connection, answers: Connection, settings, plan: ScenePlan, folder: Path, threads: int):
    """What a process does until it is told to end, or the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process says when to end
    torch.set_num_threads(threads)

    def indices():
        with contextlib.suppress(EOFError):
            while (block := tasks.recv()) is not None:
                yield from plan.blocks[block]

    try:
        results: list = []
        for result in predict_windows(settings.load(), plan, indices()):
            results.append(result)
            block = result.index // BLOCK_WINDOWS
            if len(results) == len(plan.blocks[block]):
                save_part(folder, block, results)
                answers.send(block)
                results = []
    except (InputError, OSError) as error:
        answers.send(error)
    except Exception as error:
        import traceback

        answers.send(RuntimeError(f"a worker failed: {error}\n{traceback.format_exc()}"))


def _answers(worker: _Worker) -> tuple[list[int], bool]:
    """Blocks that a worker has finished since it was asked last, and whether it is alive."""
    found = []
    try:
        while worker.answers.poll():
            answer = worker.answers.recv()
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
    except EOFError:
        return found, False
    return found, True


def _take_back(worker: _Worker, store: PartStore, waiting: deque, losses: Counter) -> Iterator[int]:
    """Those of a lost worker's blocks that it had finished; the others wait again, before all others."""
    worker.process.join()
    unfinished = [block for block in worker.blocks if not store.path(block).exists()]
    yield from (block for block in worker.blocks if store.path(block).exists())
    if unfinished:
        losses[unfinished[0]] += 1
        if losses[unfinished[0]] >= _MOST_LOSSES:
            code = worker.process.exitcode
            raise InputError(
                f"block {unfinished[0]} of the scene ended {_MOST_LOSSES} workers (exit code {code}; -9 is what a "
                "machine without memory does). Pass fewer --workers or a smaller --window, and --resume."
            )
    waiting.extendleft(reversed(unfinished))


def _stop(worker: _Worker) -> None:
    with contextlib.suppress(OSError):
        worker.tasks.send(None)
    worker.tasks.close()
    if worker.blocks:  # something went wrong: nothing of what it does is wanted
        worker.process.terminate()
    worker.process.join(10)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.answers.close()
