"""Options that make a training command small; they follow the command's own and override them."""

TOY = {
    "max_train_samples": 64,
    "max_eval_samples": 8,
    "max_predict_samples": 8,
    "vocab_size": 300,
    "embedding_size": 12,
    "hidden_size": 12,
    "max_steps": 2,
    "eval_steps": 2,
    "max_new_tokens": 12,
    "per_device_train_batch_size": 8,
    "mixed_precision": "no",
    "report_to": "none",
    "cpu_threads": 1,
}
TOY_OPTIONS = [word for name, value in TOY.items() for word in (f"--{name}", str(value))]
# What a classifier has no use for, or its recipe's own sizes decide.
_NOT_OF_CLASSES = ("embedding_size", "hidden_size", "max_new_tokens")
TOY_OF_CLASSES = [
    word for name, value in TOY.items() if name not in _NOT_OF_CLASSES for word in (f"--{name}", str(value))
]
