"""Captions in the form of Flickr8k: one file of captions, and for each split a list of pictures.

A line of captions is `picture.jpg#0`, a tab and the text; a line of a list is `picture.jpg`. Either may be gzipped.

Captions are read as they are scored in the literature since Karpathy and Fei-Fei 2015: in lower case, and without the
tokens that are punctuation alone. Training, references and outputs then have one form.
"""

from collections.abc import Iterator
from pathlib import Path

from hf_rnn_seq2seq.data.readers import checked, read_lines
from hf_rnn_seq2seq.errors import DataError, quoted


def read_captions(path: Path) -> dict[str, list[str]]:
    """The captions of each picture, in the order of the file.

    Raises:
        DataError: a line has another form, or the file has none.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        picture, sign, _ = name.rpartition("#")
        if not tab or not sign:
            raise DataError(f"file {path}, line {number}: {quoted(line)}: must be picture#number, a tab and a caption")
        found.setdefault(picture, []).append(text)
    if not found:
        raise DataError(f"file {path} holds no captions")
    return found


def plain_words(text: str) -> str:
    """`A man 's hat .` -> `a man 's hat`."""
    return " ".join(word for word in text.lower().split() if any(map(str.isalnum, word)))


def caption_rows(
    captions_file: str, pictures: str, content: str, version: str
) -> Iterator[dict[str, str | int | None]]:
    """A row for each caption of the listed pictures, for `datasets`: `source` (picture), `target`, `problem`, `id`.

    A picture that is listed again adds nothing.

    `content` and `version` are part of the cache key only.

    Raises:
        DataError: a listed picture has no caption, or none is listed.
    """
    captions, number, listed = read_captions(Path(captions_file)), 0, set()
    for line, name in enumerate(read_lines(Path(pictures)), start=1):
        if not (name := name.strip()) or name in listed:
            continue
        listed.add(name)
        if name not in captions:
            raise DataError(f"file {pictures}, line {line}: {quoted(name)} has no caption in {captions_file}")
        for text in captions[name]:
            row = checked(name, plain_words(text))
            yield {"source": row.source, "target": row.target, "problem": row.problem, "id": number}
            number += 1
    if not number:
        raise DataError(f"file {pictures} lists no picture")
