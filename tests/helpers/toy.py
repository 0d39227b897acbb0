"""Options that make a training command small; they follow the command's own and override them."""

TOY = {
    "max_train_samples": 64,
    "max_eval_samples": 8,
    "max_predict_samples": 8,
    "vocab_size": 300,
    "embedding_size": 12,
    "hidden_size": 12,
    "readout_size": 12,  # that of the word vectors, for recipes that tie them
    "max_steps": 2,
    "eval_steps": 2,
    "max_new_tokens": 12,
    "per_device_train_batch_size": 8,
    "mixed_precision": "no",
    "report_to": "none",
    "cpu_threads": 1,
}
WORDS_ONLY = ("vocab_size", "embedding_size", "readout_size", "max_new_tokens")  # which points of a pen do not have
# What a classifier has no use for, or its recipe's own sizes decide.
_NOT_OF_CLASSES = ("embedding_size", "hidden_size", "readout_size", "max_new_tokens")


def options_of(without: tuple[str, ...] = ()) -> list[str]:
    """The words of a command line, without some options."""
    return [word for name, value in TOY.items() if name not in without for word in (f"--{name}", str(value))]


TOY_OPTIONS, TOY_OF_CLASSES, TOY_OF_POINTS = options_of(), options_of(_NOT_OF_CLASSES), options_of(WORDS_ONLY)
TOY_OF_TEXT = options_of(tuple(name for name in TOY if name.endswith("_samples") or name == "readout_size"))
