"""Which tile comes next, in a way that a stopped training can go on exactly where it was.

Every sample drawn has a number, the *counter*: 0, 1, 2, … over all processes. Counter -> tile is a pure function of the
seed, so the position in the data is one number, and what the mapper draws at random depends on (seed, counter) alone,
not on workers, processes or earlier epochs.
"""

import sys
import zlib
from collections.abc import Callable, Iterator

import fusiondet.compat  # noqa: F401  (before detectron2, also where a worker unpickles what it gets)
from fusiondet.errors import InputError

import numpy as np
import torch
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset, Sampler


class TrainingSampler(Sampler):
    """Endless (counter, index) pairs; every epoch is a new permutation of all tiles.

    Attributes:
        consumed: samples, over all processes, that training is done with. Iterating starts there.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, world_size: int = 1, shuffle: bool = True):
        """Sampler of process `rank` of `world_size`, which takes the counters rank, rank + world_size, …

        Raises:
            InputError: there is no tile to sample.
        """
        if size < 1:
            raise InputError("the training data have no tile left: are all of them empty and filtered out?")
        self.size, self.seed, self.rank, self.world_size, self.shuffle = size, seed, rank, world_size, shuffle
        self.consumed = 0
        self._orders: dict[int, tuple] = {}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        counter = self.consumed + self.rank
        while True:
            yield counter, self.index_of(counter)
            counter += self.world_size

    def index_of(self, counter: int) -> int:
        """The tile that sample number `counter` is."""
        return self._drawn(counter, self.size)

    def _drawn(self, number: int, size: int, stream: int = 0) -> int:
        """Which of `size` things is the one drawn as `number`, in the order of `stream`."""
        epoch, position = divmod(number, size)
        if not self.shuffle:
            return position
        key = (self.seed, epoch, *([stream] if stream else []))
        if self._orders.get(stream, (None,))[0] != key:
            self._orders[stream] = key, np.random.default_rng(key).permutation(size)
        return int(self._orders[stream][1][position])

    def state_dict(self) -> dict[str, int]:
        """What a later run needs to go on: {"consumed", "seed", "size"}."""
        return {"consumed": self.consumed, "seed": self.seed, "size": self.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state`.

        Raises:
            InputError: the state is of other tiles or batches, so its position means nothing here.
        """
        if state["size"] != self.size:
            raise InputError(
                f"cannot resume: the checkpoint was trained on {state['size']} tiles, now there are {self.size}. "
                "Restore the data, or start afresh with MODEL.WEIGHTS."
            )
        own = self.state_dict()
        other = [what for key, what in _FEW_LABELS.items() if state.get(key) != own.get(key)]
        if other:
            raise InputError(
                f"cannot resume: the checkpoint was trained with another {' and '.join(other)}. Restore the config, or "
                "start afresh with MODEL.WEIGHTS."
            )
        self.consumed, self.seed = state["consumed"], state["seed"]


# What the state of a FewLabelsSampler holds besides, and where it comes from.
_FEW_LABELS = {
    "labelled": "choice of labelled tiles (DATASETS.LABEL_SHARE, SEED)",
    "labelled_per_batch": "SOLVER.IMS_PER_BATCH",
    "unlabelled_per_batch": "DATALOADER.UNLABELLED_PER_BATCH",
}


class FewLabelsSampler(TrainingSampler):
    """Endless (counter, index) pairs of tiles of which some have labels: so many of either kind in every batch.

    A batch over all processes begins with its labelled tiles. Either kind comes in an order of its own, each epoch of
    it a new permutation.
    """

    def __init__(
        self,
        labelled: np.ndarray,
        per_batch: tuple[int, int],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Sampler of process `rank`, whose batches have as large a part of each kind as those of the others.

        Args:
            labelled: (size,) bool. per_batch: labelled and unlabelled tiles of a batch over all processes, multiples of
                `world_size`; the second may be 0.

        Raises:
            InputError: there is no labelled tile, or no unlabelled one where batches have some.
        """
        super().__init__(len(labelled), seed, rank, world_size)
        self.labelled, self.per_batch = np.asarray(labelled, bool), per_batch
        self._tiles = np.flatnonzero(self.labelled), np.flatnonzero(~self.labelled)
        if not len(self._tiles[0]):
            raise InputError(
                "no labelled training tile is left: is every one empty and filtered out? Raise DATASETS.LABEL_SHARE, "
                "or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False."
            )
        if per_batch[1] and not len(self._tiles[1]):
            raise InputError(
                f"DATALOADER.UNLABELLED_PER_BATCH is {per_batch[1]}, but each of the {self.size} training tiles is "
                "labelled. Set it to 0, or DATASETS.LABEL_SHARE below 1."
            )

    def index_of(self, counter: int) -> int:
        """The tile that sample number `counter` is."""
        batch, position = divmod(counter, sum(self.per_batch))
        kind = int(position >= self.per_batch[0])
        number = batch * self.per_batch[kind] + position - kind * self.per_batch[0]
        return int(self._tiles[kind][self._drawn(number, len(self._tiles[kind]), kind)])

    def state_dict(self) -> dict[str, int]:
        """As TrainingSampler's, with a checksum of which tiles are labelled and the numbers per batch."""
        chosen = zlib.crc32(np.packbits(self.labelled).tobytes())
        return {**super().state_dict(), **dict(zip(_FEW_LABELS, (chosen, *self.per_batch), strict=True))}


def choose_labelled(count: int, share: float, seed: int) -> np.ndarray:
    """(count,) bool: which tiles keep their labels, a `share` in (0, 1] of them and at least one.

    Drawn by `seed` alone, and nested: the tiles of a smaller share are among those of a larger one.
    """
    chosen = np.zeros(count, bool)
    # Its own stream beside those of the samplers, 0 and 1.
    order = np.random.default_rng((seed, 0, 2)).permutation(count)
    chosen[order[: max(1, round(share * count))]] = True
    return chosen


class TileLoader:
    """Batches (lists of the mapper's dicts) of the tiles that a sampler picks, by worker processes if wanted.

    The workers start with the first batch, not before: until then a checkpoint may set the sampler's position. An
    InputError of the mapper arrives as it was raised, also from a worker.
    """

    def __init__(
        self, records: list[dict], mapper: Callable, sampler: Sampler, batch_size: int = 1, workers: int = 0
    ):
        """`batch_size` tiles at a time, for this process; with 0 `workers` it loads them itself.

        Args:
            mapper: called as mapper(record, counter). sampler: yields (counter, index), or indexes (counter 0).
        """
        self.sampler, self.batch_size = sampler, batch_size
        self._loader = DataLoader(
            _Mapped(records, mapper),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_list,
            worker_init_fn=_one_thread,
            multiprocessing_context=_start_method() if workers else None,
        )

    def __len__(self):
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            for item in batch:
                if isinstance(item, InputError):
                    raise item
            yield batch


def evaluation_loader(records: list[dict], mapper: Callable, workers: int = 0) -> TileLoader:
    """Every record once, in order, one at a time, split over the processes.

    Raises:
        InputError: there is no record.
    """
    if not records:
        raise InputError("the test data have no tile.")
    return TileLoader(records, mapper, InferenceSampler(len(records)), 1, workers)


class _Mapped(Dataset):
    """`records` passed through `mapper`."""

    def __init__(self, records: list[dict], mapper: Callable):
        self.records, self.mapper = records, mapper

    def __len__(self):
        return len(self.records)

    def __getitem__(self, key):
        counter, index = key if isinstance(key, tuple) else (0, key)
        try:
            return self.mapper(self.records[index], counter)
        except InputError as error:
            # Raised in a worker, it would reach the user wrapped in that worker's traceback.
            return error


def _start_method() -> str | None:
    # The processes of a distributed training are spawned and would spawn their workers too: seconds each, at every
    # evaluation again.
    return "fork" if sys.platform == "linux" else None


def _as_list(batch: list) -> list:
    return batch


def _one_thread(worker_id: int) -> None:
    # Workers that each take all cores slow the training down instead of feeding it.
    torch.set_num_threads(1)
