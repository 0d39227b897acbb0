"""Tables from which a translator learns to read handwriting, and one of words that a network wrote.

    python scripts/pen_tokens.py runs/unipen --output_dir runs/tokens
    python scripts/train.py scripts/recipes/g2p.yaml --source_tokenizer_algorithm word --max_source_length 256 \
        --train_file runs/tokens/train.tsv --validation_file runs/tokens/validation.tsv \
        --test_file runs/tokens/test.tsv --output_dir runs/recognizer
    python scripts/evaluate_bleu.py runs/recognizer --scores symbol_error
    python scripts/evaluate_bleu.py runs/recognizer --scores symbol_error --test_file runs/tokens/written.tsv

The rows are those of the run's own splits; `written.tsv` has the texts of the test split in the hand of the network. A
row is a word as tokens of points, a tab, its characters between spaces. A token is the direction of a point from the
one before, its distance, and `-` where the pen was in the air.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

from hf_rnn_seq2seq import command_line  # noqa: E402  the checkout's

DIRECTIONS = 16
FARTHEST = (0.03, 0.06, 0.1, 0.17, 0.3, 0.5)  # of each class of distances but the last, in heights of a word
BATCH = 64


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("directory", metavar="DIR", help="a run of the task handwriting that reads text")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="folder of the tables")
    parser.add_argument("--bias", type=command_line.finite(0.0), default=0.5, help="of what it writes (default: 0.5)")
    parser.add_argument("--rows", type=command_line.at_least(1), metavar="N", help="write the first N texts")
    parser.add_argument("--seed", type=command_line.at_least(0), default=0, help="of the random numbers (default: 0)")
    command_line.add_model_options(parser)
    return parser.parse_args(argv)


def tokens(points: Iterable[Sequence[float]]) -> str:
    """The tokens of points (across, up, end of a stroke), of which the offsets are in heights of a word."""
    found, lifted = [], False
    for across, up, end in points:
        direction = round(math.atan2(up, across) / (2 * math.pi) * DIRECTIONS) % DIRECTIONS
        distance = sum(math.hypot(across, up) > limit for limit in FARTHEST)
        found.append(f"{'abcdefghijklmnop'[direction]}{distance}{'-' if lifted else ''}")
        lifted = end > 0.5
    return " ".join(found)


def line(points: Iterable[Sequence[float]], text: str) -> str:
    return f"{tokens(points)}\t{' '.join(text)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    import torch

    from hf_rnn_seq2seq.evaluation.handwriting import load_writer, run_corpus
    from hf_rnn_seq2seq.files import whole_folder

    model = load_writer(arguments.directory, device=arguments.device, dtype=arguments.dtype)
    corpus = run_corpus(arguments.directory, model.config, {})
    texts = corpus.splits["test"]["text"][: arguments.rows]
    generator = torch.Generator(model.device).manual_seed(arguments.seed)
    deviation = torch.tensor([*model.config.offset_deviation, 1.0])
    with whole_folder(arguments.output_dir) as folder:
        for split, rows in corpus.splits.items():
            with (folder / f"{split}.tsv").open("w", encoding="utf-8") as file:
                for text, numbers in zip(rows["text"], rows["points"], strict=True):
                    file.write(line(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True), text))
        with (folder / "written.tsv").open("w", encoding="utf-8") as file:
            for start in range(0, len(texts), BATCH):
                for one in model.write(texts[start : start + BATCH], bias=arguments.bias, generator=generator):
                    file.write(line((one.points[1:].cpu() * deviation).tolist(), one.text))
    return 0


if __name__ == "__main__":
    command_line.run(main)
