"""Translate in the browser: `python scripts/app.py runs/demo [runs/other ...]`, then open the address it prints.

Translation and attention map appear word by word; several models translate side by side. The app is served on loopback
unless --host names another address. `--space DIR` writes the files of a Hugging Face Space instead: create a Space on
the Hub, copy the files into its repository, push.
"""

import argparse
import importlib.util
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="directories that training wrote, or user/name")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: loopback)")
    parser.add_argument("--port", type=command_line.at_least(1, 65535), help="(default: the first free one from 7860)")
    parser.add_argument("--title", default="", help="heading of the page")
    parser.add_argument("--example", action="append", help="an example sentence; may be repeated (default: the run's)")
    parser.add_argument("--space", metavar="DIR", help="write the files of a Space into DIR and exit")
    parser.add_argument("--license", help="with --space: its license, by its name on the Hub, such as mit")
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.license and not arguments.space:
        parser.error("--license: needs --space; the license is part of the card of a Space")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("gradio is not installed; the extra `app` installs it: pip install 'hf_rnn_seq2seq[app]'")
    from hf_rnn_seq2seq.visualization.demo_app import build_app, example_sentences, launch, load_systems

    examples = arguments.example if arguments.example is not None else example_sentences(arguments.models)
    if arguments.space:
        from hf_rnn_seq2seq.hub.space import write_space

        folder = write_space(
            arguments.space, arguments.models, title=arguments.title, examples=examples, license=arguments.license
        )
        print("\n".join(str(path) for path in sorted(folder.iterdir())))
        return 0
    systems = load_systems(arguments.models, device=arguments.device, dtype=arguments.dtype)
    app = build_app(systems, examples=examples, title=arguments.title)
    launch(app, server_name=arguments.host, server_port=arguments.port)
    return 0
