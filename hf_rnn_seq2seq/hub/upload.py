"""Publish a run directory on the Hub: which files go, what is refused, and one commit with all of them.

A checkpoint, its card, its pictures and the facts of its run are uploaded. Unfinished states (`checkpoints/`),
TensorBoard events and hidden files stay. So does anything else that belongs to no checkpoint, such as the optimizer and
the pickles that a Trainer leaves; a file with a secret stops the upload.
"""

import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq.errors import CardError, PublishError
from hf_rnn_seq2seq.hub.model_card import read_facts, render, without_folders

UPLOADED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "target_tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    # of tokenizers of other models
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "*.py",
    "custom_generate/*.py",
    "custom_generate/requirements.txt",
    "README.md",
    "attention.png",
    "learning_curve.png",
    "summary.json",
    "recipe.yaml",
    "train_log.jsonl",
)
KEPT_HERE = (
    "checkpoints/*",
    "tensorboard/*",
    "nonfinite/*",
    "__pycache__/*",
    "*/__pycache__/*",
    ".*",
    "*/.*",
    "command.txt",
)
SECRETS = {
    "a Hugging Face token": re.compile(rb"hf_[A-Za-z0-9]{30,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an AWS key": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36}\b"),
}


@dataclass(frozen=True)
class Upload:
    """What one commit holds, by path in the repository, and what stays here."""

    files: dict[str, bytes | Path]
    kept_here: list[str]
    left_out: list[str]  # of no checkpoint, so not what its owner may expect to go

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, in the order of its path."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in sorted(self.files.items())
        }


def plan_upload(directory: str | os.PathLike[str], repo_id: str, *, license: str | None = None) -> Upload:
    """Decide what of DIRECTORY is published as `repo_id`; nothing is sent and nothing is written.

    A README.md in the directory is the card; without one the card is rendered from the run's facts, with `license` (the
    Hub's name of it) where one is given. Absolute paths in the recipe, the summary and the log are shortened to names:
    the folders of this machine are nobody's business.

    Raises:
        PublishError: the name is not `user/name`, the checkpoint is incomplete or damaged, a file holds a secret, or
            the card in the directory is to get a license.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise PublishError(f"repository {repo_id!r}: must be user/name")
    root = Path(directory)
    if not root.is_dir():
        raise PublishError(f"{directory}: no such directory; expected one that training or save_pretrained wrote")
    files: dict[str, bytes | Path] = {}
    kept_here, left_out = [], []
    for path in sorted(each for each in root.rglob("*") if each.is_file()):
        name = path.relative_to(root).as_posix()
        if any(fnmatch(name, pattern) for pattern in KEPT_HERE):
            kept_here.append(name)
        elif any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in UPLOADED):
            files[name] = path
        else:
            left_out.append(name)
    _check_checkpoint(root, files)
    for name in ("recipe.yaml", "summary.json", "train_log.jsonl"):
        if name in files:
            files[name] = _public(root / name)
    if "README.md" in files and license is not None:
        raise PublishError(
            f"license={license!r}: {root / 'README.md'} is the card; write `license: {license}` between its --- lines"
        )
    if "README.md" not in files:
        try:
            files["README.md"] = render(read_facts(root, repo_id=repo_id, license=license)).encode("utf-8")
        except CardError as error:
            raise PublishError(str(error)) from None
    _refuse_secrets(root, files)
    return Upload(files, kept_here, left_out)


def push(
    upload: Upload,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "",
    token: str | None = None,
) -> str:
    """Create the repository (and branch) where needed, have the card checked, upload everything in one commit.

    `token` stands in for the one that `hf auth login` or HF_TOKEN gave.

    Returns:
        The address of the commit. Content that is already there makes no commit.

    Raises:
        PublishError: the Hub cannot be reached, or found the card's metadata invalid.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused; its subclasses say why.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    card = upload.files["README.md"]
    text = card if isinstance(card, bytes) else card.read_bytes()
    operations = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for path, content in sorted(upload.files.items())
    ]
    api = HfApi(token=token)
    try:
        ModelCard(text.decode("utf-8")).validate(repo_type="model")
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(repo_id, operations, commit_message=message or "Upload model", revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled):
        raise
    except ValueError as error:
        raise PublishError(f"README.md: {' '.join(str(error).split())}") from None
    except Exception as error:  # the client's transport raises classes of its own
        if not type(error).__module__.startswith(("httpx", "requests", "urllib3", "builtins", "socket")):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PublishError(f"{repo_id}: the Hub cannot be reached at {api.endpoint}: {reason[:200]}") from None
    return commit.commit_url


def _check_checkpoint(root: Path, files: dict[str, Any]) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        if name not in files:
            mend = "tokenizer.save_pretrained" if name.startswith("tokenizer") else "model.save_pretrained"
            raise PublishError(f"{root}: has no {name}; a published checkpoint needs it, and {mend} writes it")
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        raise PublishError(f"{root}: has no model.safetensors; weights are published as safetensors only")
    from safetensors import SafetensorError, safe_open

    from hf_rnn_seq2seq.model.precision import not_finite

    for name in weights:
        try:
            with safe_open(root / name, framework="pt") as tensors:
                found = not_finite((key, tensors.get_tensor(key)) for key in tensors.keys())  # noqa: SIM118  no dictionary
        except (SafetensorError, OSError) as error:
            raise PublishError(f"{root / name}: not a whole safetensors file: {error}") from None
        if found:
            raise PublishError(f"{root / name}: {found}; publish a checkpoint from before")
    for name in (each for each in files if each.endswith(".json")):
        try:
            json.loads((root / name).read_bytes())
        except ValueError as error:
            raise PublishError(f"{root / name}: not readable as JSON: {error}") from None


def _public(path: Path) -> bytes:
    """The file's content without the folders of this machine."""
    import yaml

    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".yaml":
            public = yaml.safe_dump(without_folders(yaml.safe_load(text)), sort_keys=False, allow_unicode=True)
        elif path.suffix == ".json":
            public = json.dumps(without_folders(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
        else:
            rows = [without_folders(json.loads(line)) for line in text.splitlines()]
            public = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except (yaml.YAMLError, ValueError) as error:
        raise PublishError(f"{path}: not readable: {' '.join(str(error).split())}") from None
    return public.encode("utf-8")


def _refuse_secrets(root: Path, files: dict[str, bytes | Path]) -> None:
    for name, content in sorted(files.items()):
        if name.endswith((".safetensors", ".png")):
            continue
        text = content if isinstance(content, bytes) else content.read_bytes()
        for what, pattern in SECRETS.items():
            if pattern.search(text):
                raise PublishError(f"{root / name}: holds {what}; remove it before publishing")
