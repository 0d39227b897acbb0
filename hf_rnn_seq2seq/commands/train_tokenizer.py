"""Train a tokenizer alone: `python scripts/train_tokenizer.py [RECIPE.yaml] [--option value ...] --output_dir DIR`.

    python scripts/train_tokenizer.py --dataset_name cldr --dataset_config_name en-fr --output_dir runs/tokenizer

Reads the data and tokenizer options, from a training recipe too, whose other options it leaves alone.
`AutoTokenizer.from_pretrained(DIR)` loads the result; `scripts/train.py --tokenizer_name_or_path DIR` trains with it.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.data.arguments import DataArguments, TokenizerArguments
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import check_new_folder, whole_folder
from hf_rnn_seq2seq.option_parser import parse_arguments
from hf_rnn_seq2seq.training.arguments import GenerationArguments, TrainingOptions
from hf_rnn_seq2seq.training.model_fields import model_fields


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    groups = (DataArguments, TokenizerArguments, TrainingOptions, GenerationArguments)
    # A recipe of training holds them too, and they are read past.
    others = {field.name for group in groups[2:] for field in dataclasses.fields(group)} | set(model_fields())
    others -= {"imports", "output_dir", *(field.name for group in groups[:2] for field in dataclasses.fields(group))}
    reserved = dict.fromkeys(others, "is for training, no tokenizer depends on it; leave it out")
    data, options, training, *_ = parse_arguments(
        words, groups, model_fields(), description=__doc__ or "", reserved=reserved
    )
    if data.task not in ("translation", "captioning"):
        raise ArgumentError(f"task={data.task!r}: a tokenizer of this task is trained with its model, by train.py")
    if training.output_dir is None:
        raise ArgumentError("output_dir=None: name the folder for the tokenizer")
    folder = Path(training.output_dir)
    check_new_folder(folder, "output_dir")

    command_line.load_libraries()
    from hf_rnn_seq2seq.data.corpus import load_corpus
    from hf_rnn_seq2seq.data.tokenizer import source_vocabulary_size, target_vocabulary_size
    from hf_rnn_seq2seq.training.components import train_tokenizer

    corpus = load_corpus(data, splits=("train",))
    tokenizer = train_tokenizer(options, data, corpus)
    with whole_folder(folder) as unfinished:
        tokenizer.save_pretrained(unfinished)
    sides = (options.source_tokenizer_algorithm, options.target_tokenizer_algorithm)
    algorithms = " and ".join(dict.fromkeys(name or options.tokenizer_algorithm for name in sides))
    print(
        f"{folder}: {algorithms}, {source_vocabulary_size(tokenizer)} source and "
        f"{target_vocabulary_size(tokenizer)} target entries, {'joint' if options.joint_vocabulary else 'separate'}; "
        f"trained on {len(corpus.splits['train'])} rows; {corpus.left_out('train')}"
    )
    return 0
