"""How an update is divided into processes and micro-batches, and how its batches are loaded."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.loader import BatchLoader, Update, UpdatePlan
from tests.helpers.training_runs import corpus


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5))
def test_parts_of_an_update_are_a_partition(rows, processes, accumulation):
    update = Update(epoch=0, index=0, updates_in_epoch=1, rows=tuple(range(rows)), source_tokens=1, target_tokens=1)
    parts = [update.parts(rank, processes, accumulation) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1, "every rank runs the same number of passes"
    assert len(parts[0]) <= accumulation
    seen = [row for part in parts for micro_batch in part for row in micro_batch]
    assert sorted(seen) == list(range(rows))
    sizes = [len(micro_batch) for part in parts for micro_batch in part if micro_batch]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("limits", [{"batch_size": 8, "max_tokens": None}, {"batch_size": 8, "max_tokens": 60}])
def test_every_row_once_in_each_epoch(limits):
    rows = corpus(53)
    plan = UpdatePlan(rows["source_length"][:], rows["target_length"][:], seed=3, **limits)
    epochs = [list(group) for _, group in itertools.groupby(itertools.islice(plan.updates(), 40), lambda u: u.epoch)]
    for updates in epochs[:2]:
        assert sorted(row for update in updates for row in update.rows) == list(range(53))
        assert updates[-1].index + 1 == updates[-1].updates_in_epoch
        for update in updates:
            assert update.target_tokens == sum(rows[row]["target_length"] for row in update.rows)
    assert [u.rows for u in epochs[0]] != [u.rows for u in epochs[1]], "epochs have their own order"
    position = epochs[1][2]
    again = next(plan.updates(position.epoch, position.index))
    assert again == position, "a position is enough to continue"


def test_a_rank_without_rows_gets_a_filler():
    rows = corpus(10)
    update = Update(epoch=0, index=0, updates_in_epoch=1, rows=(4, 7, 9), source_tokens=1, target_tokens=1)
    loaders = [BatchLoader(rows, Collator(), rank=rank, processes=2, accumulation=2) for rank in range(2)]
    first, second = (loader.load(update) for loader in loaders)
    assert [batch.target_tokens > 0 for batch in first] == [True, True]
    assert [batch.target_tokens > 0 for batch in second] == [True, False]
    assert sum(b.target_tokens for b in first + second) == sum(rows[row]["target_length"] for row in (4, 7, 9))


def test_an_error_in_the_loading_thread_reaches_the_loop():
    plan = UpdatePlan([3, 3], [3, 3], batch_size=2, max_tokens=None, seed=0)
    loader = BatchLoader([], Collator())
    with pytest.raises(TypeError):
        next(loader.stream(plan.updates()))
