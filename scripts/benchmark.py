"""Measure training and decoding: `python scripts/benchmark.py train` or `decode`, with `--json FILE` for a program.

`train` compares, in one process, the training step of the model with the form a tutorial writes (a cell called at each
position, the output layer inside the loop, every padded position scored, the default Adam) on the same parameters;
their losses are printed and must agree. `decode` reports sentences per second of `generate()`, greedy and with beam 5
on random weights that never end a sentence, so that every sentence takes --target_length steps.

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
    parser.add_argument("--rounds", type=count, default=7, help="measurements of each variant (default: 7)")
    parser.add_argument("--threads", type=count, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="also write one object per variant")
    return parser.parse_args(argv)


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


def decoding_variants(arguments: Namespace) -> tuple[dict[str, Callable[[], float]], int]:
    """`generate()` on one batch, each returning the tokens of the longest hypothesis, and the sentences of a batch."""
    import torch

    model = build(arguments).eval()
    source, _ = ragged_batch(arguments)
    steps = {"min_new_tokens": arguments.target_length, "max_new_tokens": arguments.target_length}

    def variant(**options: object) -> Callable[[], float]:
        @torch.no_grad()
        def decode() -> float:
            return float(model.generate(source, do_sample=False, **steps, **options).shape[1] - 1)

        return decode

    return {"greedy": variant(), "beam 5": variant(num_beams=5)}, arguments.batch_size


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
    """Measures and prints a table; the first variant is the reference of the ratios, which compare CPU time."""
    arguments = parse(argv)
    import torch

    torch.set_num_threads(arguments.threads)
    training = arguments.what == "train"
    variants, units = (training_variants if training else decoding_variants)(arguments)
    rows = measure(variants, arguments.rounds)
    rate = "tokens_per_s" if training else "sentences_per_s"
    reference = next(iter(rows.values()))["cpu_s"]
    report = [
        {"variant": name, rate: units / row["wall_s"], "ratio_to_reference": reference / row["cpu_s"], **row}
        for name, row in rows.items()
    ]
    print(f"{'variant':18}{rate:>18}{'CPU ms':>10}{'ratio':>8}{'first loss' if training else 'steps':>14}")
    for row in report:
        ratio = f"{row['ratio_to_reference']:8.2f}{row['value']:14.6f}"
        print(f"{row['variant']:18}{row[rate]:18.1f}{row['cpu_s'] * 1e3:10.1f}{ratio}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command_line.run(main)
