"""`--push_to_hub`: pushes beside the training, one at a time, and a Hub that fails stops nothing and loses nothing."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.hub.background_upload import SNAPSHOTS, HubUploads, for_run, without_token
from hf_rnn_seq2seq.training.arguments import TrainingOptions, dump_recipe
from tests.helpers.checkpoints import tiny_rnn, tiny_tokenizer
from tests.helpers.hub import Hub, act_as
from tests.helpers.hub_store import OWNER_TOKEN, READER_TOKEN, USER_TOKEN

ROOT = Path(__file__).resolve().parents[2]
NO_WAITS = (0.01, 0.01)
LONG = 60.0


@pytest.fixture
def owner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    yield act_as(OWNER_TOKEN, hub.url, monkeypatch)
    hub.fail("", times=0)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_rnn(tokenizer).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


class Told:
    """Uploads of a run, and what they say and log."""

    def __init__(self, directory: Path, repo_id: str, **options: Any) -> None:
        self.said: list[str] = []
        self.logged: list[dict[str, Any]] = []
        options = {"waits": NO_WAITS, **options}
        self.uploads = HubUploads(directory, repo_id, log=lambda event, **facts: self.logged.append(facts), **options)
        self.uploads.begin(self.said.append)

    def outcomes(self) -> list[tuple[int, str]]:
        return [(line["step"], line["outcome"]) for line in self.logged]


def until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def weights(api: HfApi, repo_id: str, folder: Path, revision: str | None = None) -> bytes:
    return Path(api.hf_hub_download(repo_id, "model.safetensors", revision=revision, cache_dir=folder)).read_bytes()


def change_weights(run_directory: Path, like: int = 0) -> bytes:
    """Other weights in place of the file, as training replaces it."""
    model = tiny_rnn(tiny_tokenizer(), hidden_size=8 + like)
    model.save_pretrained(run_directory / ".new")
    (run_directory / ".new" / "model.safetensors").replace(run_directory / "model.safetensors")
    return (run_directory / "model.safetensors").read_bytes()


def test_each_save_is_a_commit_and_the_end_has_everything(owner: HfApi, run_directory: Path, tmp_path: Path) -> None:
    told = Told(run_directory, "owner/saves", private=True)
    for step in (10, 20):
        change_weights(run_directory, step)
        told.uploads.saved(step)
        until(lambda step=step: (step, "done") in told.outcomes())
    (run_directory / "summary.json").write_text(json.dumps({"bleu": 12.5, "split": "test"}))
    (run_directory / "notes.txt").write_text("mine")
    assert told.uploads.finish(30)
    titles = [commit.title for commit in owner.list_repo_commits("owner/saves")]
    assert titles[:3] == ["Training, step 30", "Training, step 20", "Training, step 10"]
    assert owner.model_info("owner/saves").private
    files = set(owner.list_repo_files("owner/saves"))
    assert "README.md" in files and "notes.txt" not in files, "a stray stays here and stops nothing"
    assert weights(owner, "owner/saves", tmp_path) == (run_directory / "model.safetensors").read_bytes()
    assert not (run_directory / SNAPSHOTS).exists()
    again = Told(run_directory, "owner/saves")
    assert again.uploads.finish(30)
    assert len(owner.list_repo_commits("owner/saves")) == len(titles), "nothing new, no commit"


def test_the_strategy_end_pushes_once(owner: HfApi, run_directory: Path) -> None:
    told = Told(run_directory, "owner/once", strategy="end")
    told.uploads.saved(10)
    told.uploads.saved(20)
    assert told.uploads.finish(30)
    assert told.outcomes() == [(30, "done")]


def test_saving_never_waits_and_only_the_newest_does(
    hub: Hub, owner: HfApi, run_directory: Path, tmp_path: Path
) -> None:
    """While the Hub takes its time over one push, others come; what each holds is what was there at its save."""
    hub.fail("/commit/", status=0, seconds=4.0)
    told = Told(run_directory, "owner/queue")
    first = (run_directory / "model.safetensors").read_bytes()
    told.uploads.saved(1)
    until(lambda: any("/owner/queue/preupload" in path for _, path, _ in hub.log()))
    for step in (2, 3):
        latest = change_weights(run_directory, step)
        told.uploads.saved(step)
    assert told.outcomes() == [(2, "replaced by a newer one")], "a save waits for no push"
    change_weights(run_directory, 9)
    until(lambda: (3, "done") in told.outcomes())
    assert told.outcomes() == [(2, "replaced by a newer one"), (1, "done"), (3, "done")]
    commits = owner.list_repo_commits("owner/queue")
    assert weights(owner, "owner/queue", tmp_path / "a", commits[1].commit_id) == first
    assert weights(owner, "owner/queue", tmp_path / "b", commits[0].commit_id) == latest
    assert told.uploads.finish(interrupted=True) is False


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_passes_is_tried_again(hub: Hub, owner: HfApi, run_directory: Path, status: int) -> None:
    told = Told(run_directory, f"owner/again{status}")
    until(lambda: owner.repo_exists(f"owner/again{status}"))
    hub.fail("/api/repos/create", status=status, times=2)
    told.uploads.saved(1)
    assert told.uploads.finish(2)
    assert [outcome for _, outcome in told.outcomes()][-1] == "done"
    failed = [line["reason"] for line in told.logged if line["outcome"] == "failed"]
    assert failed and all(reason.endswith("trying again") and str(status) in reason for reason in failed)
    assert sum("trying again" in line for line in told.said) == 1, "said once in a row"


@pytest.mark.parametrize(("token", "status"), [("hf_wrong", "401"), (READER_TOKEN, "403")])
def test_a_refusal_is_reported_at_once_and_training_goes_on(
    hub: Hub, run_directory: Path, monkeypatch: pytest.MonkeyPatch, token: str, status: str
) -> None:
    act_as(token, hub.url, monkeypatch)
    told = Told(run_directory, "owner/refused", waits=(LONG,))
    until(lambda: bool(told.said))
    assert status in told.said[0] and told.said[0].endswith("not pushed"), "known before the first save"
    told.uploads.saved(1)
    until(lambda: told.outcomes() == [(1, "failed")])
    assert not told.uploads.finish(2)
    assert told.outcomes() == [(1, "failed"), (2, "failed")]
    assert f"push it later with scripts/push_to_hub.py {run_directory} owner/refused" in told.said[-1]


def test_no_connection(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        act_as(OWNER_TOKEN, f"http://127.0.0.1:{closed.getsockname()[1]}", monkeypatch)
        before = sorted(path.name for path in run_directory.iterdir())
        told = Told(run_directory, "owner/nobody")
        told.uploads.saved(1)
        assert not told.uploads.finish(2)
    assert {outcome for _, outcome in told.outcomes()} <= {"failed", "replaced by a newer one"}
    assert "does not have the end of this run" in told.said[-1]
    assert sorted(path.name for path in run_directory.iterdir()) == before


def test_a_newer_save_ends_the_wait_of_an_older_one(hub: Hub, owner: HfApi, run_directory: Path) -> None:
    told = Told(run_directory, "owner/newer", waits=(LONG,))
    until(lambda: owner.repo_exists("owner/newer"))
    hub.fail("/api/repos/create", status=503)
    told.uploads.saved(1)
    until(lambda: told.outcomes() == [(1, "failed")])
    told.uploads.saved(2)
    until(lambda: told.outcomes() == [(1, "failed"), (2, "done")])
    assert told.uploads.finish(2)


def test_a_stopped_run_does_not_wait_for_the_hub(hub: Hub, owner: HfApi, run_directory: Path) -> None:
    told = Told(run_directory, "owner/stopped", waits=(LONG,))
    until(lambda: owner.repo_exists("owner/stopped"))
    hub.fail("/api/repos/create", status=503, times=9)
    told.uploads.saved(1)
    until(lambda: told.outcomes() == [(1, "failed")])
    started = time.monotonic()
    assert told.uploads.finish(1, interrupted=True) is False
    assert time.monotonic() - started < 10.0
    assert [commit.title for commit in owner.list_repo_commits("owner/stopped")] == ["initial commit"]


def test_what_must_not_be_published_is_not(owner: HfApi, run_directory: Path) -> None:
    (run_directory / "summary.json").write_text(json.dumps({"token": "hf_" + "a1" * 17}))
    told = Told(run_directory, "owner/secret")
    told.uploads.saved(1)
    assert not told.uploads.finish(2)
    assert [line["reason"] for line in told.logged][0].startswith("not pushed: ")
    assert all("a Hugging Face token" in line["reason"] for line in told.logged)


def test_before_the_first_evaluation_the_newest_checkpoint_is_pushed(owner: HfApi, run_directory: Path) -> None:
    checkpoint = run_directory / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    for path in [path for path in run_directory.iterdir() if path.is_file()]:
        path.replace(checkpoint / path.name)
    (checkpoint / "optimizer.safetensors").write_bytes(b"state")
    told = Told(run_directory, "owner/early")
    told.uploads.saved(10)
    until(lambda: told.outcomes() == [(10, "done")])
    files = owner.list_repo_files("owner/early")
    assert "model.safetensors" in files and "optimizer.safetensors" not in files
    told.uploads.finish(interrupted=True)


def test_options() -> None:
    with pytest.raises(ArgumentError, match=r"hub_model_id=None: push_to_hub needs a repository, user/name"):
        TrainingOptions(push_to_hub=True)
    with pytest.raises(ArgumentError, match="hub_strategy='always': must be one of every_save, end"):
        TrainingOptions(hub_strategy="always")
    given = TrainingOptions(output_dir="x", push_to_hub=True, hub_model_id="owner/name", hub_token="hf_secret")
    assert "hub_" not in dump_recipe([given], {}) and "hf_secret" not in dump_recipe([given], {})
    assert for_run(TrainingOptions(output_dir="x")) is None
    assert for_run(given).token == "hf_secret"


def test_the_token_is_not_written_down() -> None:
    words = ["r.yaml", "--hub_token", "hf_secret", "--seed", "1", "--hub-token=hf_other"]
    assert without_token(words) == ["r.yaml", "--hub_token", "<hidden>", "--seed", "1", "--hub-token=<hidden>"]


TINY = {
    "dataset_name": "cldr",
    "source_lang": "en",
    "target_lang": "fr",
    "max_train_samples": 40,
    "max_eval_samples": 6,
    "vocab_size": 300,
    "embedding_size": 8,
    "hidden_size": 8,
    "max_new_tokens": 6,
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "per_device_train_batch_size": 8,
    "cpu_threads": 1,
    "report_to": "none",
}


def train(hub_url: str, folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    environment = Hub(hub_url).environment(cache=folder / "cache") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "tiny.yaml", "--output_dir", "run", "--push_to_hub"]
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
    assert "push it later with scripts/push_to_hub.py" in ended.stderr and "Traceback" not in ended.stderr
