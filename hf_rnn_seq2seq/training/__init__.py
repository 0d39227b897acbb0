"""Training: `train` from Python; the command is `hf-rnn train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_rnn_seq2seq.training.run import TrainedRun


def train(recipe: str | None = None, **options: Any) -> TrainedRun:
    """Trains a model in this process: `train("cldr_en_fr", output_dir="runs/demo", max_steps=200)`.

    Args:
        recipe: a YAML file, or the name of one of the project's recipes; None starts from the defaults.
        options: those of `hf-rnn train`, which win over the recipe.

    Returns:
        The run's directory and summary, with `load()` for its model and tokenizer.

    Raises:
        ArgumentError: an unknown option, or a value that is not allowed.
        TrainingError: the run cannot continue.
    """
    from hf_rnn_seq2seq.training.run import train_here

    return train_here(recipe, options)
