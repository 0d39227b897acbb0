"""Publish a trained directory on the Hub: checkpoint, model card, pictures and the facts of the run, in one commit.

    python scripts/push_to_hub.py runs/demo user/name --dry_run
    python scripts/push_to_hub.py runs/demo user/name --private --revision draft

The token is the one of `hf auth login` or HF_TOKEN. The card is rendered from the run's own files unless the directory
has a README.md. Stray files and files that hold secrets are refused; checkpoints/ and tensorboard/ are not uploaded.
"""

import argparse
import json
import sys
from pathlib import Path


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", help="directory that training wrote")
    parser.add_argument("repo_id", metavar="user/name", nargs="?", help="repository; created where it does not exist")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", help="branch to push to; created from main where it does not exist")
    parser.add_argument("--message", default="Upload model", help="commit message")
    parser.add_argument("--card", metavar="FILE", help="write the model card to FILE, and its facts to FILE with .json")
    parser.add_argument("--dry_run", action="store_true", help="list files and sizes, send nothing")
    parser.add_argument(
        "--render_cards", action="store_true", help="render the cards of model_cards/ again from their facts, and end"
    )
    arguments = parser.parse_args(argv)
    if not arguments.render_cards and arguments.repo_id is None:
        parser.error("give DIR and user/name")
    return arguments


def main() -> int:
    arguments = parse()
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from hf_rnn_seq2seq.model_card import read_facts, render_again, template_path
    from hf_rnn_seq2seq.publishing import PublishError, plan_upload, push
    from hf_rnn_seq2seq.run_directory import write_atomically

    if arguments.render_cards:
        for path in render_again(template_path().parent):
            print(path)
        return 0
    try:
        upload = plan_upload(arguments.directory, arguments.repo_id)
        if arguments.card:
            card = upload.files["README.md"]
            facts = read_facts(arguments.directory, repo_id=arguments.repo_id)
            write_atomically(Path(arguments.card).with_suffix(".json"), json.dumps(facts, indent=1, ensure_ascii=False))
            write_atomically(arguments.card, card if isinstance(card, bytes) else card.read_bytes())
        sizes = upload.sizes()
        for name, size in sizes.items():
            print(f"{size:>12,}  {name}")
        print(f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files for {arguments.repo_id}")
        if upload.kept_here:
            print(
                f"kept here: {len(upload.kept_here)} files ({', '.join(sorted({_top(n) for n in upload.kept_here}))})"
            )
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        address = push(
            upload,
            arguments.repo_id,
            private=arguments.private,
            revision=arguments.revision,
            message=arguments.message,
        )
    except (PublishError, OSError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"published: {address}")
    return 0


def _top(name: str) -> str:
    first, slash, _ = name.partition("/")
    return first + slash


if __name__ == "__main__":
    sys.exit(main())
