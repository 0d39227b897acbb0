"""The console command: `hf-rnn COMMAND ...`, the same as `python -m hf_rnn_seq2seq COMMAND ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.option_parser import suggestion, version

# name -> module in hf_rnn_seq2seq.commands, and what it does
COMMANDS = {
    "train": ("launch", "train a model from a recipe, on one process or several"),
    "translate": ("translate", "translate lines, files or data sets"),
    "caption": ("caption", "describe a picture, and draw where each word looked"),
    "classify": ("classify", "name the class of a text, and show what decided"),
    "write": ("write", "write a text by hand, and draw how"),
    "evaluate": ("evaluate", "score a model on a test set"),
    "score": ("score", "log-probability and perplexity of given translations"),
    "compare": ("compare", "train several systems with one budget and compare them"),
    "report": ("report", "a page with every sentence of a test set"),
    "errors": ("error_analysis", "where a model fails"),
    "plot attention": ("plot_attention", "picture of the attention of a sentence"),
    "plot beam_tree": ("plot_beam_tree", "picture of a beam search"),
    "plot gradients": ("plot_gradients", "picture of vanishing gradients"),
    "plot surprise": ("plot_surprise", "picture of the bits of each character of a text"),
    "plot learning_curve": ("plot_learning_curve", "picture of the training log"),
    "app": ("app", "translate in the browser, or write a Space"),
    "push": ("push", "upload a run to the Hub"),
    "export": ("export", "export a model to ONNX, or for numpy alone"),
    "average": ("average", "average the weights of checkpoints"),
    "distill": ("distill", "translate a training corpus by a teacher"),
    "hallucinate": ("hallucinate", "add made-up rows to a table of words and forms"),
    "tokenizer": ("train_tokenizer", "train a tokenizer alone"),
    "shortlist": ("learn_shortlist", "learn which target words go with a source word"),
    "recipes": ("recipes", "list the recipes and experiments, or print one"),
}


def usage() -> str:
    """The text of `--help`."""
    lines = [f"  {name:<20} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"hf-rnn {version()}: recurrent sequence-to-sequence models with attention",
            "",
            "usage: hf-rnn COMMAND [--option value ...]; `hf-rnn COMMAND --help` lists the options",
            "",
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs the command that the first word (or the first two) names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"hf_rnn_seq2seq {version()}")
        return 0
    count = 2 if words[0] == "plot" else 1
    name = " ".join(words[:count])
    if words[0] == "plot" and name not in COMMANDS:
        plots = [command for command in COMMANDS if command.startswith("plot ")]
        raise ArgumentError(f"{name}: no such command; choose from {', '.join(plots)}")
    if name not in COMMANDS:
        raise ArgumentError(
            f"{name}: no such command{suggestion(name, COMMANDS).replace('--help all lists', '--help lists')}"
        )
    sys.argv = [f"hf-rnn {name}", *words[count:]]
    return import_module(f"hf_rnn_seq2seq.commands.{COMMANDS[name][0]}").main(words[count:])


def console() -> None:
    """The entry point of `hf-rnn`."""
    command_line.run(main)


if __name__ == "__main__":
    console()
