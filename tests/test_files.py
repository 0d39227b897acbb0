"""Locks: one process at a time may write a directory or a file, and its lock ends with it."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from hf_rnn_seq2seq.errors import ArgumentError, DataError, InUseError
from hf_rnn_seq2seq.files import FileLock, check_output_file, only_writer, write_atomically
from hf_rnn_seq2seq.generation.lines import LineWriter
from tests.helpers import warm

ROOT = Path(__file__).parents[1]
HOLD = """
import os, sys, time
from hf_rnn_seq2seq.generation.lines import LineWriter
from hf_rnn_seq2seq.files import only_writer
folder, output = sys.argv[1:]
with only_writer(folder), LineWriter(output, resume=True, overwrite=True) as writer:
    writer.write(["one", "two"])
    child = os.fork()  # as libraries do for their workers; it outlives its parent
    if child:
        print(os.getpid(), child, flush=True)
    time.sleep(600)
"""


def test_the_second_process_is_refused_while_the_first_lives(tmp_path):
    folder, output = tmp_path / "new" / "run", tmp_path / "out.txt"
    command = [*warm.python(), "-c", HOLD, str(folder), str(output)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    pid, child = map(int, holder.stdout.readline().split())
    try:
        refusal = rf"output_dir='{folder}': another process \(process {pid} on "
        with pytest.raises(InUseError, match=refusal), only_writer(folder):
            pass
        with pytest.raises(DataError, match=r"out.txt.part': another process is writing it"):
            LineWriter(str(output), resume=True)
        assert (tmp_path / "out.txt.part").read_text() == "one\ntwo\n", "what the first wrote is whole"
        os.kill(pid, signal.SIGKILL)
        holder.wait()
        with only_writer(folder):
            pass
        with LineWriter(str(output), resume=True, overwrite=True) as writer:
            assert writer.done == 2
        assert output.read_text() == "one\ntwo\n" and not list(tmp_path.glob("*.part*"))
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_a_lock_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "a" / "b"
    with only_writer(folder), only_writer(folder), pytest.raises(InUseError):
        FileLock(folder / ".lock")
    assert not list(tmp_path.iterdir())
    with only_writer(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_lock_of_a_file_that_was_moved_is_not_one_of_the_new_file(tmp_path):
    first = FileLock(tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / "g")
    second = FileLock(tmp_path / "f")
    with pytest.raises(InUseError):
        FileLock(tmp_path / "g")
    first.release()
    first.release()
    FileLock(tmp_path / "g").release()
    second.release()


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    synced = os.fsync

    def full(descriptor):
        assert path.read_text() == "old", "the new content is written elsewhere first"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["summary.json"]
    monkeypatch.setattr(os, "fsync", synced)
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_an_error_has_the_name_of_the_file_that_was_wanted(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path, "text")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path), None)


def test_where_no_file_can_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    check_output_file(tmp_path / "new.json", "json")
    with pytest.raises(ArgumentError, match=f"^json='{tmp_path}': is a folder; name a file$"):
        check_output_file(tmp_path, "json")
    with pytest.raises(ArgumentError, match="^json='.*/no/x': its folder does not exist; make it, or name another one"):
        check_output_file(tmp_path / "no" / "x", "json")
    (tmp_path / "old.json").touch()
    check_output_file(tmp_path / "old.json", "json")
    with pytest.raises(ArgumentError, match="^json='.*/old.json': exists; choose another name, or --overwrite$"):
        check_output_file(tmp_path / "old.json", "json", overwrite=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ArgumentError, match="^json='.*/x': its folder cannot be written to; name another one"):
        check_output_file(tmp_path / "x", "json")
