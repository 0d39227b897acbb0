"""Speed beside yoyodyne 0.5.27 (an attentive LSTM for words and their pronunciations or inflections), in turns.

    python scripts/benchmarks/peers/yoyodyne_lstm.py --train_file fre_train.tsv --test_file fre_test.tsv

The files are tables without header: word, tab, symbols between spaces. The first call installs yoyodyne from the
package index into an environment that lies over this one, so both use the same torch. Both models have a bidirectional
LSTM, an LSTM and additive attention of the same sizes; `fast` is this package with the recipe g2p: general attention,
and the context after the cell. Each round trains every model on one epoch, then decodes the test words; figures are
words per CPU second of one thread, the medians of the rounds.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

SCRIPTS = Path(__file__).resolve().parents[2]
ROOT = SCRIPTS.parent
sys.path[:0] = [str(place) for place in (ROOT, SCRIPTS) if str(place) not in sys.path]

from benchmarks.toolkits import install  # noqa: E402  the checkout's

from hf_rnn_seq2seq import command_line  # noqa: E402  the checkout's
from hf_rnn_seq2seq.evaluation.results import format_table  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

VERSION = "0.5.27"
# Without torchaudio and torchvision, which yoyodyne names and does not import.
NEEDS = ("lightning>=2.6,<3", "jsonargparse[signatures]>=4.40,<5", "maxwell>=0.2.6", "omegaconf>=2.3", "rich>=15")
NEEDS += ("torchmetrics>=1.8.2,<2", "wandb>=0.18.7,<1")
SIZES = {"embedding_size": 128, "hidden_size": 256, "dropout": 0.2, "label_smoothing": 0.1}
SAME = {"attention_type": "additive", "attention_order": "before_cell", "readout": "linear", "readout_context": False}
SAME |= {"bridge": "zero", "readout_embedding": False}
BATCH = 32

Work = Callable[[], int]  # does it once; returns the number of examples


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("--train_file", required=True, help="table of the training words")
    parser.add_argument("--test_file", required=True, help="table of the words to decode")
    parser.add_argument("--environment", default="~/.cache/hf_rnn_seq2seq/peers/yoyodyne", metavar="DIR")
    parser.add_argument("--rounds", type=command_line.at_least(1), default=3)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of `fast` (default: no)")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    return parser.parse_args(argv)


def of_yoyodyne(options: argparse.Namespace, folder: Path) -> SimpleNamespace:
    """Its model, and what trains it on an epoch and decodes the test words."""
    import lightning
    import torch
    from torch.utils.data import DataLoader
    from yoyodyne.data import DataModule
    from yoyodyne.models import SoftAttentionLSTMModel
    from yoyodyne.models.modules import LSTMEncoder

    files = {"train": options.train_file, "test": options.test_file, "model_dir": str(folder)}
    data = DataModule(**files, source_sep="", target_sep=" ", tie_embeddings=False, batch_size=BATCH)
    sizes = {"embedding_size": SIZES["embedding_size"]}
    encoder = LSTMEncoder(**sizes, hidden_size=SIZES["hidden_size"], dropout=0.0)
    model = SoftAttentionLSTMModel(
        source_encoder=encoder,
        **sizes,
        decoder_hidden_size=SIZES["hidden_size"],
        decoder_dropout=SIZES["dropout"],
        label_smoothing=SIZES["label_smoothing"],
        vocab_size=data.vocab_size,
        target_vocab_size=data.target_vocab_size,
        compute_accuracy=False,
    )
    model.trainer = lightning.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batches(loader: DataLoader) -> DataLoader:
        """Without a process of its own, whose time would not be counted."""
        shuffle = isinstance(loader.sampler, torch.utils.data.RandomSampler)
        return DataLoader(loader.dataset, BATCH, shuffle=shuffle, collate_fn=loader.collate_fn)

    train, test = batches(data.train_dataloader()), batches(data.test_dataloader())

    def epoch() -> int:
        model.train()
        model.beam_width = 1
        for batch in train:
            optimizer.zero_grad()
            predictions, target = model._align(model(batch), batch.target.tensor)
            model.loss_func(predictions, target).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return len(train.dataset)

    @torch.inference_mode()
    def decode(beams: int) -> int:
        model.eval()
        model.beam_width = beams
        return sum(model.predict_step(batch, 0) is not None and len(batch) for batch in test)

    return SimpleNamespace(model=model, epoch=epoch, decode=decode)


def of_this_package(options: argparse.Namespace, folder: Path, fields: dict[str, object]) -> SimpleNamespace:
    """The same of this package, through the training loop and `translate`."""
    from hf_rnn_seq2seq.data.readers import read_lines
    from hf_rnn_seq2seq.generation.translate import translate
    from hf_rnn_seq2seq.run_directory import read_tokenizer
    from hf_rnn_seq2seq.training.arguments import RunOptions
    from hf_rnn_seq2seq.training.launch import build_accelerator
    from hf_rnn_seq2seq.training.run import make_loop

    given = SIZES | {"per_device_train_batch_size": BATCH, "train_file": options.train_file, "cpu_threads": 1}
    given |= {"encoder_hidden_size": SIZES["hidden_size"]}  # yoyodyne counts the units of a direction
    given |= {"mixed_precision": "no", "metric_for_best_model": "loss", "predict_with_generate": False} | fields
    words = [str(ROOT / "scripts/recipes/g2p.yaml"), "--output_dir", str(folder)]
    run = RunOptions.parse([*words, *(f"--{name}={value}" for name, value in given.items())])
    loop = make_loop(run, build_accelerator(run.training))
    loop.save_tokenizer(folder)
    tokenizer = read_tokenizer(folder)
    sources = [line.partition("\t")[0] for line in read_lines(Path(options.test_file))]

    def epoch() -> int:
        loop.state.step_module.train()
        for update in itertools.islice(loop.plan.updates(), int(loop.plan.updates_per_epoch)):
            loop.run_update(update, loop.loader.load(update))
        return len(loop.loader.dataset)

    def decode(beams: int) -> int:
        loop.state.model.eval()
        return len(translate(loop.state.model, tokenizer, sources, num_beams=beams, batch_size=BATCH, progress=False))

    return SimpleNamespace(model=loop.state.model, epoch=epoch, decode=decode)


def parameters(model: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def timed(work: Work) -> float:
    """Examples per CPU second."""
    started = time.process_time()
    return work() / (time.process_time() - started)


def measure(options: argparse.Namespace) -> list[dict[str, float | str]]:
    """Medians over the rounds, in which the models take turns."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("yoyodyne", "same", "fast"):
            (place / name).mkdir()
        systems = {
            "yoyodyne": of_yoyodyne(options, place / "yoyodyne"),
            "same": of_this_package(options, place / "same", dict(SAME)),
            "fast": of_this_package(options, place / "fast", {"mixed_precision": options.mixed_precision}),
        }
        speeds: dict[tuple[str, str], list[float]] = {}
        for number in range(options.rounds + 1):
            for name, system in systems.items():
                works = {"train": system.epoch, "greedy": lambda s=system: s.decode(1)}
                works["beams 5"] = lambda s=system: s.decode(5)
                for kind, work in works.items():
                    speed = timed(work)
                    if number:  # the first round compiles and warms
                        speeds.setdefault((name, kind), []).append(speed)
                    print(f"round {number}  {name:<9}{kind:<8}{speed:8.0f} words/s", file=sys.stderr, flush=True)
        return [
            {"system": name, "parameters": parameters(system.model)}
            | {kind: statistics.median(speeds[name, kind]) for kind in ("train", "greedy", "beams 5")}
            for name, system in systems.items()
        ]


def print_table(rows: Sequence[dict[str, float | str]]) -> None:
    table = [["system", "parameters", "training", "greedy", "5 beams"]]
    for row in rows:
        cells = [f"{row[kind]:.0f} ({row[kind] / rows[0][kind]:.1f}x)" for kind in ("train", "greedy", "beams 5")]
        table.append([str(row["system"]), f"{row['parameters']:,}", *cells])
    print("words per CPU second, one thread (times yoyodyne's)\n" + format_table(table))


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    for name in ("train_file", "test_file"):
        if not Path(getattr(options, name)).is_file():
            raise ValueError(f"{name}={getattr(options, name)!r}: does not exist; name a table of words and symbols")
    environment = Path(options.environment).expanduser()
    if Path(sys.prefix) != environment.resolve():
        python = install(environment, (f"yoyodyne=={VERSION}",), NEEDS)
        # Three systems share a process, and with it oneDNN's cache of compiled products, which holds 1,024 by default.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
        os.execv(python, [python, __file__, *(sys.argv[1:] if argv is None else argv)])
    rows = measure(options)
    print_table(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command_line.run(main)
