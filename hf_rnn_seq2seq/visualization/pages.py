"""The templates of the HTML pages."""

import functools
from importlib import resources

import jinja2

_PACKAGE = "hf_rnn_seq2seq.visualization"


@functools.cache
def environment() -> jinja2.Environment:
    """Renders the files of `templates/`; values are escaped."""
    loader = jinja2.PackageLoader(_PACKAGE, "templates")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def read_template(name: str) -> str:
    """The text of a file of `templates/` that is not a template, such as a style sheet."""
    return (resources.files(_PACKAGE) / "templates" / name).read_text(encoding="utf-8")
