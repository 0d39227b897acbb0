"""How scripts end: one line for any error, and an exit code that separates bad input from failures."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_rnn_seq2seq import command_line, errors
from hf_rnn_seq2seq.data.readers import read_lines
from hf_rnn_seq2seq.errors import InputError, TrainingError, reading
from tests.helpers import warm

HINT = "; HF_RNN_SEQ2SEQ_TRACEBACK=1 shows where it came from"


def raising(error: BaseException) -> Callable[[object], int]:
    def main(_: object) -> int:
        raise error

    return main


def wrapped(_: object) -> int:
    try:
        raise InputError("file a.tsv, line 3: no tab")
    except InputError as error:
        raise RuntimeError("generating the data set failed") from error


def library_value_error(_: object) -> int:
    return int(json.loads("[") or 0)


def converted(_: object) -> int:
    with reading("file a.json") as place:
        place.line = 7
        return int({}["en"])


def out_of_memory_of_a_device(_: object) -> int:
    with reading("model_name_or_path='a'"):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")


ENDINGS = {
    "our ValueError": (raising(ValueError("num_beams=0: must be at least 1")), 2, "num_beams=0: must be at least 1"),
    "bad input": (raising(InputError("file a:\nno rows")), 2, "file a: no rows"),
    "training": (raising(TrainingError("the loss is not finite")), 1, "the loss is not finite"),
    "wrapped by a library": (wrapped, 2, "file a.tsv, line 3: no tab"),
    "out of a library": (
        library_value_error,
        1,
        "unexpected JSONDecodeError: Expecting value: line 1 column 2 (char 1)" + HINT,
    ),
    "while reading": (converted, 2, "file a.json, line 7: cannot be read (KeyError: 'en')"),
    "no file": (raising(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a.png")), 2, "a.png: No such"),
    "a class nobody expects": (raising(AttributeError("no x")), 1, "unexpected AttributeError: no x" + HINT),
    "without a word": (raising(AssertionError()), 1, "unexpected AssertionError" + HINT),
    "recursion": (raising(RecursionError("maximum depth")), 1, "unexpected RecursionError: maximum depth" + HINT),
    "memory": (raising(MemoryError()), 1, "out of memory; a smaller batch"),
    "memory of a device": (
        out_of_memory_of_a_device,
        1,
        "out of memory (last input: model_name_or_path='a') (tried to allocate 3 GiB); a smaller batch",
    ),
    "interrupted": (raising(KeyboardInterrupt()), 130, "interrupted"),
    "endless": (raising(InputError("file a: " + "x" * 500_000 + "; mend it")), 2, "file a: xxx"),
    "endless, of a library": (raising(TypeError("y" * 500_000)), 1, "unexpected TypeError: yyy"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_script_ends_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main, code, message = ENDINGS[name]
    monkeypatch.setattr(errors, "_last", None)
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    printed = capsys.readouterr().err
    assert ended.value.code == code
    assert printed.startswith("error: " + message)
    assert printed.count("\n") == 1 and len(printed) < 1100


def test_an_unexpected_error_names_the_last_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")

    def main(_: object) -> int:
        for line in read_lines(tmp_path / "a.txt"):
            if line == "two":
                raise TypeError("not for a tokenizer")
        return 0

    monkeypatch.setenv(command_line.TRACEBACK, "1")
    with pytest.raises(SystemExit):
        command_line.run(main)
    *trace, last = capsys.readouterr().err.splitlines()
    assert trace[0].startswith("Traceback")
    where = f"unexpected TypeError: not for a tokenizer (last input: file {tmp_path / 'a.txt'}, line 2)"
    assert last == f"error: {where}{HINT}"


def test_other_processes_say_which_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        command_line.run(raising(InputError("no rows")))
    assert capsys.readouterr().err == "error: process 1 of 2: no rows\n"


def test_output_in_another_code_page_is_written_with_replacements() -> None:
    program = "import sys; sys.stdout.reconfigure(encoding='ascii')\n"
    program += "from hf_rnn_seq2seq import command_line; command_line.run(lambda _: print('ao\\xfbt \\ud83d'))"
    done = subprocess.run([*warm.python(), "-c", program], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ao?t ?\n", b"")


def test_every_script_ends_there() -> None:
    scripts = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))
    others = [path.name for path in scripts if not path.read_text().endswith("    command_line.run(main)\n")]
    assert len(scripts) > 15
    assert others == []
