"""What every test may use: a cache of its own session, and the optional corpora next to the repository."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# `datasets` reads these when it is imported, so they are set before any test module is. The workers of xdist inherit
# the cache of the process that started them, and so share the waiting processes of `tests.helpers.warm`.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="hf_rnn_seq2seq-tests-")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# Nothing is looked for on the network; tests of the Hub talk to one of their own.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples in every run; `make test-all` takes the second profile.
for name, examples in (("few", 12), ("many", 150)):
    settings.register_profile(name, max_examples=examples, deadline=None, derandomize=True, database=None)
settings.load_profile("few")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every run takes each k-th case of a `thinned(k)` test; the long run takes all of them."""
    count: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("thinned")
        if mark is not None:
            name = item.nodeid.partition("[")[0]
            if count[name] % mark.args[0]:
                item.add_marker(pytest.mark.long)
            count[name] += 1


def pytest_configure(config: pytest.Config) -> None:
    """All workers of xdist share the waiting processes of the session."""
    if not hasattr(config, "workerinput"):
        from tests.helpers import warm

        config.add_cleanup(warm.session())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real parallel corpora, `shared/data` next to the repository; most machines have none."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the optional corpora are not there: {folder.name} beside the repository")
    return folder


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Resets Accelerate's state, which is global in a process, after the test."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    from tests.helpers.checkpoints import save_checkpoint, tiny_rnn, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    return save_checkpoint(tmp_path_factory.mktemp("run") / "tiny", tiny_rnn(tokenizer), tokenizer)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints (with attention and without), a file of six sentence pairs, and a file of three of them."""
    from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint, tiny_rnn, tiny_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("runs"), tiny_tokenizer()
    save_checkpoint(folder / "attention", tiny_rnn(tokenizer), tokenizer)
    save_checkpoint(folder / "plain", tiny_rnn(tokenizer, context="initial_state"), tokenizer)
    rows = [f"{source}\t{target}" for source, target in zip(SOURCES, TARGETS, strict=False)]
    (folder / "pairs.tsv").write_text("\n".join(["en\tfr", *rows]) + "\n", encoding="utf-8")
    (folder / "other.tsv").write_text("\n".join(["en\tfr", *rows[:3]]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Any]:
    """A Hub on loopback."""
    from tests.helpers.hub import running_hub

    with running_hub() as started:
        yield started


@pytest.fixture(scope="module")
def child(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Fresh processes that talk to that Hub."""
    from tests.helpers.hub import Child

    return Child(hub, tmp_path_factory.mktemp("children"))
