"""Streamed training: every row once, the same for any number of parts, and an exact resume."""

import itertools
import json

import datasets
import pytest
import torch

from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.streaming import StreamPlan, TextStream
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.components import in_memory
from hf_rnn_seq2seq.training.dry_run import dry_run
from tests.helpers.training_checks import assert_identical_states, assert_same_weights, copy_until, weights
from tests.helpers.training_runs import SIZES, arguments, build_loop, log_lines, record, text_stream

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def stream_of(kind, folder):
    """53 rows of each kind of stream: a table in a file, a saved data set, a generator with two shards."""
    if kind == "generator":
        return text_stream(53, 10).rows
    rows = [{"source": "x " * (n % 7 + 1), "target": f"y{n}"} for n in range(53)]
    if kind == "hub":  # what a data set of the Hub streams from: several files of its own kind
        files = [str(folder / f"part{number}.parquet") for number in range(2)]
        for start, file in zip((0, 30), files, strict=True):
            part = [{**row, "id": 0} for row in rows[start : start + 30]]
            datasets.Dataset.from_list(part).to_parquet(file)
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    if kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
        found = load_corpus(
            DataArguments(
                dataset_name=str(folder / "saved"), source_lang="source", target_lang="target", streaming=True
            )
        )
    else:
        path = folder / f"rows.{kind}"
        table = datasets.Dataset.from_list([*rows[:20], {"source": " ", "target": "unusable"}, *rows[20:]])
        table.to_parquet(path) if kind == "parquet" else table.to_json(path)
        found = load_corpus(DataArguments(train_file=path, source_lang="source", target_lang="target", streaming=True))
    return found.splits["train"]


def place_of(update):
    return (update.epoch, update.index, update.updates_in_epoch, [text["target"] for text in update.texts])


@pytest.mark.parametrize("kind", ["generator", "hub", "saved", "parquet", "jsonl"])
def test_every_row_once_in_each_epoch_and_any_place_is_enough_to_continue(kind, tmp_path):
    """Windows of 10 rows, updates of 4, 53 rows: the last window and the last update of every window are short."""
    rows = stream_of(kind, tmp_path)
    plan = StreamPlan(rows, batch_size=4, buffer=10, seed=3)
    updates = list(itertools.islice(plan.updates(), 40))
    epochs = [list(group) for _, group in itertools.groupby(updates, lambda update: update.epoch)]
    expected = sorted(row["target"] for row in stream_of(kind, tmp_path / "again" if kind == "saved" else tmp_path))
    assert len(expected) == 53
    for epoch in epochs[:2]:
        assert sorted(text["target"] for update in epoch for text in update.texts) == expected
        assert [update.index for update in epoch] == list(range(16)) == list(range(epoch[-1].updates_in_epoch))
        assert {update.updates_in_epoch for update in epoch[:-1]} == {0}
    assert [place_of(u)[3] for u in epochs[0]] != [place_of(u)[3] for u in epochs[1]], "epochs have their own order"
    for stop in (0, 1, 2, 5, 14, 15, 16, 20):
        last = json.loads(json.dumps(updates[stop].after))
        place = (0, stop + 1, last) if stop < 15 else (1, stop - 15, last)
        fresh = StreamPlan(
            stream_of("generator", tmp_path) if kind == "generator" else rows, batch_size=4, buffer=10, seed=3
        )
        following = list(itertools.islice(fresh.updates(*place), 6))
        assert list(map(place_of, following)) == list(map(place_of, updates[stop + 1 : stop + 7])), stop


def test_a_streamed_run_does_not_depend_on_its_parts(tmp_path):
    for name, sizes in (("whole", (8, 1)), ("split", (2, 4))):
        options = arguments(tmp_path / name, per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1])
        assert build_loop("rnn", options, train=text_stream(70, 30)).run() == "max_steps"
    losses = [[line["loss"] for line in log_lines(tmp_path / name, "train")] for name in ("whole", "split")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5) and len(losses[0]) == 12
    # Adam makes steps of one size of gradients of any, rounded ones included.
    last = [weights(tmp_path / name / "checkpoints" / "step-00000012") for name in ("whole", "split")]
    assert_same_weights(*last, tolerance=2e-4)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["target_tokens"] == json.loads((tmp_path / "split" / "summary.json").read_text())["target_tokens"]
    assert summary["epochs"] == 1, "70 rows in windows of 30, 30, 10 make 4 + 4 + 2 updates"


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "step", [2, pytest.param(4, marks=pytest.mark.long), pytest.param(9, marks=pytest.mark.long), 10]
)
def test_a_stopped_stream_resumes_bit_for_bit(step, tmp_path):
    options = {"save_steps": 1, "ema_decay": 0.9, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    build_loop("rnn_dropout", arguments(tmp_path / "whole", **options), train=text_stream(70, 30)).run()
    copy_until(tmp_path / "whole", tmp_path / "resumed", step=step)
    torch.rand(17)
    again = arguments(tmp_path / "resumed", resume_from_checkpoint="latest", **options)
    assert build_loop("rnn_dropout", again, train=text_stream(70, 30)).run() == "max_steps"
    assert_identical_states(tmp_path / "whole", tmp_path / "resumed", step=12)
    with pytest.raises(ArgumentError, match="was trained with streaming_buffer 30, this run has 20"):
        build_loop("rnn_dropout", again, train=text_stream(70, 20)).run()
    with pytest.raises(ArgumentError, match="training rows None, this run has 70"):
        build_loop("rnn_dropout", again).run()


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path):
    """A limit of three tokens empties whole micro-batches; the update counts the rest."""
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 19, "save_steps": 9}
    options["logging_steps"] = 1
    loop = build_loop("rnn", arguments(tmp_path / "run", **options), train=text_stream(70, 30, longest=3))
    seen = record(loop)
    loop.run()
    kept = [
        row for row in text_stream(70, 30).rows if len(row["source"].split()) < 3 and len(row["target"].split()) < 3
    ]
    assert 0 < len(kept) < 40
    assert sorted(len(source) for source, _ in seen) == sorted(len(row["source"].split()) + 1 for row in kept)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["left_out_rows"], summary["skipped_updates"]) == (70 - len(kept), 0)
    assert summary["target_tokens"] == sum(len(row["target"].split()) + 1 for row in kept)
    log = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    lines = [line for line in log if line["event"] == "train"]
    assert lines[-1]["left_out_rows"] == summary["left_out_rows"]
    learned = sum(line["target_tokens_per_second"] > 0 for line in lines)
    steps = {int(state["step"]) for state in loop.state.optimizer.state.values()}
    assert steps == {learned} and learned < 19, "an update without a row moves nothing"


def test_a_stream_has_a_tokenizer_of_its_own():
    """A second thread may use the original tokenizer, which swaps its vocabularies while it encodes a target."""
    words = {"algorithm": "word", "joint": False, "min_frequency": 1}
    tokenizer = build_tokenizer(["a b c"], ["z y a"], vocab_size=9, **words)
    row = {"id": 0, "source": "c b a", "target": "a y"}
    stream = TextStream(None, tokenizer, max_source_length=9, max_target_length=9, buffer=1)
    tokenizer._target_backend, tokenizer._source_backend = tokenizer._source_backend, tokenizer._target_backend
    columns = stream.tokenize([row])
    read = [
        stream.tokenizer.decode_source(columns["input_ids"][0][:-1]),
        stream.tokenizer.decode(columns["labels"][0][:-1]),
    ]
    assert read == ["c b a", "a y"]


def test_options_that_need_a_known_length_are_refused(tmp_path):
    for options, message in (
        ({"train_batch_tokens": 100}, "train_batch_tokens=100: the lengths of a streamed corpus"),
        ({"max_steps": -1}, "max_steps=-1: the length of a streamed corpus"),
    ):
        with pytest.raises(ArgumentError, match=message):
            build_loop("rnn", arguments(tmp_path, **options), train=text_stream(20, 10))
    timed = arguments(tmp_path / "timed", max_steps=-1, max_train_seconds=100, num_train_epochs=2)
    loop = build_loop("rnn", timed, train=text_stream(20, 10))
    assert loop.run() == "num_train_epochs" and loop.state.progress.epochs == 2
    empty = text_stream(2, 10)
    nothing = TextStream(empty.rows.take(0), empty.tokenizer, max_source_length=9, max_target_length=9, buffer=10)
    with pytest.raises(ValueError, match="no usable row"):
        build_loop("rnn", arguments(tmp_path / "none"), train=nothing).run()


def test_a_dry_run_of_a_stream_and_a_split_in_memory(tmp_path):
    text = dry_run(build_loop("rnn", arguments(None, dry_run=True), train=text_stream(40, 20), facts=SIZES))
    assert "streamed, 20 at a time" in text and "12 at most" in text and "target tokens on average" in text
    table = in_memory(text_stream(9, 5).rows)
    assert len(table) == 9 and table.column_names == ["source", "target", "id"]
