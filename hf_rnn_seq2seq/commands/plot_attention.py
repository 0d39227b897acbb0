"""Draw the attention of one sentence: `python scripts/plot_attention.py runs/demo "3 days ago" --output_file map.png`.

The picture shows the cross_attentions of the model: for its translation, for each hypothesis of a beam search
(--num_beams N --n_best K, one map each), or for a given translation (--translation). Heads are averaged; --heads draws
each. --words merges the pieces of a word: it sums their columns and averages their rows.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_rnn_seq2seq import command_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_rnn_seq2seq.generation.translate import Hypothesis


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.sentence_parser(__doc__, title="text under the map (default: log-probability)")
    parser.add_argument("--translation", help="draw the attention for this translation instead of the model's")
    parser.add_argument("--n_best", type=command_line.at_least(1), default=1, help="hypotheses, at most num_beams")
    parser.add_argument("--heads", action="store_true", help="one map for each attention head")
    parser.add_argument("--layer", type=int, default=-1, help="attention layer of the decoder (default: the last)")
    parser.add_argument("--words", action="store_true", help="merge the pieces of a word")
    parser.add_argument("--font", help="font file to prefer over the installed ones")
    arguments = command_line.parse_sentence(parser, argv)
    if arguments.translation is not None and (arguments.num_beams or arguments.n_best > 1):
        parser.error("--translation is drawn alone; it cannot be combined with --num_beams or --n_best")
    return arguments


def hypotheses_with_attention(
    arguments: argparse.Namespace, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> list["Hypothesis"]:
    """Hypotheses with attention (heads, target, source)."""
    from hf_rnn_seq2seq.errors import DataError
    from hf_rnn_seq2seq.generation.scoring import forced_hypothesis
    from hf_rnn_seq2seq.generation.translate import translate_n_best

    if arguments.translation is not None:
        return [forced_hypothesis(model, tokenizer, arguments.sentence, arguments.translation, layer=arguments.layer)]
    options = command_line.generation_options(arguments)
    (hypotheses,) = translate_n_best(
        model,
        tokenizer,
        [arguments.sentence],
        n_best=arguments.n_best,
        attention=True,
        layer=arguments.layer,
        progress=False,
        **options,
    )
    if hypotheses[0].attention is None:
        raise DataError(f"sentence={arguments.sentence!r}: holds no word that the model reads; give one")
    return hypotheses


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.visualization.figure import check_output

    check_output(arguments.output_file, "output_file")
    command_line.load_libraries()
    from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces
    from hf_rnn_seq2seq.generation.attention import merge_words
    from hf_rnn_seq2seq.run_directory import load_checkpoint
    from hf_rnn_seq2seq.visualization.attention_map import Panel, attention_panels

    model, tokenizer = load_checkpoint(arguments.model, device=arguments.device, dtype=arguments.dtype, attention=True)
    panels, source = [], []
    for hypothesis in hypotheses_with_attention(arguments, model, tokenizer):
        weights = hypothesis.attention if arguments.heads else hypothesis.attention.mean(0, keepdim=True)
        source = source_pieces(tokenizer, arguments.sentence, len(hypothesis.source_ids))
        target = target_pieces(tokenizer, hypothesis.token_ids)
        if arguments.words:
            weights, source, target = merge_words(weights, source, target, {*tokenizer.all_special_tokens})
        title = arguments.title if arguments.title is not None else f"log-probability {hypothesis.log_probability:z.2f}"
        panels.append(Panel(weights, target, title))
        print(hypothesis.text)
    attention_panels(panels, source, output=arguments.output_file, font_file=arguments.font)
    return 0
