"""Measure training and decoding: `python scripts/benchmark.py train` or `decode`, with `--json FILE` for a program.

`train` compares, in one process, the training step of the model with the form a tutorial writes (a cell called at each
position, the output layer inside the loop, every padded position scored, the default Adam) on the same parameters;
their losses are printed and must agree. `--sizes A` or `B` names a model, and --model measures your own checkpoint
instead. "of peak" is the share of the rate of a large matrix product that the products of the step reach. `growth`
trains one size after the other along every axis. `decode` compares `model.search` with `generate()`, greedy and with
beams: on the sentences of --input with --model (sorted by length where that is what the search's callers do), or on
random weights that never end a sentence, so that every sentence takes --target_length steps. "different" counts the
sentences whose tokens are not those of `generate()`; --references FILE adds BLEU, which is what other weights cost;
`--batch_sizes 64 1` measures both in one run.

`--device cuda` measures on a GPU: wall time in the place of the CPU's, and the memory of the device.

Model A is a bidirectional LSTM 2x256 and an LSTM 512 with general attention and input feeding, vocabulary 8000; B has
two and four layers, of which one waits for the attention, and vocabulary 32,000. Options override their sizes.
Variants take turns, so that a slow moment of the machine falls on all of them; read the ratios, not the seconds.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command_line.Parser(__doc__)
    count = command_line.at_least(1)
    parser.add_argument("what", choices=("train", "growth", "decode"))
    parser.add_argument("--sizes", choices=("A", "B"), default="A", help="named model and batch (default: A)")
    parser.add_argument("--cell_type", choices=("lstm", "gru"), default="lstm")
    parser.add_argument("--vocab_size", type=command_line.at_least(8))
    parser.add_argument("--embedding_size", type=count)
    parser.add_argument("--hidden_size", type=command_line.at_least(2))
    parser.add_argument("--batch_size", type=count, help="sentences (default: 64 for A)")
    parser.add_argument("--source_length", type=count, help="longest source in tokens (default: 14 for A)")
    parser.add_argument(
        "--target_length", type=count, help="longest target in tokens (default: 15 for A, with --model its own limit)"
    )
    parser.add_argument("--full_rows", action="store_true", help="train: every sentence as long as the longest")
    parser.add_argument("--no_memory", dest="memory", action="store_false", help="train: do not measure peak memory")
    parser.add_argument(
        "--only", nargs="+", metavar="AXIS", help="growth: these axes, such as vocab_size (default: all)"
    )
    parser.add_argument("--model", metavar="DIR", help="your own checkpoint; decode needs --input with it")
    parser.add_argument("--input", metavar="FILE", help="decode: source sentences, one a line; may be .gz")
    parser.add_argument(
        "--references", metavar="FILE", help="decode: translations of --input, for BLEU beside the speed"
    )
    parser.add_argument("--shortlist", metavar="FILE", help="decode: a variant with this list of learn_shortlist.py")
    parser.add_argument("--sentences", type=count, help="decode: only the first so many of --input")
    parser.add_argument("--batch_sizes", type=count, nargs="+", metavar="N", help="decode: these batches, one by one")
    parser.add_argument("--num_beams", type=command_line.at_least(2), default=5, help="decode: beams (default: 5)")
    parser.add_argument("--rounds", type=count, default=7, help="measurements of each variant (default: 7)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="train, decode: where it runs (default: cpu)"
    )
    parser.add_argument("--threads", type=count, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="also write one object per variant")
    arguments = parser.parse_args(argv)
    if arguments.what == "decode" and (arguments.model is None) != (arguments.input is None):
        parser.error("--model and --input go together")
    if arguments.model is None and (arguments.references or arguments.shortlist):
        parser.error("--references and --shortlist need --model and --input")
    if arguments.device == "cuda":
        import torch

        if arguments.what == "growth":
            parser.error("--device cuda: growth measures processes on a CPU; must be cpu")
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no CUDA device; must be cpu")
    _fill_in(parser, arguments)
    return arguments


def _fill_in(parser: command_line.Parser, arguments: Namespace) -> None:
    """Sizes that were not given are those of the named model."""
    from benchmarks.training import BATCHES, GROWTH, MODELS

    given = zip(("batch_size", "source_length", "target_length"), BATCHES[arguments.sizes], strict=True)
    defaults = {**MODELS[arguments.sizes], **dict(given)}
    if arguments.what == "decode" and arguments.model is not None:
        del defaults["target_length"]
    for name, value in defaults.items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    unknown = set(arguments.only or ()) - set(GROWTH)
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: must be among {', '.join(GROWTH)}")


def build(arguments: Namespace, **fields: object):
    """A model with random weights, or the checkpoint of --model; `fields` replace those of its config."""
    import torch

    from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration

    torch.manual_seed(0)
    if arguments.what != "decode" and arguments.model is not None:
        config = RnnSeq2SeqConfig.from_pretrained(arguments.model)
        changed = RnnSeq2SeqConfig(**{**config.to_dict(), **fields})
        return RnnSeq2SeqForConditionalGeneration.from_pretrained(arguments.model, config=changed)
    from benchmarks.training import MODELS

    sizes = {name: getattr(arguments, name) for name in (*MODELS[arguments.sizes], "cell_type")}
    return RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(**{**sizes, **fields}))


def ragged_batch(arguments: Namespace, vocabularies: Sequence[int] | None = None):
    """Source and label ids (batch, length) whose rows are three quarters to all of the longest, like bucketed text."""
    from benchmarks.measure import random_batch

    vocabularies = vocabularies or (arguments.vocab_size, arguments.vocab_size)
    lengths = arguments.source_length, arguments.target_length
    return random_batch(arguments.batch_size, *lengths, vocabularies, full=arguments.full_rows)


def train(arguments: Namespace) -> list[dict]:
    from benchmarks.training import compare_training, print_training

    def make(**fields: object):
        return build(arguments, **fields)

    config = make().config
    source, labels = ragged_batch(arguments, (config.source_vocab_size, config.vocab_size))
    report = compare_training(make, source, labels, arguments)
    print_training(report, arguments.device)
    return report


def decode(arguments: Namespace) -> list[dict]:
    from benchmarks import decoding as decoding
    from benchmarks.measure import take_turns

    from hf_rnn_seq2seq.generation.lines import LineReader
    from hf_rnn_seq2seq.generation.shortlist import Shortlist
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    tokenizer = shortlist = None
    if arguments.model is None:
        model = build(arguments).eval().to(arguments.device)
    else:
        model, tokenizer = load_checkpoint(arguments.model, device=arguments.device)
        files = filter(None, (arguments.input, arguments.references))
        texts = [list(LineReader(path))[: arguments.sentences] for path in files]
        shortlist = Shortlist.load(arguments.shortlist, tokenizer) if arguments.shortlist else None
    ends = () if arguments.model is None else (model.config.eos_token_id,)
    report = []
    for size in arguments.batch_sizes or [arguments.batch_size]:
        arguments.batch_size = size
        if arguments.model is None:
            source, _ = ragged_batch(arguments)
            batch = [(range(len(source)), source, (source != 0).long())]
            sentences = decoding.Sentences(batch, batch)
        else:
            sentences = decoding.read_sentences(model, tokenizer, texts[0], size, *texts[1:])
        variants = decoding.decoding_variants(model, sentences, arguments, shortlist)
        measured = take_turns(variants, arguments.rounds, arguments.device)
        rows = decoding.compare_decoding(variants, measured, sentences, tokenizer, ends, arguments.device)
        print(f"{sentences.count} sentences, batches of {size}, threads: {arguments.threads}")
        decoding.print_decoding(rows)
        report += [{"batch_size": size, **row} for row in rows]
    return report


def growth(arguments: Namespace) -> list[dict]:
    from benchmarks.growth import measure_growth, print_growth

    report = measure_growth(lambda **fields: build(arguments, **fields), arguments)
    print_growth(report)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, and writes it for a program where --json asks for it."""
    arguments = parse(argv)
    import torch

    # Memory and growth are measured in forked processes, which several threads do not survive.
    torch.set_num_threads(arguments.threads if arguments.what == "decode" else 1)
    report = {"train": train, "growth": growth, "decode": decode}[arguments.what](arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command_line.run(main)
