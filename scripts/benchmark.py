"""Measure training and decoding: `python scripts/benchmark.py train` or `decode`, with `--json FILE` for a program.

`train` compares, in one process, the training step of the model with the form a tutorial writes (a cell called at each
position, the output layer inside the loop, every padded position scored, the default Adam) on the same parameters;
their losses are printed and must agree. `decode` compares `model.search` with `generate()`, greedy and with beams:
on the sentences of --input with --model (sorted by length where that is what the search's callers do), or on random
weights that never end a sentence, so that every sentence takes --target_length steps.

The default is a bidirectional LSTM 2x256 and an LSTM 512 with general attention and input feeding, vocabulary 8000.
Variants take turns, so that a slow moment of the machine falls on all of them; read the ratios, not the seconds.
"""

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command_line.Parser(__doc__)
    count = command_line.at_least(1)
    parser.add_argument("what", choices=("train", "decode"))
    parser.add_argument("--cell_type", choices=("lstm", "gru"), default="lstm")
    parser.add_argument("--vocab_size", type=command_line.at_least(8), default=8000)
    parser.add_argument("--embedding_size", type=count, default=256)
    parser.add_argument("--hidden_size", type=command_line.at_least(2), default=512)
    parser.add_argument("--batch_size", type=count, default=64, help="sentences (default: 64)")
    parser.add_argument("--source_length", type=count, default=14, help="longest source in tokens (default: 14)")
    parser.add_argument("--target_length", type=count, default=15, help="longest target in tokens (default: 15)")
    parser.add_argument("--model", metavar="DIR", help="decode: a trained model; needs --input")
    parser.add_argument("--input", metavar="FILE", help="decode: source sentences, one a line; may be .gz")
    parser.add_argument("--sentences", type=count, help="decode: only the first so many of --input")
    parser.add_argument("--num_beams", type=command_line.at_least(2), default=5, help="decode: beams (default: 5)")
    parser.add_argument("--rounds", type=count, default=7, help="measurements of each variant (default: 7)")
    parser.add_argument("--threads", type=count, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="also write one object per variant")
    arguments = parser.parse_args(argv)
    if (arguments.model is None) != (arguments.input is None):
        parser.error("--model and --input go together")
    return arguments


def build(arguments: Namespace, **fields: object):
    import torch

    from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration

    torch.manual_seed(0)
    sizes = {name: getattr(arguments, name) for name in ("cell_type", "vocab_size", "embedding_size", "hidden_size")}
    return RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(**sizes, **fields))


def ragged_batch(arguments: Namespace):
    """Source and label ids (batch, length) whose rows are three quarters to all of the longest, like bucketed text."""
    import torch

    generator = torch.Generator().manual_seed(1)

    def side(longest: int, padding: int) -> torch.Tensor:
        shape = (arguments.batch_size, longest)
        lengths = torch.randint(max(1, longest * 3 // 4), longest + 1, shape[:1], generator=generator)
        lengths[0] = longest
        ids = torch.randint(4, arguments.vocab_size, shape, generator=generator)
        return ids.masked_fill(torch.arange(longest) >= lengths[:, None], padding)

    return side(arguments.source_length, 0), side(arguments.target_length, -100)


def tutorial_loss(model, source, labels):
    """The loss as a tutorial computes it, everything inside the loop over positions: LSTM or GRU with feeding."""
    import torch
    from torch.nn import functional as F

    inner, config = model.model, model.config
    encoded = inner.encoder(source)
    layers, _ = inner.bridge(encoded)
    state, kernel = layers[0], inner.decoder.layers[0].kernel
    cell = (kernel.weight_ih_l0, kernel.weight_hh_l0, kernel.bias_ih_l0, kernel.bias_hh_l0)
    fed = state[0].new_zeros(len(source), config.readout_size)
    words = model.prepare_decoder_input_ids_from_labels(labels)
    total = 0.0
    for time_step in range(labels.shape[1]):
        inputs = torch.cat([inner.decoder.embed(words[:, time_step]), fed], 1)
        state = torch.lstm_cell(inputs, state, *cell) if len(state) == 2 else (torch.gru_cell(inputs, state[0], *cell),)
        keys = inner.decoder.attention.key(encoded.last_hidden_state)
        scores = torch.bmm(keys, state[0].unsqueeze(2)).squeeze(2).masked_fill(~encoded.source_mask, float("-inf"))
        context = torch.bmm(scores.softmax(1).unsqueeze(1), encoded.last_hidden_state).squeeze(1)
        fed = torch.tanh(inner.decoder.readout.project(torch.cat([state[0], context], 1)))
        total = total + F.cross_entropy(model.lm_head(fed), labels[:, time_step], ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum()


def training_variants(arguments: Namespace) -> tuple[dict[str, Callable[[], float]], int]:
    """One training step of each variant, returning its loss, and the target tokens of a step."""
    import torch

    source, labels = ragged_batch(arguments)

    def variant(loss_of: Callable, fused: bool, bf16: bool = False, **fields: object) -> Callable[[], float]:
        model = build(arguments, **fields).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)

        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(model, source, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step

    def ours(model, source, labels):
        return model(input_ids=source, labels=labels).loss

    variants = {
        "tutorial": variant(tutorial_loss, fused=False),
        "loop": variant(ours, fused=True, decoder_recurrence="loop"),
        "scan": variant(ours, fused=True, decoder_recurrence="scan"),
        "scan bf16": variant(ours, fused=True, bf16=True, decoder_recurrence="scan"),
        "no feeding": variant(ours, fused=True, input_feeding=False),
        "no feeding bf16": variant(ours, fused=True, bf16=True, input_feeding=False),
    }
    return variants, int((labels != -100).sum())


def decoding_batches(arguments: Namespace) -> tuple[object, list, list]:
    """The model, and batches of (ids, mask): in the order of the input, and with sentences sorted by length."""
    import torch

    if arguments.model is None:
        source, _ = ragged_batch(arguments)
        batches = [(source, (source != 0).long())]
        return build(arguments).eval(), batches, batches
    from hf_rnn_seq2seq.evaluation import encode_sources, length_batches
    from hf_rnn_seq2seq.line_streams import LineReader
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model, device="cpu")
    lines = [line for line in LineReader(arguments.input) if line.strip()][: arguments.sentences]
    rows = encode_sources(tokenizer, lines)[0]

    def padded(chosen: Sequence[int]) -> tuple:
        ids = [torch.tensor(rows[index]) for index in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=model.config.pad_token_id)
        return ids, (ids != model.config.pad_token_id).long()

    size = arguments.batch_size
    plain = [padded(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    by_length = length_batches([len(row) for row in rows], size, max_tokens=10**9)
    return model, plain, [padded(chosen) for chosen in by_length]


def decoding_variants(arguments: Namespace) -> tuple[dict[str, Callable[[], float]], int]:
    """Each decodes all sentences and returns the tokens of the longest hypothesis; and the number of sentences."""
    model, plain, by_length = decoding_batches(arguments)
    limits: dict[str, object] = {"max_new_tokens": arguments.target_length}
    if arguments.model is None:  # random weights: no sentence may end, so that every variant takes as many steps
        limits["eos_token_id"] = None

    def variant(decode: Callable, batches: list, **options: object) -> Callable[[], float]:
        def run() -> float:
            found = [decode(input_ids=ids, attention_mask=mask, **limits, **options) for ids, mask in batches]
            return float(max(sequences.shape[1] for sequences in found) - 1)

        return run

    variants = {}
    for name, beams in (("greedy", 1), (f"beam {arguments.num_beams}", arguments.num_beams)):
        variants[name] = variant(model.generate, plain, num_beams=beams)
        if arguments.model is not None and arguments.batch_size > 1:
            variants[f"{name} sorted"] = variant(model.generate, by_length, num_beams=beams)
        for kind, suffix in (("float32", ""), ("bfloat16", " bf16"), ("int8", " int8")):
            variants[f"{name} search{suffix}"] = variant(model.search, by_length, num_beams=beams, weight_type=kind)
    return variants, sum(len(ids) for ids, _ in plain)


def measure(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Median and least seconds of each variant, in turns, after one unmeasured turn whose value is kept."""
    from tqdm import tqdm

    values = {name: run() for name, run in variants.items()}
    wall, cpu = {name: [] for name in variants}, {name: [] for name in variants}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, run in variants.items():
            started = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    return {
        name: {
            "value": values[name],
            "wall_s": statistics.median(wall[name]),
            "least_wall_s": min(wall[name]),
            "cpu_s": statistics.median(cpu[name]),
        }
        for name in variants
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints a table; ratios compare CPU time with the first variant (of the same beams, in decoding)."""
    arguments = parse(argv)
    import torch

    torch.set_num_threads(arguments.threads)
    training = arguments.what == "train"
    variants, units = (training_variants if training else decoding_variants)(arguments)
    rows = measure(variants, arguments.rounds)
    rate = "tokens_per_s" if training else "sentences_per_s"
    first = next(iter(rows))
    report = []
    for name, row in rows.items():
        reference = next((other for other in rows if not training and name.startswith(other)), first)
        ratio = rows[reference]["cpu_s"] / row["cpu_s"]
        wall = rows[reference]["wall_s"] / row["wall_s"]
        report.append(
            {"variant": name, rate: units / row["wall_s"], "ratio_to_reference": ratio, "wall_ratio": wall, **row}
        )
    print(f"{'variant':20}{rate:>18}{'CPU ms':>10}{'ratio':>8}{'first loss' if training else 'steps':>14}")
    for row in report:
        ratio = f"{row['ratio_to_reference']:8.2f}{row['value']:14.6f}"
        print(f"{row['variant']:20}{row[rate]:18.1f}{row['cpu_s'] * 1e3:10.1f}{ratio}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command_line.run(main)
