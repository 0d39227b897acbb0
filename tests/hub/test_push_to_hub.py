"""scripts/push_to_hub.py: which files are uploaded, kept here or refused, and that another user can load them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_rnn_seq2seq.errors import InputError
from hf_rnn_seq2seq.hub.upload import plan_upload, push
from tests.helpers import warm
from tests.helpers.checkpoints import tiny_rnn, tiny_tokenizer
from tests.helpers.hub import Hub, act_as
from tests.helpers.hub_store import OWNER_TOKEN, READER_TOKEN
from tests.helpers.script_runs import run

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def owner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    return act_as(OWNER_TOKEN, hub.url, monkeypatch)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A finished run that also holds what is not published: a training state, TensorBoard events and a hidden file."""
    directory = tmp_path / "run"
    tokenizer = tiny_tokenizer()
    tiny_rnn(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    recipe = {"train_file": str(tmp_path / "train.tsv"), "source_lang": "en", "target_lang": "fr"}
    summary = {"bleu": 12.5, "split": "test", "parameters": 1000, "command": f"train.py --output_dir {directory}"}
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (directory / "train_log.jsonl").write_text(json.dumps({"event": "start", "output_dir": str(directory)}) + "\n")
    (directory / "attention.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    for name in ("checkpoints/step-00000010/optimizer.safetensors", "tensorboard/events.1", ".lock"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"state")
    return directory


@pytest.fixture(scope="module")
def script(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Script:
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments: object, token: str | None = OWNER_TOKEN) -> subprocess.CompletedProcess[str]:
        environment = hub.environment(cache=cache, token=token)
        command = [*warm.python(environment), str(ROOT / "scripts" / "push_to_hub.py"), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_dry_run_lists_and_sends_nothing(hub: Hub, script: Script, run_directory: Path, tmp_path: Path) -> None:
    before = len(hub.log())
    for card in (tmp_path / "card.json", tmp_path, tmp_path / "none" / "card.md", run_directory / "summary.md"):
        refused = script(run_directory, "owner/dry", "--dry_run", "--card", card)
        assert refused.returncode == 2 and f"card={str(card)!r}: " in refused.stderr, refused.stderr
    done = script(run_directory, "owner/dry", "--dry_run", "--card", tmp_path / "card.md")
    assert done.returncode == 0, done.stderr
    size = (run_directory / "model.safetensors").stat().st_size
    assert f"{size:>12,}  model.safetensors" in done.stdout
    assert "README.md" in done.stdout and "kept here: 3 files (.lock, checkpoints/, tensorboard/)" in done.stdout
    assert "checkpoints/step" not in done.stdout
    assert len(hub.log()) == before + 1, "only the look at the log itself"
    assert not (run_directory / "README.md").exists()
    assert "12.50" in (tmp_path / "card.md").read_text()
    assert json.loads((tmp_path / "card.json").read_text())["summary"]["bleu"] == 12.5


def test_push_and_get_back(owner: HfApi, script: Script, run_directory: Path, tmp_path: Path) -> None:
    done = script(run_directory, "owner/pushed", "--private")
    assert done.returncode == 0, done.stderr
    assert "published: " in done.stdout
    info = owner.model_info("owner/pushed")
    assert info.private
    files = set(owner.list_repo_files("owner/pushed"))
    code = {path.name for path in (ROOT / "hf_rnn_seq2seq" / "model").glob("*.py")} - {"__init__.py"}
    assert {"config.json", "model.safetensors", "README.md", "summary.json", "attention.png"} <= files
    strategy = {"custom_generate/generate.py"}
    assert {name for name in files if name.endswith(".py")} <= code | strategy
    assert {name for name in files if "/" in name} <= strategy
    got = Path(owner.snapshot_download("owner/pushed", cache_dir=tmp_path / "got"))
    assert (got / "model.safetensors").read_bytes() == (run_directory / "model.safetensors").read_bytes()
    card = ModelCard.load(got / "README.md")
    assert card.data.language == ["en", "fr"] and card.data.eval_results[0].metric_value == 12.5
    for name in ("recipe.yaml", "train_log.jsonl", "README.md", "summary.json"):
        assert str(tmp_path) not in (got / name).read_text(), f"{name} names a folder of this machine"

    commits = len(owner.list_repo_commits("owner/pushed"))
    push(plan_upload(run_directory, "owner/pushed"), "owner/pushed")
    assert len(owner.list_repo_commits("owner/pushed")) == commits, "a second identical push made a commit"
    push(plan_upload(run_directory, "owner/pushed"), "owner/pushed", revision="draft")
    assert {ref.name for ref in owner.list_repo_refs("owner/pushed").branches} == {"main", "draft"}


def test_the_hubs_refusals(owner: HfApi, script: Script, run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = plan_upload(run_directory, "owner/other")
    for token, status in ((READER_TOKEN, 403), ("hf_wrong", 401)):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HfHubHTTPError) as error:
            push(upload, "owner/other")
        assert error.value.response.status_code == status
    done = script(run_directory, "owner/other", token=None)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "401" in done.stderr


def test_a_card_the_hub_refuses_stops_the_push(owner: HfApi, run_directory: Path) -> None:
    (run_directory / "README.md").write_text("---\nlicense: ask me\n---\n# Mine\n")
    with pytest.raises(InputError, match=r"README\.md: .*license"):
        push(plan_upload(run_directory, "owner/badcard"), "owner/badcard")
    assert not owner.repo_exists("owner/badcard")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda d: (d / "summary.json").write_text(json.dumps({"token": "hf_" + "a1" * 17})), "a Hugging Face token"),
        (lambda d: (d / "README.md").write_text("-----BEGIN RSA PRIVATE " + "KEY-----"), "contains a private key"),
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), "not a whole safetensors file"),
        (lambda d: torch.save({}, d / "model.safetensors"), "not a whole safetensors file"),
        (lambda d: (d / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda d: (d / "config.json").unlink(), r"no config\.json"),
        (
            lambda d: (d / "tokenizer_config.json").unlink(),
            "tokenizer_config.json; .* tokenizer.save_pretrained writes",
        ),
        (lambda d: (d / "config.json").write_text("{"), "not readable as JSON"),
        (lambda d: (d / "recipe.yaml").write_text("a: [1"), "not readable"),
    ],
)
def test_refused_directories(run_directory: Path, damage: Callable[[Path], object], complaint: str) -> None:
    damage(run_directory)
    with pytest.raises(InputError, match=complaint) as error:
        plan_upload(run_directory, "owner/name")
    assert "\n" not in str(error.value)


def test_bad_names(script: Script, run_directory: Path, tmp_path: Path) -> None:
    for name in ("name", "a/b/c", "user/na me"):
        with pytest.raises(InputError, match="must be user/name"):
            plan_upload(run_directory, name)
    with pytest.raises(InputError, match="no such directory"):
        plan_upload(tmp_path / "absent", "user/name")
    done = script(tmp_path / "absent", "user/name", "--dry_run")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_own_card_is_kept(run_directory: Path) -> None:
    (run_directory / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert plan_upload(run_directory, "owner/name").files["README.md"] == run_directory / "README.md"
    with pytest.raises(InputError, match=r"license='bsd': .*README.md is the card; write `license: bsd` between"):
        plan_upload(run_directory, "owner/name", license="bsd")


def test_a_folder_that_a_trainer_wrote(script: Script, tmp_path: Path) -> None:
    """Pickles and the optimizer are left out and named; the license is the owner's choice."""
    folder, tokenizer = tmp_path / "trainer", tiny_tokenizer()
    trainer = Seq2SeqTrainer(
        tiny_rnn(tokenizer),
        Seq2SeqTrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True),
        processing_class=tokenizer,
    )
    trainer.save_model()
    trainer.save_state()
    assert (folder / "training_args.bin").is_file()
    for name in ("optimizer.pt", "pytorch_model.bin", "id_rsa", "checkpoint-5/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    for name in ("source.spm", "target_vocab.json"):  # of Marian's tokenizer
        (folder / name).write_text("{}")
    done = script(folder, "owner/trainer", "--dry_run", "--card", tmp_path / "card.md")
    assert done.returncode == 0, done.stderr
    left_out = "checkpoint-5/, id_rsa, optimizer.pt, pytorch_model.bin, trainer_state.json, training_args.bin"
    assert f"left out, of no checkpoint: 6 files ({left_out})" in done.stdout
    assert "license" not in (tmp_path / "card.md").read_text()
    done = script(folder, "owner/trainer", "--dry_run", "--card", tmp_path / "card.md", "--license", "mit")
    assert done.returncode == 0 and "\nlicense: mit\n" in (tmp_path / "card.md").read_text()
    done = script(folder, "owner/trainer", "--license", "mit")
    assert done.returncode == 0, done.stderr


def test_without_network_there_is_one_line(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("push_to_hub.py", run_directory, "owner/name")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1) and b"HF_HUB_OFFLINE is set" in done.stderr
    act_as("hf_x", "http://127.0.0.1:9", monkeypatch)
    done = run("push_to_hub.py", run_directory, "owner/name")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"error: owner/name: the Hub cannot be reached at http://127.0.0.1:9" in done.stderr
