"""Upload a trained directory to the Hub: checkpoint, model card, pictures and the facts of the run, in one commit.

    python scripts/push_to_hub.py runs/demo user/name --dry_run
    python scripts/push_to_hub.py runs/demo user/name --private --revision draft --license mit

The directory is the output of training, of `save_model` of a Trainer, or of `save_pretrained` (model and tokenizer).
The token is that of `hf auth login` or HF_TOKEN. The card is the README.md of the directory, or is rendered from the
files of the run, with the license of --license. Files that belong to no checkpoint are listed and not uploaded; a file
that contains a secret stops the upload.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("directory", metavar="DIR", nargs="?", help="directory that training wrote")
    parser.add_argument("repo_id", metavar="user/name", nargs="?", help="repository; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", help="branch to push to; created from main if it does not exist")
    parser.add_argument("--message", default="Upload model", help="commit message")
    parser.add_argument(
        "--license", help="of the weights, by its name on the Hub, such as mit (default: none in the card)"
    )
    parser.add_argument("--card", metavar="FILE", help="write the model card to FILE, and its facts to FILE with .json")
    parser.add_argument("--dry_run", action="store_true", help="list files and sizes, and send nothing")
    parser.add_argument(
        "--render_cards", action="store_true", help="render the cards of model_cards/ again from their facts, and exit"
    )
    arguments = parser.parse_args(argv)
    if not arguments.render_cards and arguments.repo_id is None:
        parser.error("DIR and user/name are required")
    return arguments


def check_card(card: Path, directory: Path) -> None:
    """Refuses a card that cannot be written, or whose facts (NAME.json) would lie among the files of the run."""
    from hf_rnn_seq2seq.errors import InputError

    if card.suffix == ".json" or card.is_dir() or not card.parent.is_dir():
        raise InputError(f"card={str(card)!r}: must be a file, not .json, in a folder that exists")
    if card.parent.resolve() == directory.resolve():
        raise InputError(f"card={str(card)!r}: its facts would lie among the files of the run; name another folder")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from hf_rnn_seq2seq.errors import InputError
    from hf_rnn_seq2seq.files import write_atomically
    from hf_rnn_seq2seq.hub.model_card import read_facts, render_again, template_path
    from hf_rnn_seq2seq.hub.upload import plan_upload, push

    if arguments.render_cards:
        for path in render_again(template_path().parent):
            print(path)
        return 0
    directory, repo_id, license = arguments.directory, arguments.repo_id, arguments.license
    if arguments.card:
        check_card(Path(arguments.card), Path(directory))
    upload = plan_upload(directory, repo_id, license=license)
    if arguments.card:
        card = upload.files["README.md"]
        facts = read_facts(directory, repo_id=repo_id, license=license)
        write_atomically(Path(arguments.card).with_suffix(".json"), json.dumps(facts, indent=1, ensure_ascii=False))
        write_atomically(arguments.card, card if isinstance(card, bytes) else card.read_bytes())
    sizes = upload.sizes()
    for name, size in sizes.items():
        print(f"{size:>12,}  {name}")
    print(f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files for {repo_id}")
    for names, what in ((upload.kept_here, "kept here"), (upload.left_out, "left out, of no checkpoint")):
        if names:
            print(f"{what}: {len(names)} files ({', '.join(sorted({_top(name) for name in names}))})")
    if arguments.dry_run:
        print("dry run: nothing was sent")
        return 0
    try:
        address = push(
            upload, repo_id, private=arguments.private, revision=arguments.revision, message=arguments.message
        )
    except OfflineModeIsEnabled:
        raise InputError(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to reach the Hub") from None
    except HfHubHTTPError as error:
        raise InputError(f"{repo_id}: {refusal(error)}") from None
    print(f"published: {address}")
    return 0


def refusal(error: Exception) -> str:
    """The error of the Hub in one line, with its mend."""
    mends = {
        401: "the Hub does not accept the token (401); run `hf auth login`, or set HF_TOKEN to one with write access",
        403: "the token has no write access there (403); use another token, or a repository of your own",
    }
    status = getattr(getattr(error, "response", None), "status_code", None)
    return mends.get(status) or command_line.one_line(error)[:300]


def _top(name: str) -> str:
    first, slash, _ = name.partition("/")
    return first + slash
