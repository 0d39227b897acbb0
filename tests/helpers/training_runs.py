"""Small training runs for the tests: a synthetic corpus, two tiny models, and a loop that joins them.

As a program, `python tests/helpers/training_runs.py FILE.json` (or under `accelerate launch`) runs a list of such
runs in one process: [{"model": "bart", "options": {...}}, ...].
"""

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.bpe_dropout import BpeDropout
from hf_rnn_seq2seq.data.loader import BatchLoader, MicroBatch, Update
from hf_rnn_seq2seq.data.streaming import TextStream
from hf_rnn_seq2seq.data.token_columns import encode
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import TrainingError
from hf_rnn_seq2seq.training.adaptation import freeze
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.launch import build_accelerator
from hf_rnn_seq2seq.training.loop import TrainingLoop
from hf_rnn_seq2seq.training.sequence_objectives import build_objective
from hf_rnn_seq2seq.training.state import TrainingState
from hf_rnn_seq2seq.training.validation import Validator

LIMITS = {"max_source_length": 128, "max_target_length": 128}
VOCABULARY = 24
SIZES = {"source_vocab_size": VOCABULARY, "target_vocab_size": VOCABULARY}  # facts of a run
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def corpus(rows: int, seed: int = 0, longest: int = 9) -> datasets.Dataset:
    """Sequences and their reversal, of ragged length, with the columns that `tokenize_corpus` gives."""
    draw = random.Random(seed)
    table = []
    for number in range(rows):
        words = [draw.randrange(4, VOCABULARY) for _ in range(draw.randrange(1, longest))]
        source, target = [*words, 2], [*reversed(words[: draw.randrange(1, len(words) + 1)]), 2]
        lengths = {"source_length": len(source), "target_length": len(target)}
        table.append({"id": number, "input_ids": source, "labels": target, **lengths})
    return datasets.Dataset.from_list(table)


def text_stream(rows: int, buffer: int, longest: int = 128) -> TextStream:
    """The same task as text of letters, one word a letter, as a stream of two shards."""
    letters = "abcdefghijklmnopqrst"

    def read(numbers: list[int]) -> Iterator[dict[str, Any]]:
        for number in numbers:
            draw = random.Random(number)
            words = [draw.choice(letters) for _ in range(draw.randrange(1, 9))]
            yield {"id": number, "source": " ".join(words), "target": " ".join(reversed(words[: len(words) // 2 + 1]))}

    shards = {"numbers": [list(range(rows // 2)), list(range(rows // 2, rows))]}
    features = datasets.Features({name: datasets.Value("string") for name in ("source", "target")})
    features["id"] = datasets.Value("int64")
    stream = datasets.IterableDataset.from_generator(_each(read), gen_kwargs=shards, features=features)
    tokenizer = build_tokenizer([" ".join(letters)], [], algorithm="word", vocab_size=VOCABULARY, min_frequency=1)
    return TextStream(stream, tokenizer, max_source_length=longest, max_target_length=longest, buffer=buffer)


def letter_rows(rows: int) -> tuple[datasets.Dataset, PreTrainedTokenizerFast]:
    """Text of words of at most eight letters, and a byte-pair tokenizer with the vocabulary size of the models."""
    letters, pairs = "abcdefgh", ["ab", "cd", "ef", "gh", "ba", "dc", "fe", "hg", "ac", "eg"]
    merges = [(pair[0], pair[1]) for pair in pairs] + [("ab", "cd"), ("ef", "gh")]
    names = ["<pad>", "<s>", "</s>", "<unk>", *letters, *(first + second for first, second in merges)]
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    draw, table = random.Random(0), []
    for number in range(rows):
        words = ["".join(draw.choice(pairs) for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(1, 4))]
        table.append({"id": number, "source": " ".join(words), "target": " ".join(reversed(words))})
    return datasets.Dataset.from_list(table), PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def dropout_table(rows: int) -> datasets.Dataset:
    """`letter_rows`, tokenized with BPE dropout when they are read."""
    texts, tokenizer = letter_rows(rows)
    table = texts.map(encode, batched=True, fn_kwargs={"tokenizer": tokenizer})
    return table.with_transform(BpeDropout(tokenizer, 0.4, **LIMITS))


def dropout_stream(rows: int, buffer: int) -> TextStream:
    """The same as a stream."""
    texts, tokenizer = letter_rows(rows)
    redraw = BpeDropout(tokenizer, 0.4, **LIMITS)
    return TextStream(texts.to_iterable_dataset(), tokenizer, **LIMITS, buffer=buffer, redraw=redraw)


def _each(read: Callable[[Any], Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Reads the shards, each of which `datasets` passes as a list of one element."""

    def read_all(numbers: list[list[int]]) -> Iterator[Any]:
        for shard in numbers:
            yield from read(shard)

    return read_all


def build_model(kind: str) -> Any:
    """`bart`, `rnn`, `rnn_tied` (and label smoothing), `rnn_dropout`, `rnn_sampled` or
    `rnn_certain`; the same weights every time."""
    torch.manual_seed(7)
    if kind == "bart":
        sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
        sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
        sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model", "max_position_embeddings"), 16)
        none = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
        config = BartConfig(vocab_size=VOCABULARY, forced_eos_token_id=None, **sizes, **none, **SPECIAL)
        return BartForConditionalGeneration(config)
    fields: dict[str, Any] = {"vocab_size": VOCABULARY, "embedding_size": 12, "hidden_size": 12, **SPECIAL}
    if kind == "rnn_tied":
        fields |= {"tie_word_embeddings": True, "share_encoder_decoder_embeddings": True, "label_smoothing": 0.1}
    if kind == "rnn_sampled":
        fields |= {"attention_alignment": "sampled", "sampled_attention_entropy": 0.1}
    if kind == "rnn_dropout":
        fields |= {"dropout": 0.2}
    model = RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(**fields))
    if kind == "rnn_certain":  # whatever is drawn from it is one word five times
        model.lm_head.bias.data[7] = 60.0
        model.generation_config.max_new_tokens = 5
    return model


def text_of(rows: list[list[int]]) -> list[str]:
    """Ids as words, without the special ones."""
    return [" ".join(str(word) for word in row if word > 2) for row in rows]


def arguments(output_dir: Path | str | None, **options: Any) -> TrainingOptions:
    """Options of a short run without translations or trackers."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "eval_steps": None,
        "save_steps": None,
        "save_total_limit": None,
        "predict_with_generate": False,
        "report_to": [],
    }
    return TrainingOptions(output_dir=str(output_dir) if output_dir else None, **{**defaults, **options})


def build_loop(
    kind: str,
    options: TrainingOptions,
    accelerator: Accelerator | None = None,
    *,
    rows: int = 70,
    model: Any = None,
    validator: Validator | None = None,
    train: Any = None,
    **more: Any,
) -> TrainingLoop:
    """A loop over the synthetic corpus; by default it measures the loss of 15 other rows."""
    accelerator = accelerator or build_accelerator(options)
    if validator is None:
        validator = Validator(BatchLoader(corpus(15, seed=1), Collator(), device=accelerator.device), batch_size=4)
    model = model or build_model(kind)
    objective = build_objective(options, model, text_of)
    facts = {**more.pop("facts", {}), **freeze(model, options.freeze)}
    return TrainingLoop(
        TrainingState(model, options, accelerator, objective),
        corpus(rows) if train is None else train,
        collate=Collator(),
        validator=validator,
        facts=facts,
        **more,
    )


def log_lines(output_dir: Path, event: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's log."""
    text = (output_dir / "train_log.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


def record(loop: TrainingLoop) -> list[Any]:
    """What this process trains on, filled while it runs: ids of the source and the labels of every row that counts."""
    seen: list[Any] = []
    run_update = loop.run_update

    def recorded(update: Update, micro_batches: list[MicroBatch]) -> None:
        for batch in (batch for batch in micro_batches if batch.target_tokens):
            columns = (batch.inputs["input_ids"].tolist(), batch.inputs["labels"].tolist())
            for source, labels in zip(*columns, strict=True):
                seen.append([[i for i in source if i != 0], [i for i in labels if i != -100]])
        run_update(update, micro_batches)

    loop.run_update = recorded  # type: ignore[method-assign]
    return seen


def main() -> int:
    torch.set_num_threads(1)
    runs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    accelerator = None
    reason = None
    for run in runs:
        options = arguments(**run["options"])
        accelerator = accelerator or build_accelerator(options)
        train = text_stream(70, run["buffer"]) if "buffer" in run else None
        train = dropout_table(70) if run.get("bpe_dropout") else train
        loop = build_loop(run["model"], options, accelerator, rows=run.get("rows", 70), train=train)
        seen = record(loop)
        try:
            reason = loop.run()
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        file = Path(options.output_dir or ".") / f"seen{accelerator.process_index}of{accelerator.num_processes}.json"
        file.write_text(json.dumps(seen), encoding="utf-8")
        accelerator.free_memory()
    assert accelerator is not None
    accelerator.end_training()
    return 143 if reason == "SIGTERM" else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
