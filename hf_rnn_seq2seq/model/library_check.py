"""Imported before anything else of transformers: an older one is named as such, not by the first thing it lacks."""

import transformers

LOWEST_TRANSFORMERS = "5.24"


def require_transformers(lowest: str) -> None:
    """Nothing where the installed transformers will do.

    Raises:
        ImportError: it is older than `lowest`.
    """
    found = transformers.__version__
    if [int(part) for part in found.split(".")[:2]] < [int(part) for part in lowest.split(".")]:
        raise ImportError(
            f"transformers {found}: hf_rnn_seq2seq needs {lowest} or newer; pip install 'transformers>={lowest}'"
        )


require_transformers(LOWEST_TRANSFORMERS)

__all__ = ["LOWEST_TRANSFORMERS", "require_transformers"]
