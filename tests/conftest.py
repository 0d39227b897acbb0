"""What every test may use: a cache of its own session, and the optional corpora beside the repository."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Read by `datasets` when it is imported, so it stands before any test module is.
_CACHE = Path(tempfile.mkdtemp(prefix="hf_rnn_seq2seq-tests-"))
os.environ["HF_DATASETS_CACHE"] = str(_CACHE / "datasets")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real parallel corpora, `shared/data` beside the repository; most machines have none."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the optional corpora are not there: {folder.name} beside the repository")
    return folder
