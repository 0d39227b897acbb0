"""`--push_to_hub`: uploads during training, one at a time; a failed one neither stops training nor loses files."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.hub.background_upload import BackgroundUpload, without_token
from hf_rnn_seq2seq.training.arguments import TrainingOptions, dump_recipe
from tests.helpers import warm
from tests.helpers.checkpoints import tiny_rnn, tiny_tokenizer
from tests.helpers.hub import Hub, act_as
from tests.helpers.hub_store import OWNER_TOKEN, READER_TOKEN, USER_TOKEN
from tests.scripts import test_train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def owner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    yield act_as(OWNER_TOKEN, hub.url, monkeypatch)
    hub.fail("", times=0)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "run")


def checkpoint(folder: Path, like: int = 0) -> Path:
    """A checkpoint, whose weights depend on `like`, with the files of a state that are not for the Hub."""
    tokenizer = tiny_tokenizer()
    tiny_rnn(tokenizer, hidden_size=8 + like).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "optimizer.safetensors").write_bytes(b"state")
    return folder


class Recorded:
    """Uploads of a run, with what they print and log."""

    def __init__(self, repo_id: str, **options: Any) -> None:
        self.printed: list[str] = []
        self.logged: list[dict[str, Any]] = []
        log = lambda event, **facts: self.logged.append(facts)  # noqa: E731
        self.uploads = BackgroundUpload(repo_id, log=log, show=self.printed.append, **options)
        self.uploads.create_repo()

    def outcomes(self) -> list[tuple[int, str]]:
        return [(line["step"], line["outcome"]) for line in self.logged]


def until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def weights(api: HfApi, repo_id: str, folder: Path, revision: str | None = None) -> bytes:
    return Path(api.hf_hub_download(repo_id, "model.safetensors", revision=revision, cache_dir=folder)).read_bytes()


def test_each_checkpoint_is_a_commit_and_the_end_has_everything(
    owner: HfApi, run_directory: Path, tmp_path: Path
) -> None:
    run = Recorded("owner/saves", private=True)
    for step in (10, 20):
        task = run.uploads.start(checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}", step))
        assert task is not None and "/owner/saves/" in task.result(120)
    assert "optimizer.safetensors" not in owner.list_repo_files("owner/saves")
    (run_directory / "summary.json").write_text(json.dumps({"bleu": 12.5, "split": "test"}))
    (run_directory / "notes.txt").write_text("mine")
    assert run.uploads.finish(run_directory, 30)
    assert run.outcomes() == [(10, "done"), (20, "done"), (30, "done")]
    commits = owner.list_repo_commits("owner/saves")
    assert [commit.title for commit in commits][:3] == ["Training, step 30", "Training, step 20", "Training, step 10"]
    assert owner.model_info("owner/saves").private
    files = set(owner.list_repo_files("owner/saves"))
    assert "README.md" in files and "notes.txt" not in files, "a foreign file is not uploaded"
    assert weights(owner, "owner/saves", tmp_path) == (run_directory / "model.safetensors").read_bytes()
    expected = (tmp_path / "checkpoints" / "step-00000010" / "model.safetensors").read_bytes()
    assert weights(owner, "owner/saves", tmp_path / "a", commits[2].commit_id) == expected


def test_saving_never_waits(hub: Hub, owner: HfApi, run_directory: Path, tmp_path: Path) -> None:
    """A checkpoint that is saved during an upload is skipped, and its folder is free."""
    run = Recorded("owner/queue")
    until(lambda: owner.repo_exists("owner/queue"))
    hub.fail("/commit/", status=0, seconds=3.0)
    first = run.uploads.start(checkpoint(tmp_path / "step-00000001"))
    started = time.monotonic()
    assert first is not None and run.uploads.start(tmp_path / "step-00000002.1") is None
    assert time.monotonic() - started < 1.0
    assert run.outcomes() == [(2, "skipped: step 1 is being uploaded")]
    assert first.result(120)
    assert run.uploads.finish(run_directory, 3)
    assert [outcome for _, outcome in run.outcomes()][1:] == ["done", "done"]


@pytest.mark.parametrize(("token", "status"), [("hf_wrong", "401"), (READER_TOKEN, "403")])
def test_a_refusal_is_reported_at_once_and_training_continues(
    hub: Hub, run_directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, status: str
) -> None:
    act_as(token, hub.url, monkeypatch)
    run = Recorded("owner/refused")
    until(lambda: bool(run.printed))
    assert status in run.printed[0] and run.printed[0].endswith("not uploaded"), "known before the first save"
    run.uploads.start(checkpoint(tmp_path / "step-00000001"))
    until(lambda: run.outcomes() == [(1, "failed")])
    assert not run.uploads.finish(run_directory, 2)
    assert run.outcomes() == [(1, "failed"), (2, "failed")]
    assert f"upload it later with scripts/push_to_hub.py {run_directory} owner/refused" in run.printed[-1]


def test_a_failure_of_the_start_is_made_good_later(hub: Hub, owner: HfApi, run_directory: Path) -> None:
    hub.fail("/api/repos/create", status=400)
    run = Recorded("owner/again")
    until(lambda: bool(run.printed))
    assert run.uploads.finish(run_directory, 1)
    assert run.outcomes() == [(1, "done")]


def test_no_connection(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        act_as(OWNER_TOKEN, f"http://127.0.0.1:{closed.getsockname()[1]}", monkeypatch)
        before = sorted(path.name for path in run_directory.iterdir())
        run = Recorded("owner/nobody")
        assert not run.uploads.finish(run_directory, 2)
    assert run.outcomes() == [(2, "failed")]
    assert "does not have the end of this run" in run.printed[-1]
    assert sorted(path.name for path in run_directory.iterdir()) == before


def test_a_stopped_run_uploads_nothing_more(hub: Hub, owner: HfApi, run_directory: Path, tmp_path: Path) -> None:
    run = Recorded("owner/stopped")
    until(lambda: owner.repo_exists("owner/stopped"))
    started = time.monotonic()
    assert run.uploads.finish(run_directory, 1, interrupted=True) is False
    assert time.monotonic() - started < 1.0
    assert [commit.title for commit in owner.list_repo_commits("owner/stopped")] == ["initial commit"]


def test_a_token_is_not_published(owner: HfApi, run_directory: Path) -> None:
    (run_directory / "summary.json").write_text(json.dumps({"token": "hf_" + "a1" * 17}))
    run = Recorded("owner/secret")
    assert not run.uploads.finish(run_directory, 2)
    assert "a Hugging Face token" in run.logged[0]["reason"]


def test_options() -> None:
    with pytest.raises(ArgumentError, match=r"hub_model_id=None: push_to_hub needs a repository, user/name"):
        TrainingOptions(push_to_hub=True)
    with pytest.raises(ArgumentError, match="hub_strategy='always': must be one of every_save, end"):
        TrainingOptions(hub_strategy="always")
    given = TrainingOptions(output_dir="x", push_to_hub=True, hub_model_id="owner/name", hub_token="hf_secret")
    assert "hub_" not in dump_recipe([given], {}) and "hf_secret" not in dump_recipe([given], {})


def test_the_token_is_not_written_down() -> None:
    words = ["r.yaml", "--hub_token", "hf_secret", "--seed", "1", "--hub-token=hf_other"]
    assert without_token(words) == ["r.yaml", "--hub_token", "<hidden>", "--seed", "1", "--hub-token=<hidden>"]


TINY = test_train.TINY | {"max_train_samples": 40, "max_eval_samples": 6, "embedding_size": 8, "hidden_size": 8}
TINY |= {"max_new_tokens": 6, "eval_steps": 2, "save_steps": 2}


def train(hub_url: str, folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    environment = Hub(hub_url).environment(cache=folder / "cache") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        *warm.python(environment),
        str(ROOT / "scripts" / "train.py"),
        "tiny.yaml",
        "--output_dir",
        "run",
        "--push_to_hub",
    ]
    ended = subprocess.run([*command, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return ended, folder / "run"


@pytest.mark.slow
def test_a_training_run_is_on_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub fails first; the token comes by option and is found in no file of the run."""
    hub.fail("/api/repos/create", status=503)
    ended, run = train(hub.url, tmp_path / "a", "--hub_model_id", "user/run", "--hub_token", USER_TOKEN)
    assert ended.returncode == 0, ended.stderr
    api = act_as(USER_TOKEN, hub.url, monkeypatch)
    assert [commit.title for commit in api.list_repo_commits("user/run")][0] == "Training, step 4"
    assert weights(api, "user/run", tmp_path) == (run / "model.safetensors").read_bytes()
    assert {"summary.json", "learning_curve.png", "README.md"} <= set(api.list_repo_files("user/run"))
    for path in (path for path in run.rglob("*") if path.is_file()):
        assert USER_TOKEN.encode() not in path.read_bytes(), path
    assert "hub: step 4 is at " in ended.stderr


@pytest.mark.long
def test_a_training_run_without_any_hub_ends_well(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        ended, run = train(
            address, tmp_path / "b", "--hub_model_id", "user/run", "--hub_strategy", "end", "--hub_token=x"
        )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((run / "summary.json").read_text())["steps"] == 4 and (run / "model.safetensors").is_file()
    assert "upload it later with scripts/push_to_hub.py" in ended.stderr and "Traceback" not in ended.stderr
