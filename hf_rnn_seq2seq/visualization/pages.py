"""The templates of the HTML pages, and pages without a template."""

import functools
import html
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

_PACKAGE = "hf_rnn_seq2seq.visualization"


@functools.cache
def environment() -> "jinja2.Environment":
    """Renders the files of `templates/`; values are escaped."""
    import jinja2

    loader = jinja2.PackageLoader(_PACKAGE, "templates")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def read_template(name: str) -> str:
    """The text of a file of `templates/` that is not a template, such as a style sheet."""
    return (resources.files(_PACKAGE) / "templates" / name).read_text(encoding="utf-8")


def plain_page(title: str, style: str, body: str) -> str:
    """A page without scripts, which fetches nothing; `body` is markup, whose texts are escaped."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
