"""Uploads a run directory to the Hub in one commit.

A checkpoint, its card, its pictures and the facts of its run are uploaded. Not uploaded are training states
(`checkpoints/`), TensorBoard events, hidden files and files that belong to no checkpoint, such as the optimizer and the
pickles of a Trainer. A file that contains a secret stops the upload.
"""

import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError, InputError, one_line
from hf_rnn_seq2seq.hub.model_card import read_facts, render, strip_local_paths
from hf_rnn_seq2seq.run_directory import (
    ATTENTION,
    CHECKPOINTS,
    LEARNING_CURVE,
    LOG_FILE,
    RECIPE,
    SUMMARY,
    WEIGHTS,
    refuse_ensemble,
    writes_by_hand,
)

RUN_FILES = (SUMMARY, RECIPE, LOG_FILE)  # which may name folders of this machine
UPLOADED = (
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "target_tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    # tokenizers of other models
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.spm",
    "target_vocab.json",
    "chat_template.jinja",
    "*.py",
    "custom_generate/*.py",
    "custom_generate/requirements.txt",
    "README.md",
    ATTENTION,
    LEARNING_CURVE,
    *RUN_FILES,
)
NOT_UPLOADED = (
    f"{CHECKPOINTS}/*",
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
    """The files of one commit, and those that are not uploaded."""

    files: dict[str, bytes | Path]  # by path in the repository
    kept_here: list[str]  # files of the run that are never uploaded
    left_out: list[str]  # files that belong to no checkpoint

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, in the order of its path."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in sorted(self.files.items())
        }


def plan_upload(directory: str | os.PathLike[str], repo_id: str, *, license: str | None = None) -> Upload:
    """Selects the files of `directory` to upload as `repo_id`; sends and writes nothing.

    A README.md in the directory is the card. Without one, the card is rendered from the facts of the run, with
    `license` (by its name on the Hub) if it is given. Local paths in the recipe, the summary and the log are removed.

    Raises:
        ArgumentError: the name is not `user/name`, or `license` is given and the directory has a card.
        CheckpointError: the checkpoint is incomplete, damaged or an ensemble, or a file contains a secret.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ArgumentError(f"repo_id={repo_id!r}: must be user/name")
    root = Path(directory)
    if not root.is_dir():
        raise CheckpointError(f"{directory}: no such directory; name one that training or save_pretrained wrote")
    refuse_ensemble(root)
    files: dict[str, bytes | Path] = {}
    kept_here, left_out = [], []
    for path in sorted(each for each in root.rglob("*") if each.is_file()):
        name = path.relative_to(root).as_posix()
        if any(fnmatch(name, pattern) for pattern in NOT_UPLOADED):
            kept_here.append(name)
        elif any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in UPLOADED):
            files[name] = path
        else:
            left_out.append(name)
    _check_checkpoint(root, files)
    for name in RUN_FILES:
        if name in files:
            files[name] = _public(root / name)
    if "README.md" in files and license is not None:
        raise ArgumentError(
            f"license={license!r}: {root / 'README.md'} is the card; write `license: {license}` between its --- lines"
        )
    if "README.md" not in files:
        files["README.md"] = render(read_facts(root, repo_id=repo_id, license=license)).encode("utf-8")
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
    """Creates the repository (and branch) if needed, lets the Hub check the card, and uploads all files in one commit.

    `token` replaces that of `hf auth login` or HF_TOKEN.

    Returns:
        The URL of the commit. Unchanged content makes no new commit.

    Raises:
        InputError: the Hub cannot be reached, or rejects the metadata of the card.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses the request; the subclass is the reason.
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
        raise InputError(f"README.md: {' '.join(str(error).split())}") from None
    except Exception as error:  # the client's transport raises classes of its own
        if not type(error).__module__.startswith(("httpx", "requests", "urllib3", "builtins", "socket")):
            raise
        raise InputError(f"{repo_id}: the Hub cannot be reached at {api.endpoint}: {one_line(error, 200)}") from None
    return commit.commit_url


def _check_checkpoint(root: Path, files: dict[str, bytes | Path]) -> None:
    # A network that writes by hand has its alphabet in config.json.
    for name in ("config.json", *(() if writes_by_hand(root) else ("tokenizer_config.json",))):
        if name not in files:
            method = "tokenizer.save_pretrained" if name.startswith("tokenizer") else "model.save_pretrained"
            raise CheckpointError(f"{root}: has no {name}; a published checkpoint needs it, {method} writes it")
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        raise CheckpointError(f"{root}: has no model.safetensors; weights are uploaded as safetensors only")
    from safetensors import SafetensorError, safe_open

    from hf_rnn_seq2seq.model.pretrained import not_finite

    for name in weights:
        try:
            with safe_open(root / name, framework="pt") as tensors:
                found = not_finite((key, tensors.get_tensor(key)) for key in tensors.keys())  # noqa: SIM118  no dictionary
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{root / name}: not a whole safetensors file: {error}") from None
        if found:
            raise CheckpointError(f"{root / name}: {found}; publish an earlier checkpoint")
    for name in (each for each in files if each.endswith(".json")):
        try:
            json.loads((root / name).read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{root / name}: not readable as JSON: {error}") from None


def _public(path: Path) -> bytes:
    """The content of the file without local paths."""
    import yaml

    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".yaml":
            public = yaml.safe_dump(strip_local_paths(yaml.safe_load(text)), sort_keys=False, allow_unicode=True)
        elif path.suffix == ".json":
            public = json.dumps(strip_local_paths(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
        else:
            rows = [strip_local_paths(json.loads(line)) for line in text.splitlines()]
            public = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable: {' '.join(str(error).split())}") from None
    return public.encode("utf-8")


def _refuse_secrets(root: Path, files: dict[str, bytes | Path]) -> None:
    for name, content in sorted(files.items()):
        if name.endswith((".safetensors", ".png")):
            continue
        text = content if isinstance(content, bytes) else content.read_bytes()
        for what, pattern in SECRETS.items():
            if pattern.search(text):
                raise CheckpointError(f"{root / name}: contains {what}; remove it before publishing")
