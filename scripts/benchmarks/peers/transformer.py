"""A Transformer of random weights, to be trained beside a recurrent model: the same tokenizer, corpus and loop.

    python scripts/train_tokenizer.py scripts/recipes/multi30k_de_en.yaml --train_file train.de.gz,train.en.gz \\
        --output_dir runs/multi30k_tokenizer
    python scripts/benchmarks/peers/transformer.py runs/multi30k_tokenizer --output_dir runs/multi30k_transformer

`scripts/train.py --model_name_or_path runs/multi30k_transformer` trains it. The model is Marian's in transformers, as
in Vaswani 2017: normalization after each sublayer, sinusoidal positions, ReLU, and where the tokenizer has one
vocabulary for both sides, one table of word vectors for them and the output. Matrices start as Glorot 2010 has it, word
vectors with the deviation d_model ** -0.5.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

from hf_rnn_seq2seq import command_line  # noqa: E402  the checkout's

if TYPE_CHECKING:
    from transformers import MarianMTModel, PreTrainedTokenizerBase


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("tokenizer", metavar="DIR", help="a tokenizer, or a run that has one")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="folder of the model")
    parser.add_argument("--d_model", type=command_line.at_least(2), default=256, help="(default: 256)")
    parser.add_argument("--layers", type=command_line.at_least(1), default=3, help="of each side (default: 3)")
    parser.add_argument("--heads", type=command_line.at_least(1), default=4, help="of attention (default: 4)")
    parser.add_argument("--ffn_dim", type=command_line.at_least(1), default=512, help="between them (default: 512)")
    parser.add_argument("--seed", type=command_line.at_least(0), default=42, help="of the weights (default: 42)")
    arguments = parser.parse_args(argv)
    if arguments.d_model % arguments.heads or arguments.d_model % 2:
        parser.error(f"--d_model {arguments.d_model}: must be even, and a multiple of --heads {arguments.heads}")
    return arguments


def build(
    tokenizer: "PreTrainedTokenizerBase", *, d_model: int, layers: int, heads: int, ffn_dim: int
) -> "MarianMTModel":
    """The model with random weights, drawn by torch's generator.

    Where source and target have vocabularies of their own, both tables have the size of the larger one.
    """
    from torch import nn
    from transformers import MarianConfig, MarianMTModel

    from hf_rnn_seq2seq.data.tokenizer import source_vocabulary_size, target_vocabulary_size
    from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import start_token_id

    entries = max(source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer))
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", ffn_dim))
    }
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = MarianConfig(
        vocab_size=entries,
        decoder_vocab_size=entries,
        d_model=d_model,
        max_position_embeddings=512,
        activation_function="relu",
        scale_embedding=True,
        init_std=d_model**-0.5,
        share_encoder_decoder_embeddings=not hasattr(tokenizer, "target_vocab_size"),
        decoder_start_token_id=start_token_id(tokenizer),
        forced_eos_token_id=None,
        **sides,
        **special,
    )
    model = MarianMTModel(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":  # which is the table of word vectors
            nn.init.xavier_uniform_(module.weight)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    import torch

    from hf_rnn_seq2seq.errors import ArgumentError, reading
    from hf_rnn_seq2seq.files import whole_folder
    from hf_rnn_seq2seq.run_directory import read_tokenizer

    folder = Path(arguments.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"output_dir={arguments.output_dir!r}: exists and is not an empty folder")
    with reading(f"the tokenizer of {arguments.tokenizer!r}", ArgumentError):
        tokenizer = read_tokenizer(arguments.tokenizer)
    torch.manual_seed(arguments.seed)
    sizes = {name: getattr(arguments, name) for name in ("d_model", "layers", "heads", "ffn_dim")}
    model = build(tokenizer, **sizes)
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{folder}: {count:,} trained parameters")
    return 0


if __name__ == "__main__":
    command_line.run(main)
