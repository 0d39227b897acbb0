"""Checks the version of transformers; imported first, so that an old version gives a clear error."""

import transformers

LOWEST_TRANSFORMERS = "5.24"


def require_transformers(lowest: str) -> None:
    """Checks the installed version.

    Raises:
        ImportError: transformers is older than `lowest`.
    """
    installed = transformers.__version__
    if [int(part) for part in installed.split(".")[:2]] < [int(part) for part in lowest.split(".")]:
        raise ImportError(
            f"transformers {installed}: hf_rnn_seq2seq needs {lowest} or newer; pip install 'transformers>={lowest}'"
        )


require_transformers(LOWEST_TRANSFORMERS)

__all__ = ["LOWEST_TRANSFORMERS", "require_transformers"]
