"""Which rows share a batch, and how batches are padded."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_rnn_seq2seq.data.batching import Collator, plan_batches

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=120)


@given(
    lengths=LENGTHS,
    batch_size=st.none() | st.integers(1, 20),
    max_tokens=st.integers(1, 500),
    shuffle=st.booleans(),
)
def test_a_plan_has_every_row_once_within_its_limits(lengths, batch_size, max_tokens, shuffle):
    source, target = [s for s, _ in lengths], [t for _, t in lengths]
    options = {"batch_size": batch_size, "max_tokens": max_tokens, "shuffle": shuffle}
    plan = plan_batches(source, target, **options, seed=3, epoch=1)
    assert sorted(row for batch in plan for row in batch) == list(range(len(lengths)))
    for batch in plan:
        padded = len(batch) * (max(source[i] for i in batch) + max(target[i] for i in batch))
        assert padded <= max_tokens or len(batch) == 1
        assert batch and (batch_size is None or len(batch) <= batch_size)
    assert list(plan) == list(plan_batches(source, target, **options, seed=3, epoch=1))


def test_a_plan_depends_on_seed_and_epoch_and_pads_little():
    generator = np.random.default_rng(0)
    target = generator.integers(2, 40, 3000)
    source = np.clip(target + generator.integers(-3, 4, 3000), 1, None)
    options = {"batch_size": 50, "seed": 1, "epoch": 0}
    plan = plan_batches(source, target, **options)
    assert len(plan) == 60
    assert list(plan) != list(plan_batches(source, target, **{**options, "epoch": 1}))
    assert list(plan) != list(plan_batches(source, target, **{**options, "seed": 2}))
    together = {frozenset(batch) for batch in plan} & {
        frozenset(batch) for batch in plan_batches(source, target, **{**options, "epoch": 1})
    }
    assert not together  # another epoch mixes the rows of a length anew
    padded = sum(len(batch) * int(target[batch].max()) for batch in plan)
    assert padded < 1.06 * target.sum()
    ordered = plan_batches(source, target, batch_size=50, shuffle=False)
    longest = [int(target[batch].max()) for batch in ordered]
    assert longest == sorted(longest)


def test_rows_are_sorted_by_target_and_source():
    generator = np.random.default_rng(0)
    source, target = generator.integers(1, 30, (2, 500))
    order = [row for batch in plan_batches(source, target, batch_size=7, shuffle=False) for row in batch]
    assert order == sorted(range(500), key=lambda row: (target[row], source[row], row))


def test_a_million_rows_are_planned_in_seconds():
    source, target = lengths = np.random.default_rng(0).integers(2, 60, (2, 1_000_000))
    start = time.process_time()
    plan = plan_batches(*lengths, max_tokens=4096)
    assert time.process_time() - start < 10  # about 1.5 on an idle machine
    rows = plan.order
    assert np.array_equal(np.sort(rows), np.arange(1_000_000))
    assert np.all(np.diff(target[rows].astype(int) * 100 + source[rows]) >= 0)
    assert np.mean(np.diff(rows) > 0) < 0.6, "ties are in a random order"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "batch_size and max_tokens are both None"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"max_tokens": -1}, "max_tokens=-1: must be at least 1"),
    ],
)
def test_a_plan_needs_limits(options, message):
    with pytest.raises(ValueError, match=message):
        plan_batches([1], [1], **options)
    with pytest.raises(ValueError, match="source_lengths has 1 rows, target_lengths has 2"):
        plan_batches([1], [1, 2], batch_size=1)


def test_batches_are_padded_on_the_right():
    rows = [{"input_ids": [5, 2], "labels": [7, 8, 2]}, {"input_ids": [5, 6, 9, 2], "labels": [2]}]
    batch = Collator(pad_token_id=1)(rows)
    assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert batch["input_ids"].tolist() == [[5, 2, 1, 1], [5, 6, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[7, 8, 2], [2, -100, -100]]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert all(torch.equal(value, batch[name]) for name, value in Collator(pad_token_id=1)(columns).items())
    assert "labels" not in Collator()([{"input_ids": [1]}])
