import itertools

from fusiondet.data.sampler import TileLoader, TrainingSampler, evaluation_loader
from fusiondet.errors import InputError

import numpy as np
import pytest


def take(sampler, n):
    return list(itertools.islice(iter(sampler), n))


def test_every_epoch_holds_every_tile_once_in_another_order():
    pairs = take(TrainingSampler(10, seed=3), 30)
    assert [counter for counter, _ in pairs] == list(range(30))
    epochs = [[index for _, index in pairs[i : i + 10]] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert pairs == take(TrainingSampler(10, seed=3), 30) != take(TrainingSampler(10, seed=4), 30)


def test_ranks_share_the_same_sequence():
    single = take(TrainingSampler(7, seed=1), 24)
    ranks = [take(TrainingSampler(7, 1, rank, 3), 8) for rank in range(3)]
    assert [pair for step in zip(*ranks, strict=True) for pair in step] == single


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 23])
def test_a_resumed_sampler_goes_on_where_training_was(stop):
    whole = take(TrainingSampler(10, seed=3), 40)
    first = TrainingSampler(10, seed=3)
    take(first, 35)  # a loader fetches ahead; what counts is what training consumed
    first.consumed = stop
    second = TrainingSampler(10, seed=99)
    second.load_state_dict(first.state_dict())
    assert take(second, 40 - stop) == whole[stop:]


def test_resume_on_another_number_of_processes_keeps_the_sequence():
    sampler = TrainingSampler(10, seed=3)
    sampler.consumed = 8
    halves = [TrainingSampler(10, 3, rank, 2) for rank in range(2)]
    for half in halves:
        half.load_state_dict(sampler.state_dict())
    merged = sorted(take(halves[0], 6) + take(halves[1], 6))
    assert merged == take(TrainingSampler(10, seed=3), 20)[8:]


def test_the_state_is_plain_numbers_and_refuses_other_data():
    state = TrainingSampler(10, seed=3).state_dict()
    assert all(type(value) is int for value in state.values())
    with pytest.raises(InputError, match="trained on 10 tiles, now there are 11"):
        TrainingSampler(11, seed=3).load_state_dict(state)


def test_no_tile_is_an_input_error():
    with pytest.raises(InputError, match="no tile left"):
        TrainingSampler(0, seed=1)
    with pytest.raises(InputError, match="no tile"):
        evaluation_loader([], None)


def test_unshuffled_is_in_order():
    assert [index for _, index in take(TrainingSampler(3, 0, shuffle=False), 7)] == [0, 1, 2, 0, 1, 2, 0]


def mapper(record, counter):
    return record, counter, float(np.random.default_rng((5, counter)).random())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_and_start_at_the_position_at_first_use(workers):
    records = [f"tile {i}" for i in range(5)]
    loader = TileLoader(records, mapper, TrainingSampler(5, seed=2), batch_size=2, workers=workers)
    iterator = iter(loader)
    loader.sampler.consumed = 4  # as a checkpoint does, after the trainer made the iterator
    batches = list(itertools.islice(iterator, 4))
    expected = [
        mapper(records[index], counter) for counter, index in take(TrainingSampler(5, seed=2), 12)[4:]
    ]
    assert [item for batch in batches for item in batch] == expected


def test_the_test_loader_yields_every_record_once_in_order():
    loader = evaluation_loader(["a", "b", "c"], lambda record, counter: record + str(counter))
    batches = list(loader)
    assert len(loader) == 3 and batches == [["a0"], ["b0"], ["c0"]]


def failing(record, counter):
    raise InputError(f"{record}: damaged")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_input_error_arrives_as_it_was_raised(workers):
    with pytest.raises(InputError, match=r"^a.tif: damaged$"):
        next(iter(evaluation_loader(["a.tif"], failing, workers)))
