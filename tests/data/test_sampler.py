import itertools

from fusiondet.data.sampler import (
    FewLabelsSampler,
    TileLoader,
    TrainingSampler,
    choose_labelled,
    evaluation_loader,
)
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


# ---- few labels ----


@pytest.mark.parametrize(("share", "kept"), [(0.1, 2), (0.3, 6), (1.0, 20), (0.001, 1)])
def test_a_share_of_the_tiles_is_labelled_and_at_least_one(share, kept):
    assert choose_labelled(20, share, seed=3).sum() == kept


def test_the_labelled_tiles_follow_from_the_seed_and_are_nested():
    few, more = choose_labelled(20, 0.1, seed=3), choose_labelled(20, 0.3, seed=3)
    assert (few <= more).all() and (few == choose_labelled(20, 0.1, seed=3)).all()
    assert (more != choose_labelled(20, 0.3, seed=4)).any()


LABELLED = np.arange(10) % 3 == 0  # 4 of 10


def mixed(rank=0, world_size=1, per_batch=(2, 4), labelled=LABELLED, seed=3):
    return FewLabelsSampler(labelled, per_batch, seed, rank, world_size)


def test_every_batch_begins_with_its_labelled_tiles():
    pairs = take(mixed(), 10 * 6)
    assert [counter for counter, _ in pairs] == list(range(60))
    for i in range(0, 60, 6):
        assert [LABELLED[index] for _, index in pairs[i : i + 6]] == [True] * 2 + [False] * 4


def test_either_kind_has_its_own_epochs():
    batches = [[index for _, index in take(mixed(), 60)][i : i + 6] for i in range(0, 60, 6)]
    for kind, tiles in ((slice(0, 2), {0, 3, 6, 9}), (slice(2, 6), {1, 2, 4, 5, 7, 8})):
        drawn = [index for batch in batches for index in batch[kind]]
        epochs = [drawn[i : i + len(tiles)] for i in range(0, len(drawn) - len(tiles) + 1, len(tiles))]
        assert all({*epoch} == tiles for epoch in epochs) and epochs[0] != epochs[1]


def test_each_process_has_its_part_of_either_kind():
    single, halves = take(mixed(), 24), [take(mixed(rank, 2), 12) for rank in range(2)]
    assert [pair for step in zip(*halves, strict=True) for pair in step] == single
    for half in halves:
        assert [LABELLED[index] for _, index in half] == [True, False, False] * 4


def test_unlabelled_tiles_may_be_left_out():
    indices = [index for _, index in take(mixed(per_batch=(2, 0)), 8)]
    assert {*indices[:4]} == {*indices[4:]} == {0, 3, 6, 9}


@pytest.mark.parametrize("stop", [0, 6, 18])
def test_a_resumed_mix_goes_on_where_training_was(stop):
    whole, first, second = take(mixed(), 48), mixed(), mixed(seed=99)
    take(first, 40)
    first.consumed = stop
    state = first.state_dict()
    assert all(type(value) is int for value in state.values())
    take(second, 12)
    second.load_state_dict(state)
    assert take(second, 48 - stop) == whole[stop:]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (mixed(labelled=~LABELLED), "choice of labelled tiles .DATASETS.LABEL_SHARE, SEED"),
        (mixed(per_batch=(4, 4)), "another SOLVER.IMS_PER_BATCH"),
        (mixed(per_batch=(2, 2)), "another DATALOADER.UNLABELLED_PER_BATCH"),
        (TrainingSampler(10, 3), "another choice .* and SOLVER.IMS_PER_BATCH and DATALOADER.UNLABELLED"),
    ],
)
def test_a_mix_of_another_kind_is_not_resumed(other, named):
    for one, state in ((mixed(), other.state_dict()), (other, mixed().state_dict())):
        with pytest.raises(InputError, match=named):
            one.load_state_dict(state)


def test_without_tiles_of_a_kind_there_is_no_mix():
    with pytest.raises(
        InputError, match="UNLABELLED_PER_BATCH is 4, but each of the 10 training tiles is labelled"
    ):
        mixed(labelled=np.ones(10, bool))
    with pytest.raises(InputError, match="no labelled training tile is left"):
        mixed(labelled=np.zeros(10, bool))
